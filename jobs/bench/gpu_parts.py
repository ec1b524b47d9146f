"""The parts of `bloodcell bench gpu`: a training step on real images and on tensors of the device, and images alone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from jobs.bench.result import Row, interleaved, measured

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bloodcell.data.resident import DeviceCache
    from bloodcell.data.shardset import ShardSet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WARM_UP = 10
"""Steps before the clock starts: kernels are chosen and memory is taken in them."""

ENCODED = 512
"""Images that the batches of torchvision are taken from."""


@dataclass(frozen=True)
class How:
    """What is measured with: the set, pixels, images in a batch, steps in a repeat, repeats and decoding threads."""

    shards: ShardSet
    size: int
    batch: int
    steps: int
    repeats: int
    threads: int

    @property
    def device(self) -> torch.device:
        """The GPU."""
        import torch

        return torch.device("cuda", torch.cuda.current_device())


def network(how: How, ours: str, theirs: str, compiled: bool) -> list[Row]:
    """Time training steps in bf16: on tensors of the device, on real images (kept and decoded), and timm's network."""
    import timm
    import torch

    from bloodcell.models import zoo

    def build(model: nn.Module) -> nn.Module:
        model = model.to(how.device).to(memory_format=torch.channels_last).train()
        return torch.compile(model) if compiled else model  # type: ignore[return-value]  # it is called alike

    classes = len(how.shards.info.classes)
    own = build(zoo.build(ours, classes, None, True, "linear", how.size))
    other = build(timm.create_model(theirs, num_classes=classes))
    kind = "compiled" if compiled else "plain"
    synthetic, bare = f"{ours}, {kind}, device tensors", f"timm {theirs}, {kind}, bare loop, device tensors"
    kept, decoding = f"{ours}, {kind}, images kept on the GPU", f"{ours}, {kind}, images decoded each time"
    cache = filled(how)
    cases: dict[str, Callable[[], float]] = {
        synthetic: partial(rate, how, own, partial(tensors, how, classes)),
        kept: partial(rate, how, own, partial(batches, how, cache)),
        decoding: partial(rate, how, own, partial(batches, how, None)),
        bare: partial(rate, how, other, partial(tensors, how, classes)),
    }
    figures = interleaved(cases, how.repeats, warmups=1)
    base = {synthetic: bare}
    return [
        measured(name, figures[name], "images/s", base.get(name, synthetic), figures[base.get(name, synthetic)])
        for name in cases
    ]


def rate(how: How, model: nn.Module, source: Callable[[], Iterator[tuple[Any, Any]]]) -> float:
    """Return images a second of training steps without a look at the device between them."""
    import torch
    from torch.nn import functional

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    begin = 0.0
    for step, (images, labels) in enumerate(itertools.islice(source(), WARM_UP + how.steps)):
        if step == WARM_UP:
            torch.cuda.synchronize()
            begin = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    return how.steps * how.batch / (time.perf_counter() - begin)


def tensors(how: How, classes: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
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


def batches(how: How, cache: DeviceCache | None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield training batches of our loader under the policy light."""
    from bloodcell.data.loader import Loader, training_requests
    from bloodcell.data.order import BatchOrder, NaturalPlan
    from bloodcell.data.pipeline import View
    from bloodcell.data.policies import POLICIES
    from bloodcell.data.reading import Reading
    from jobs.bench.data import training_split

    order = BatchOrder(NaturalPlan(how.shards.ranges(training_split(how.shards))), 0, how.batch, 1)
    view = View(how.size, MEAN, STD, POLICIES["light"], 0)
    requests = training_requests(order, 1, 0, 0, WARM_UP + how.steps)
    with Loader(how.shards, requests, view, how.batch, how.threads, how.device, Reading(cache=cache)) as loader:
        for batch in loader:
            yield batch.images, batch.labels


def images(how: How) -> list[Row]:
    """Time decoding and augmenting alone, beside torchvision's batched decoder on the GPU (decoding only)."""
    cases: dict[str, Callable[[], float]] = {
        "torchvision decode_jpeg on the GPU, no resize": partial(_torchvision, how),
        "bloodcell, decode + light (DALI)": partial(_alone, how, None),
        "bloodcell, kept on the GPU + light (DALI)": partial(_alone, how, filled(how)),
    }
    figures = interleaved(cases, how.repeats, warmups=1)
    base = next(iter(cases))
    return [measured(name, figures[name], "images/s", base, figures[base]) for name in cases]


def _alone(how: How, cache: DeviceCache | None) -> float:
    import torch

    begin, count = 0.0, 0
    for step, (found, _) in enumerate(batches(how, cache)):
        if step == WARM_UP:
            torch.cuda.synchronize()
            begin, count = time.perf_counter(), 0
        count += len(found)
    torch.cuda.synchronize()
    return count / (time.perf_counter() - begin)


def _torchvision(how: How) -> float:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    from bloodcell.data.shardset import Reader
    from jobs.bench.data import training_split

    reader, first = Reader(how.shards), int(how.shards.ranges(training_split(how.shards))[0][0])
    found = [torch.from_numpy(reader.read(first + place % ENCODED)) for place in range(how.batch)]
    begin = 0.0
    for step in range(WARM_UP + how.steps):
        if step == WARM_UP:
            torch.cuda.synchronize()
            begin = time.perf_counter()
        decode_jpeg(found, mode=ImageReadMode.RGB, device=how.device)
    torch.cuda.synchronize()
    return how.steps * how.batch / (time.perf_counter() - begin)
