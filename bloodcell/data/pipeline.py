"""The DALI graph, one for CPU and GPU: decode, crop, augment with drawn numbers, normalise what source.py feeds it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bloodcell.data.canvas import Canvas
from bloodcell.data.decoder import decoded_images
from bloodcell.data.policies import Policy
from bloodcell.data.render import branches, render
from bloodcell.data.source import Source, folded_flip

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


def build(source: Source, batch: int, threads: int, device_id: int | None) -> Any:
    """Build the pipeline around a source; its outputs are (images, ids).

    images: float32, [n, size, size, 3] (channels last) or [n, 3, size, size], normalised, on the GPU `device_id` or on
    the CPU where that is None; n is `batch` times the view's views. ids: int64 [n], on the CPU.
    """
    from nvidia.dali import fn, pipeline_def

    view = source.view
    names, flip = source.names, folded_flip(view.policy)
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
        numbers = fn.external_source(source=source.arguments, num_outputs=len(names), batch=True)
        fed = {name: numbers[place] for place, name in enumerate(names)}
        images = resized(_images(source, device, fed), view, fed["start"], fed["end"])
        for place, operation in enumerate(view.policy.operations):
            if place != flip:
                own = {name.split(".", 1)[1]: v for name, v in fed.items() if name.startswith(f"{place}.")}
                images = render(images, operation, own, canvas)
        return normalised(images, view, device), fed["ids"]

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


def _images(source: Source, device: str, fed: dict[str, Any]) -> Any:
    """Return the node of decoded images on the device, from bytes or from where they are kept."""
    from nvidia.dali import fn

    if source.feeds == "bytes":
        encoded = fn.external_source(source=source.images, batch=True)
        told = source.decoder.told(device, source.shards.largest if source.decoder.hints else (0, 0))
        return decoded_images(encoded, told, fed.get("begin"), fed.get("behind"), fed.get("size"))
    if source.feeds == "pixels":
        images = fn.external_source(source=source.images, batch=True, layout="HWC")
        return images.gpu() if device == "gpu" else images
    # The pixels of the cache do not change any more, so the graph may read them where they lie.
    return fn.external_source(source=source.images, batch=True, layout="HWC", device="gpu", no_copy=True)
