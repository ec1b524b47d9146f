"""`data.micro_batch 0`: the largest micro-batch that fits, estimated, then proven by trial (trying.py); found once.

For the estimate the network passes one image without memory and values (the meta device); what autograd saves for its
backward is counted. So a trial begins near its end, and hardly ever runs out of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from bloodcell.config import Config
from bloodcell.engine.losses import VIEWS
from bloodcell.engine.sizes import parse_sizes
from bloodcell.models import zoo
from shards.errors import BadInput

MARGIN = 0.8
"""Part of the memory that training may fill: readers, libraries and fragments take of the rest."""

LEAST_STEPS = 20
"""An epoch has so many steps at least: of a small set a micro-batch is not made larger than that."""

MOST = 4096

COPIES = 6
"""Of each weight, float32: itself, its gradient, two of the optimizer, an average, and one in passing."""

PASSING = 3
"""Of the largest tensor: gradients of activations and the workspace of a convolution, at once."""


@dataclass(frozen=True)
class Needs:
    """Bytes that training takes: of the network itself, and of each image of a micro-batch."""

    fixed: int
    image: int

    def fits(self, memory: float) -> int:
        """Return the largest power of two of images that fit into a memory, 0 if none does."""
        most = int((memory * MARGIN - self.fixed) // self.image)
        return min(1 << (most.bit_length() - 1), MOST) if most > 0 else 0


@dataclass(frozen=True)
class Estimate:
    """What is expected to fit, and the limits of a trial.

    Attributes:
        images: of a micro-batch, a power of two.
        most: more are not tried.
        allowed: bytes that training may take at its peak.
        why: for people.
    """

    images: int
    most: int
    allowed: int
    why: str


def choose_micro_batch(config: Config, samples: int, taken: int = 0) -> Estimate:
    """Return the micro-batch that data.micro_batch 0 is expected to mean.

    Args:
        config: resolved but for that.
        samples: of an epoch.
        taken: bytes of the GPU that images in its memory will take.

    Raises:
        BadInput: nothing fits, or on a CPU no memory was stated.
    """
    memory = config.engine.memory * 2**30
    if not memory and config.engine.device == "cpu":
        fix = "add --engine.memory GIB, what each rank may take, or give --data.micro_batch a number"
        raise BadInput("on a CPU the largest micro-batch follows from a memory that is stated", "data.micro_batch", fix)
    memory = memory or float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    memory = max(0.0, memory - taken)
    needs = training_needs(config)
    fits = needs.fits(memory)
    told = (
        f"{needs.image / 2**20:.1f} MiB an image and {needs.fixed / 2**20:.0f} MiB besides, of {memory / 2**30:.1f} GiB"
    )
    if not fits:
        raise BadInput(f"not one image fits: {told}", "data.micro_batch", "take smaller images or a smaller network")
    cap = samples // (LEAST_STEPS * config.train.micro_batches)
    most, allowed = min(MOST, 1 << (max(1, cap).bit_length() - 1)), int(memory * MARGIN)
    if fits > most:
        why = f"{told}: {fits} would fit, but an epoch shall have {LEAST_STEPS} steps"
        return Estimate(most, most, allowed, why)
    return Estimate(fits, most, allowed, told)


def proven(estimate: Estimate, peak_of: Callable[[int], int | None]) -> tuple[int, int]:
    """Return the largest micro-batch that fits by trial, and the bytes that it took at its peak.

    Half is tried until it fits; where the estimate leaves more than half of the memory unused, double.

    Args:
        estimate: where to begin.
        peak_of: tries a number of images; returns the bytes at the peak, None if they did not fit.

    Raises:
        BadInput: not one image fits.
    """

    def fitting(images: int) -> int | None:
        peak = peak_of(images)
        return peak if peak is not None and peak <= estimate.allowed else None

    images, halved = estimate.images, False
    while (peak := fitting(images)) is None:
        if images == 1:
            what = f"not one image fits into {estimate.allowed / 2**30:.1f} GiB, by trial"
            raise BadInput(what, "data.micro_batch", "take smaller images or a smaller network, or more memory")
        images, halved = images // 2, True
    while not halved and peak < estimate.allowed / 2 and 2 * images <= estimate.most:
        more = fitting(2 * images)
        if more is None:
            break
        images, peak = 2 * images, more
    return images, peak


def training_needs(config: Config) -> Needs:
    """Return what training takes, estimated."""
    size = max(size for size, _ in parse_sizes(config.train.sizes, config.data.size))
    model = zoo.outline(config.model.name, config.model.head, size).train()
    saved, largest = kept_for_backward(model, size)
    weights = sum(p.numel() for p in model.parameters())
    half = 1.0 if config.engine.precision == "fp32" else 0.8  # not all is kept in 16 bits
    image = (saved + PASSING * largest) * half * (VIEWS if config.loss.jsd else 1)
    # An input image is float32 and waits in a few batches ahead of the step.
    return Needs(4 * COPIES * weights, int(image) + 4 * 4 * 3 * size**2)


def kept_for_backward(model: nn.Module, size: int) -> tuple[float, float]:
    """Return the bytes that autograd saves for an image, and those of the largest such tensor, in float32.

    Args:
        model: on the meta device.
        size: of the images.
    """
    seen: dict[int, tuple[torch.UntypedStorage, int]] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage._cdata] = (storage, storage.nbytes())
        return tensor

    own = {p.untyped_storage()._cdata for p in [*model.parameters(), *model.buffers()]}
    images = torch.empty(2, 3, size, size, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        result = model(images)
    sizes = [size for key, (_, size) in seen.items() if key not in own]
    assert result is not None
    return sum(sizes) / 2, max(sizes, default=0) / 2
