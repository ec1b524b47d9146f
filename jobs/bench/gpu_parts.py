"""The networks of `bloodcell bench gpu`: a training step on real images beside the same step on tensors of the device.

Both have nothing but the step between two looks at the device; timm's network takes the same steps in a bare loop.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.bench.result import Row, interleaved, measured, median
from shards.errors import BadInput

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bloodcell.data.policies import Policy
    from bloodcell.data.resident import DeviceCache, HostCache
    from bloodcell.data.shardset import ShardSet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WARM_UP = 10
"""Steps before the clock starts: kernels are chosen and memory is taken in them."""

Batches = Iterator[tuple[Any, Any]]


@dataclass(frozen=True)
class How:
    """What is measured with.

    Attributes:
        shards: the set.
        size: height and width of the input, pixels.
        batch: images in a micro-batch.
        steps: in a repeat.
        repeats: of each.
        threads: that decode.
        device: the GPU, or the CPU for a rehearsal.
        warm_up: steps before the clock starts.
        pictures: folder of class folders, for the way to a result.
        weights: of MobileNetV2, for the same.
        left_out: takes note of what a part leaves out.
    """

    shards: ShardSet
    size: int
    batch: int
    steps: int
    repeats: int
    threads: int
    device: torch.device
    warm_up: int = WARM_UP
    pictures: Path | None = None
    weights: Path | None = None
    left_out: list[str] = field(default_factory=list)

    @property
    def gpu(self) -> bool:
        """Whether this is no rehearsal."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Wait until the device has done all that it was given."""
        import torch

        if self.gpu:
            torch.cuda.synchronize(self.device)


def make_how(parsed: argparse.Namespace) -> How:
    """Return what the flags ask for.

    Raises:
        BadInput: no set, or it has not enough images for a micro-batch; no such folder or file.
    """
    import torch

    from bloodcell.data.shardset import ShardSet
    from jobs.bench.data import training_split
    from shards.parallel import available_cores

    shards, gpu = ShardSet.open(parsed.set), parsed.device == "cuda"
    if shards.info.count(training_split(shards)) < parsed.batch:
        raise BadInput("the set has fewer training images than a micro-batch", parsed.set, "lower --batch")
    if parsed.images is not None and not parsed.images.is_dir():
        raise BadInput("no such folder", parsed.images, "name the folder of class folders with --images")
    if parsed.weights is not None and not parsed.weights.is_file():
        raise BadInput("no such file of weights", parsed.weights, "name one with --weights")
    return How(
        shards=shards,
        size=parsed.size,
        batch=parsed.batch,
        steps=parsed.steps,
        repeats=parsed.repeats,
        threads=parsed.threads or max(1, min(16, available_cores() - 2)),
        device=torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu"),
        warm_up=WARM_UP if gpu else 1,
        pictures=parsed.images,
        weights=parsed.weights,
    )


def has_dali() -> bool:
    """Whether DALI is installed."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def network(how: How, ours: str, theirs: str, compiled: bool, size: int) -> list[Row]:
    """Time training steps in bf16: on tensors of the device, on real images (kept and decoded), and timm's network."""
    import timm
    import torch

    from bloodcell.models import zoo

    how = replace(how, size=size)
    backend = "inductor" if how.gpu else "aot_eager"  # a rehearsal traces; it does not compile for minutes

    def build(model: nn.Module) -> nn.Module:
        model = model.to(how.device).to(memory_format=torch.channels_last).train()
        return torch.compile(model, backend=backend) if compiled else model  # type: ignore[return-value]  # called alike

    classes = len(how.shards.info.classes)
    own = build(zoo.build(ours, classes, None, True, "linear", size))
    other = build(timm.create_model(theirs, num_classes=classes))
    kind = "compiled" if compiled else "plain"
    synthetic, bare = f"{ours}, {kind}, device tensors", f"timm {theirs}, {kind}, bare loop, device tensors"
    cases: dict[str, Callable[[], float]] = {synthetic: partial(rate, how, own, partial(tensors, how, classes))}
    for name, source in real_images(how).items():
        cases[f"{ours}, {kind}, {name}"] = partial(rate, how, own, source)
    cases[bare] = partial(rate, how, other, partial(tensors, how, classes))
    figures = interleaved(cases, how.repeats, warmups=1)
    base = {synthetic: bare}
    rows = [
        measured(name, figures[name], "images/s", base.get(name, synthetic), figures[base.get(name, synthetic)])
        for name in cases
    ]
    return rows + shares(how, ours, synthetic, median(figures[synthetic]))


