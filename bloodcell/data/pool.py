"""The CPU backend: a pool of threads decodes, crops and augments, each image in one thread, into one batch."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bloodcell.data import kernels, kernels_choosing
from bloodcell.data.choosing import AugMix, Hybrid, RandAugment, Trivial
from bloodcell.data.decoding import pixels_of
from bloodcell.data.draws import Draws
from bloodcell.data.operations import Arguments, Crop, centre_window
from bloodcell.data.pipeline import PREFETCH, View
from bloodcell.data.policies import Policy, draw
from bloodcell.data.readahead import ReadAhead
from bloodcell.data.reading import Reading
from bloodcell.data.request import Request
from bloodcell.data.resident import HostCache
from bloodcell.data.shardset import ShardSet
from bloodcell.data.threads import image_threads

CHUNK = 8
"""Samples that a thread takes at once."""

KERNELS: dict[type, Callable[[torch.Tensor, Any, kernels.Drawn], torch.Tensor]] = {
    **kernels.KERNELS,
    RandAugment: kernels_choosing.randaugment,
    Trivial: kernels_choosing.trivial,
    AugMix: kernels_choosing.augmix,
    Hybrid: kernels_choosing.hybrid,
}


def not_done(policy: Policy) -> list[str]:
    """Return the names of the policy's operations that this backend does not do."""
    known = {Crop, *KERNELS}
    return [type(step).__name__.lower() for step in policy.operations if type(step) not in known]


@dataclass(frozen=True)
class Task:
    """A batch under way: what was drawn for each image, and where the images go, float32."""

    request: Request
    found: list[np.ndarray]
    windows: np.ndarray
    exact: bool
    drawn: list[Arguments]
    images: np.ndarray


class PoolRenderer:
    """Renders requests in their order.

    Args:
        shards: the opened set.
        requests: what each batch shall hold.
        view: how images become network input.
        threads: of the pool.
        reading: how samples are read.
    """

    def __init__(
        self, shards: ShardSet, requests: Iterator[Request], view: View, threads: int, reading: Reading
    ) -> None:
        self.shards, self.view = shards, view
        self._cache = reading.cache if isinstance(reading.cache, HostCache) else None
        self._side = reading.side
        self.ahead = ReadAhead(shards, requests, reading)
        self._buffers = Buffers()
        self._flight: deque[tuple[Task, list[Future[None]]]] = deque()
        self._end: Exception | None = None
        self._normalise = Normalise(view)
        self._pool = image_threads(threads, "bloodcell-pool")

    def next(self) -> tuple[torch.Tensor, Request]:
        """Return the next batch: float32 [n * views, 3, size, size], and its request.

        Raises:
            StopIteration: there are no more.
            Unreadable: a sample cannot be read or decoded.
        """
        while self._end is None and len(self._flight) <= PREFETCH:
            try:
                self._begin(*self.ahead.take())
            except Exception as error:  # the batches before it come first
                self._end = error
        if not self._flight:
            assert self._end is not None
            raise self._end
        task, parts = self._flight.popleft()
        for part in parts:
            part.result()
        images = torch.from_numpy(task.images)
        return images.permute(0, 3, 1, 2) if self.view.channels_last else images, task.request

    def close(self) -> None:
        """Stop the threads."""
        self.ahead.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, request: Request, found: list[np.ndarray]) -> None:
        view, count = self.view, len(found)
        rows = self.shards.index[request.ids]
        height, width = rows["height"].astype(np.int64), rows["width"].astype(np.int64)
        drawn = draw(
            view.policy, Draws(view.seed, request.epoch, request.ids, request.occurrences), height, width, view.views
        )
        crops = [own for step, own in zip(view.policy.operations, drawn, strict=True) if isinstance(step, Crop)]
        windows = crops[0]["window"] if crops else np.tile(centre_window(height, width), (view.views, 1))
        shape = (view.size, view.size, 3) if view.channels_last else (3, view.size, view.size)
        images = self._buffers.take((count * view.views, *shape))
        task = Task(request, found, windows, not crops, drawn, images)
        chunks = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
        self._flight.append((task, [self._pool.submit(self._render, task, chunk) for chunk in chunks]))

    def _render(self, task: Task, samples: range) -> None:
        for sample in samples:
            pixels = torch.from_numpy(self._pixels(task, sample))
            for row in range(sample, len(task.images), len(task.found)):
                self._normalise(self._augmented(pixels, task, row), torch.from_numpy(task.images[row]))

    def _pixels(self, task: Task, row: int) -> np.ndarray:
        sample, data = int(task.request.ids[row]), task.found[row]
        if data.ndim == 3:
            return data
        pixels = pixels_of(self.shards, sample, data, self._side)
        if self._cache is not None:
            self._cache.put(sample, pixels)
        return pixels

    def _augmented(self, pixels: torch.Tensor, task: Task, row: int) -> torch.Tensor:
        """Return what the network is shown in this row: uint8 [size, size, 3]."""
        cut = kernels.centred if task.exact else kernels.resized
        image = cut(pixels, task.windows[row], self.view.size)
        for operation, drawn in zip(self.view.policy.operations, task.drawn, strict=True):
            if not isinstance(operation, Crop):
                own = {name: values[row] for name, values in drawn.items()}
                image = KERNELS[type(operation)](image, operation, own)
        return image


class Normalise:
    """Makes network input of one image; whole rows at once, as three channels side by side would be slow.

    Args:
        view: mean, standard deviation and memory layout.
    """

    def __init__(self, view: View) -> None:
        std = torch.tensor(view.std)
        self._scale = (1 / (255 * std)).repeat(view.size)
        self._shift = (-torch.tensor(view.mean) / std).repeat(view.size)
        self._channels_last = view.channels_last

    def __call__(self, image: torch.Tensor, out: torch.Tensor) -> None:
        """Write uint8 [size, size, 3] into float32 `out`: of the same shape, or [3, size, size]."""
        lines = image.reshape(len(image), -1).float()
        if self._channels_last:
            torch.addcmul(self._shift, lines, self._scale, out=out.view(len(image), -1))
        else:
            out.copy_(torch.addcmul(self._shift, lines, self._scale).view(image.shape).permute(2, 0, 1))


class Buffers:
    """Memory of batches, used again when nobody holds it any more: fresh pages cost as much as a resize."""

    def __init__(self) -> None:
        self._all: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return float32 memory of this shape that nothing else refers to; its content is anything."""
        for place in range(len(self._all)):
            # Tensors made of an array, and views of these, hold it: two references are the list's and this call's.
            if self._all[place].shape == shape and sys.getrefcount(self._all[place]) <= 2:
                return self._all[place]
        # Of torch, whose memory begins at whole cache lines: where numpy's begins differs from process to process, and
        # with it the order in which a network's kernels sum.
        self._all.append(torch.empty(shape).numpy())
        return self._all[-1]
