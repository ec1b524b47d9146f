"""How DALI does each operation of a policy with the numbers that were drawn for it: uint8 images in and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bloodcell.data.canvas import Canvas
from bloodcell.data.choosing import AugMix, Hybrid, RandAugment, Trivial
from bloodcell.data.operations import (
    Affine,
    Blur,
    Brightness,
    Colour,
    Crop,
    Erase,
    Flip,
    Operation,
    Rotate,
    Sharpness,
    Stain,
)
from bloodcell.data.render_choosing import render_augmix, render_hybrid, render_randaugment, render_trivial


def render(images: Any, operation: Operation, arguments: dict[str, Any], canvas: Canvas) -> Any:
    """Return the nodes of the graph that do an operation.

    Args:
        images: node of uint8 images [size, size, 3].
        operation: with its static values.
        arguments: nodes of what its draw() returns, one sample each, on the CPU.
        canvas: what the images are.
    """
    return _RENDER[type(operation)](images, operation, arguments, canvas)


def branches(operation: Operation) -> bool:
    """Whether an operation is done for some images only: its graph needs DALI's conditionals."""
    return isinstance(operation, (RandAugment, Trivial, AugMix, Hybrid, Blur, Stain))


def _crop(images: Any, operation: Crop, arguments: dict[str, Any], canvas: Canvas) -> Any:
    return images  # its window is the region that the resize reads


def _flip(images: Any, operation: Flip, arguments: dict[str, Any], canvas: Canvas) -> Any:
    from nvidia.dali import fn

    return fn.flip(images, **arguments)


def _rotate(images: Any, operation: Rotate, arguments: dict[str, Any], canvas: Canvas) -> Any:
    from nvidia.dali import fn

    return fn.rotate(images, **arguments, keep_size=True, fill_value=float(operation.fill))


def _affine(images: Any, operation: Affine, arguments: dict[str, Any], canvas: Canvas) -> Any:
    from nvidia.dali import fn, types

    pixels = types.Constant(np.array([[1, 1, canvas.size]] * 2, dtype=np.float32))
    return fn.warp_affine(images, matrix=arguments["matrix"] * pixels, fill_value=float(operation.fill))


def _brightness(images: Any, operation: Brightness, arguments: dict[str, Any], canvas: Canvas) -> Any:
    from nvidia.dali import fn

    return fn.brightness_contrast(images, **arguments, contrast_center=127.5)


def _colour(images: Any, operation: Colour, arguments: dict[str, Any], canvas: Canvas) -> Any:
    from nvidia.dali import fn

    return fn.hsv(images, **arguments)


def _stain(images: Any, operation: Stain, arguments: dict[str, Any], canvas: Canvas) -> Any:
    from nvidia.dali import fn, math, types

    if arguments["apply"]:
        logs = math.log(fn.cast(images, dtype=types.FLOAT) + 1.0)
        logs = fn.coord_transform(logs, M=arguments["matrix"], T=arguments["offset"])
        images = fn.cast(math.exp(logs) - 1.0, dtype=types.UINT8)
    return images


def _sharpness(images: Any, operation: Sharpness, arguments: dict[str, Any], canvas: Canvas) -> Any:
    from nvidia.dali import fn

    return fn.filter(images, canvas.beside(arguments["kernel"]))


def _blur(images: Any, operation: Blur, arguments: dict[str, Any], canvas: Canvas) -> Any:
    from nvidia.dali import fn

    if arguments["apply"]:
        images = fn.gaussian_blur(images, sigma=arguments["sigma"])
    return images


def _erase(images: Any, operation: Erase, arguments: dict[str, Any], canvas: Canvas) -> Any:
    from nvidia.dali import fn

    fill = [float(operation.fill)] * 3
    return fn.erase(images, **arguments, axis_names="HW", normalized=True, fill_value=fill)


_RENDER: dict[type, Callable[[Any, Any, dict[str, Any], Canvas], Any]] = {
    Crop: _crop,
    Flip: _flip,
    Rotate: _rotate,
    Affine: _affine,
    Brightness: _brightness,
    Colour: _colour,
    Stain: _stain,
    Sharpness: _sharpness,
    Blur: _blur,
    Erase: _erase,
    RandAugment: render_randaugment,
    Trivial: render_trivial,
    AugMix: render_augmix,
    Hybrid: render_hybrid,
}