def real_images(how: How) -> dict[str, Callable[[], Batches]]:
    """Return ways in which batches of the set's images come to the device, by name."""
    from jobs.bench.data import kept

    if how.gpu and has_dali():
        return {
            "images kept on the GPU": partial(batches, how, filled(how)),
            "images decoded each time": partial(batches, how, None),
        }
    how.left_out.append(f"images kept on the GPU: {'DALI is not installed' if how.gpu else 'there is no GPU'}")
    memory = kept(how.shards, how.threads)
    found: dict[str, Callable[[], Batches]] = {"images kept in memory": partial(batches, how, memory, "cpu")}
    if has_dali():
        found["images decoded each time"] = partial(batches, how, None)
    return found


def shares(how: How, model: str, name: str, images_per_s: float) -> list[Row]:
    """Return which part of the device's measured ceilings a rate is; on a CPU there are none."""
    from bloodcell.config import Config, override
    from bloodcell.engine.efficiency import efficiency, measured_ceiling

    ceiling = measured_ceiling(how.device, "bf16")
    if ceiling is None:
        how.left_out.append(f"{name}, shares of the ceilings: nothing is measured of a CPU")
        return []
    config = override(Config(), {"model.name": model, "data.size": how.size, "engine.precision": "bf16"})
    found = efficiency(config, images_per_s, 1, ceiling)
    named = {"mfu": "measured compute", "bandwidth": "measured bandwidth, if every layer went to memory"}
    return [
        Row(f"{name}, share of the {what}", 100 * found[key], "%")
        for key, what in named.items()
        if found[key] is not None
    ]


def rate(how: How, model: nn.Module, source: Callable[[], Batches]) -> float:
    """Return images a second of training steps without a look at the device between them."""
    import torch
    from torch.nn import functional

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    begin = 0.0
    for step, (images, labels) in enumerate(itertools.islice(source(), how.warm_up + how.steps)):
        if step == how.warm_up:
            how.wait()
            begin = time.perf_counter()
        with torch.autocast(how.device.type, torch.bfloat16, enabled=how.gpu):
            loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    how.wait()
    return how.steps * how.batch / (time.perf_counter() - begin)


def tensors(how: How, classes: int) -> Batches:
    """Yield the same batch of tensors on the device again and again."""
    import torch

    images = torch.randn(how.batch, 3, how.size, how.size, device=how.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(classes, (how.batch,), device=how.device)
    while True:
        yield images, labels


def filled(how: How) -> DeviceCache:
    """Return the training images decoded on the GPU."""
    import numpy as np

    from bloodcell.data.filling import fill
    from bloodcell.data.layout import Layout
    from bloodcell.data.order import nth_ids
    from bloodcell.data.resident import DeviceCache
    from jobs.bench.data import training_split

    name = training_split(how.shards)
    ids = np.sort(nth_ids(how.shards.ranges(name), np.arange(how.shards.info.count(name))))
    cache = DeviceCache(Layout(how.shards, ids), how.device)
    fill(cache, how.shards, how.threads, True)
    return cache


def batches(
    how: How,
    cache: DeviceCache | HostCache | None,
    backend: str = "dali",
    policy: Policy | None = None,
    **reading: Any,
) -> Batches:
    """Yield training batches of our loader, under the policy light unless one is given; `reading`: of Reading."""
    from bloodcell.data.loader import Loader, training_requests
    from bloodcell.data.order import BatchOrder, NaturalPlan
    from bloodcell.data.pipeline import View
    from bloodcell.data.policies import POLICIES
    from bloodcell.data.reading import Reading
    from jobs.bench.data import training_split

    order = BatchOrder(NaturalPlan(how.shards.ranges(training_split(how.shards))), 0, how.batch, 1)
    view = View(how.size, MEAN, STD, policy or POLICIES["light"], 0, backend=backend)
    requests = training_requests(order, 1, 0, 0, how.warm_up + how.steps)
    read = Reading(cache=cache, **reading)
    with Loader(how.shards, requests, view, how.batch, how.threads, how.device, read) as loader:
        for batch in loader:
            yield batch.images, batch.labels
