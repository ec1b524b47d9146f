"""The DALI graph, one for CPU and GPU: read bytes in our order, decode, crop, augment with drawn numbers, normalise."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bloodcell.data.canvas import Canvas
from bloodcell.data.decoding import pixels_of
from bloodcell.data.draws import Draws
from bloodcell.data.operations import Arguments, Crop, Flip, centre_window
from bloodcell.data.policies import Policy, draw
from bloodcell.data.readahead import ReadAhead
from bloodcell.data.reading import Reading
from bloodcell.data.render import branches, render
from bloodcell.data.request import Request
from bloodcell.data.resident import KEPT, HostCache
from bloodcell.data.shardset import ShardSet

PREFETCH = 2
"""Batches that DALI works on ahead of the one that is taken."""


@dataclass(frozen=True)
class View:
    """How images are turned into network input.

    Attributes:
        size: height and width of the output, pixels.
        mean: per channel, 0..1.
        std: per channel, 0..1.
        policy: augmentation; "none" for evaluation.
        seed: of the draws.
        channels_last: memory layout of the output.
        views: images of each sample in a batch: all samples once, then all again. The first of several is shown
            without what the policy chooses for each image (policies.draw).
        backend: who does it: "dali", or "cpu", a pool of threads.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    policy: Policy
    seed: int
    channels_last: bool = True
    views: int = 1
    backend: str = "dali"


class Source:
    """DALI's callbacks: take the next request with its images and draw its arguments. Keep what is under way.

    An error is kept in `error`, because DALI passes only its text on.
    """

    def __init__(self, shards: ShardSet, requests: Iterator[Request], view: View, reading: Reading) -> None:
        self.shards, self.view = shards, view
        self.ahead = ReadAhead(shards, requests, reading)
        self.cache = reading.cache
        self.waiting: deque[Request] = deque()
        self.error: BaseException | None = None
        self._half_taken: deque[tuple[str, list[Any]]] = deque()

    def images(self) -> list[Any]:
        """Return the images of the next request: bytes, or pixels (on the host or the GPU) where they are kept."""
        return self._part("images")

    def arguments(self) -> list[Any]:
        """Return [ids, drawn arguments ...] of the next request; StopIteration after the last, as `images`."""
        return self._part("arguments")

    def _part(self, wanted: str) -> list[Any]:
        """Return one of the two parts of a request: DALI asks for both, in an order of its own."""
        if self._half_taken and self._half_taken[0][0] == wanted:
            return self._half_taken.popleft()[1]
        try:
            request, found = self.ahead.take()
            drawn = self.drawn(request)
            images = [self._pixels(*one) for one in zip(request.ids.tolist(), found, strict=True)]
        except StopIteration:
            raise
        except BaseException as error:
            self.error = error
            raise
        self.waiting.append(request)
        views = self.view.views
        parts = {"images": images * views, "arguments": [np.tile(request.ids, views), *drawn]}
        other = next(name for name in parts if name != wanted)
        self._half_taken.append((other, parts[other]))
        return parts[wanted]

    def _pixels(self, sample: int, found: np.ndarray) -> Any:
        """Return what the graph is fed with for a sample; without a cache these are its bytes."""
        if self.cache is None:
            return found
        if isinstance(self.cache, HostCache):
            if found.ndim == 1:
                found = pixels_of(self.shards, sample, found)
                self.cache.put(sample, found)
            return found
        if found is KEPT:
            return self.cache.get(sample)
        return torch.from_numpy(pixels_of(self.shards, sample, found)).to(self.cache.device)

    def drawn(self, request: Request) -> list[np.ndarray]:
        """Return the window and the operations' arguments of a request, in the order of argument_names()."""
        rows = self.shards.index[request.ids]
        height, width = rows["height"].astype(np.int64), rows["width"].astype(np.int64)
        draws = Draws(self.view.seed, request.epoch, request.ids, request.occurrences)
        views = self.view.views
        named = _named(self.view.policy, draw(self.view.policy, draws, height, width, views))
        window = named.pop("window", None)
        if window is None:
            window = np.tile(centre_window(height, width), (views, 1)).astype(np.float32)
        start, end = window[:, :2].copy(), window[:, 2:].copy()
        flip = folded_flip(self.view.policy)
        if flip is not None:
            mirror = np.stack([named.pop(f"{flip}.vertical"), named.pop(f"{flip}.horizontal")], axis=1).astype(bool)
            start[mirror], end[mirror] = end[mirror], start[mirror]
        return [start, end, *named.values()]


def _named(policy: Policy, drawn: list[Arguments]) -> dict[str, np.ndarray]:
    """Give every argument of every operation its own name; a crop's window keeps its plain one."""
    named = {}
    for place, (operation, arguments) in enumerate(zip(policy.operations, drawn, strict=True)):
        for name, value in arguments.items():
            named["window" if isinstance(operation, Crop) else f"{place}.{name}"] = value
    return named


def folded_flip(policy: Policy) -> int | None:
    """Return the place of a flip that the resize does for nothing: one right behind the crop, or before anything else.

    The resize mirrors a window whose end lies before its start.
    """
    for place, operation in enumerate(policy.operations):
        if not isinstance(operation, Crop):
            return place if isinstance(operation, Flip) else None
    return None


def argument_names(policy: Policy) -> list[str]:
    """Return the names of the arguments that follow the window, in the order in which Source.drawn returns them."""
    one, flip = np.ones(1, dtype=np.int64), folded_flip(policy)
    drawn = draw(policy, Draws(0, 0, one, one), one, one)
    return [name for name in _named(policy, drawn) if name != "window" and name.split(".")[0] != str(flip)]


def build(source: Source, batch: int, threads: int, device_id: int | None) -> Any:
    """Build the pipeline around a source; its outputs are (images, ids).

    images: float32, [n, size, size, 3] (channels last) or [n, 3, size, size], normalised, on the GPU `device_id` or on
    the CPU where that is None; n is `batch` times the view's views. ids: int64 [n], on the CPU.
    """
    from nvidia.dali import fn, pipeline_def

    view = source.view
    names, flip = argument_names(view.policy), folded_flip(view.policy)
    device = "cpu" if device_id is None else "gpu"

    canvas = Canvas(view.size, device)
    conditions = any(branches(operation) for operation in view.policy.operations)

    @pipeline_def(
        batch_size=batch * view.views,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=PREFETCH,
        seed=0,
        enable_conditionals=conditions,  # without them a graph is built faster
    )
    def graph() -> tuple[Any, Any]:
        fed = fn.external_source(source=source.arguments, num_outputs=3 + len(names), batch=True)
        ids, start, end = fed[:3]
        arguments = {name: fed[3 + place] for place, name in enumerate(names)}
        images = _images(source, device)
        images = resized(images, view, start, end)
        for place, operation in enumerate(view.policy.operations):
            if place != flip:
                own = {name.split(".", 1)[1]: v for name, v in arguments.items() if name.startswith(f"{place}.")}
                images = render(images, operation, own, canvas)
        images = normalised(images, view, device)
        return images, ids

    return built(graph)


def resized(images: Any, view: View, start: Any, end: Any) -> Any:
    """Return the node that scales a window of each image, in shares of its height and width, to the view's size."""
    from nvidia.dali import fn

    size = [view.size, view.size]
    return fn.resize(images, size=size, roi_start=start, roi_end=end, roi_relative=True, antialias=True)


def normalised(images: Any, view: View, device: str) -> Any:
    """Return the node that makes float32 input of uint8 images on `device` ("cpu" or "gpu")."""
    from nvidia.dali import fn, types

    return fn.crop_mirror_normalize(
        images,
        device=device,
        dtype=types.FLOAT,
        output_layout="HWC" if view.channels_last else "CHW",
        mean=[255 * m for m in view.mean],
        std=[255 * s for s in view.std],
    )


def built(graph: Callable[[], Any]) -> Any:
    """Return the pipeline that a graph defines, ready to run."""
    with warnings.catch_warnings(record=True):  # DALI resets the filters before it warns of its own suite
        pipeline = graph()
        pipeline.build()
    return pipeline


def _images(source: Source, device: str) -> Any:
    """Return the node of decoded images on the device, from bytes or from where they are kept."""
    from nvidia.dali import fn, types

    if source.cache is None:
        encoded = fn.external_source(source=source.images, batch=True)
        return fn.decoders.image(encoded, device="cpu" if device == "cpu" else "mixed", output_type=types.RGB)
    if isinstance(source.cache, HostCache):
        images = fn.external_source(source=source.images, batch=True, layout="HWC")
        return images.gpu() if device == "gpu" else images
    # The pixels of the cache do not change any more, so the graph may read them where they lie.
    return fn.external_source(source=source.images, batch=True, layout="HWC", device="gpu", no_copy=True)
