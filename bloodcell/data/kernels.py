"""How the CPU backend does the operations of a policy, image by image, with the numbers that were drawn for it.

Images are uint8 [size, size, 3] in memory order, in and out. Every function is run by one thread: a thread pool works
on different images, so pixels do not depend on the number of threads. What follows DALI is said where it matters;
`tests/bloodcell/data/test_backends.py` holds each to DALI's own within the levels of TOLERANCE.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from bloodcell.data.operations import (
    Affine,
    Blur,
    Brightness,
    Colour,
    Crop,
    Erase,
    Flip,
    Rotate,
    Sharpness,
    Stain,
)

TOLERANCE: dict[type, tuple[float, int]] = {
    # operation: (mean, largest) difference to DALI's CPU operators in levels of 255, on the same pixels
    Crop: (0.5, 4),  # of the same window; the CPU backend takes whole pixels of the original, DALI parts of them
    Flip: (0.0, 0),
    Rotate: (0.5, 3),
    Affine: (0.5, 3),
    Brightness: (0.5, 1),
    Colour: (0.5, 2),
    Stain: (0.5, 1),
    Sharpness: (0.5, 1),
    Blur: (0.5, 1),
    Erase: (0.0, 0),
}
"""What each operation may differ by between the backends."""

Drawn = dict[str, Any]
"""The arguments of one image."""

WEIGHTS = (0.299, 0.587, 0.114)
"""Of red, green and blue in a grey value."""

_YIQ = np.array([WEIGHTS, [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])


def resized(pixels: torch.Tensor, window: np.ndarray, size: int) -> torch.Tensor:
    """Return a window, on whole pixels of the original, resized with antialiasing (torchvision's uint8 kernel).

    Args:
        pixels: uint8 [height, width, 3].
        window: top, left, bottom, right as shares.
        size: of the result.
    """
    height, width = pixels.shape[:2]
    top, bottom = _whole(float(window[0]), float(window[2]), height)
    left, right = _whole(float(window[1]), float(window[3]), width)
    return scaled(pixels[top:bottom, left:right], size, size)


def scaled(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return uint8 [..., ..., 3] as [height, width, 3], with antialiasing where it becomes smaller."""
    if pixels.shape[:2] == (height, width):
        return pixels.contiguous()
    planes = pixels.permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
    done = functional.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    return done[0].permute(1, 2, 0).contiguous()


def centred(pixels: torch.Tensor, window: np.ndarray, size: int) -> torch.Tensor:
    """Return a window resized as in `resized`; its edges may lie inside pixels (PIL then, which takes longer).

    This is how images are judged: nothing of the centre is rounded.
    """
    height, width = pixels.shape[:2]
    edges = window.astype(float) * [height, width, height, width]
    if np.abs(edges - edges.round()).max() < 1e-3:
        return resized(pixels, window, size)
    from PIL import Image

    top, left, bottom, right = edges.round(3).tolist()
    box = (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))
    picture = Image.fromarray(pixels.numpy()).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(picture))


def _whole(low: float, high: float, side: int) -> tuple[int, int]:
    begin = min(max(math.floor(low * side + 0.5), 0), side - 1)
    return begin, min(max(math.floor(high * side + 0.5), begin + 1), side)


def flip(image: torch.Tensor, operation: Flip, drawn: Drawn) -> torch.Tensor:
    """Mirror."""
    axes = [axis for axis, name in enumerate(("vertical", "horizontal")) if drawn[name]]
    return image.flip(axes) if axes else image


def rotate(image: torch.Tensor, operation: Rotate, drawn: Drawn) -> torch.Tensor:
    """Turn about the centre, counter-clockwise."""
    return turned(image, float(drawn["angle"]), operation.fill)


def turned(image: torch.Tensor, degrees: float, fill: int) -> torch.Tensor:
    """Return the image turned about its centre, counter-clockwise."""
    if degrees == 0:
        return image
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    back = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0]])
    back[:, 2] = 0.5 - back[:, :2].sum(axis=1) / 2
    return warped(image, back, fill)


def affine(image: torch.Tensor, operation: Affine, drawn: Drawn) -> torch.Tensor:
    """Move, scale and shear."""
    return warped(image, drawn["matrix"].astype(float), operation.fill)


def warped(image: torch.Tensor, back: np.ndarray, fill: int) -> torch.Tensor:
    """Return a linear interpolation of the image; beyond its border lies `fill`, which pixels at the border blend with.

    Args:
        image: uint8 [size, size, 3].
        back: float [2, 3], from (x, y) in the result to the original, sides having length 1.
        fill: 0..255.
    """
    if np.array_equal(back, np.eye(2, 3)):
        return image
    size = len(image)
    across, down = _places(size)
    (a, b, c), (d, e, f) = (2 * back).tolist()
    grid = torch.empty(1, size, size, 2)
    torch.add(across * a + (c - 1), down, alpha=b, out=grid[0, :, :, 0])
    torch.add(across * d + (f - 1), down, alpha=e, out=grid[0, :, :, 1])
    planes = image.permute(2, 0, 1)[None].float().sub_(fill)
    done = functional.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return levels(done[0].permute(1, 2, 0).add_(fill)).contiguous()


@functools.lru_cache(8)
def _places(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the middles of pixels, float32 [1, size] across and [size, 1] down, the side having length 1."""
    middles = (torch.arange(size) + 0.5) / size
    return middles[None], middles[:, None]


def brightness(image: torch.Tensor, operation: Brightness, drawn: Drawn) -> torch.Tensor:
    """Scale brightness, and contrast about mid-grey."""
    factor, contrast = float(drawn["brightness"]), float(drawn["contrast"])
    return linear(image, factor * contrast, factor * 127.5 * (1 - contrast))


def linear(image: torch.Tensor, factor: float, shift: float) -> torch.Tensor:
    """Return factor * level + shift, rounded."""
    if factor == 1 and shift == 0:
        return image
    return levels(image.float().mul_(factor).add_(shift))


def levels(values: torch.Tensor) -> torch.Tensor:
    """Return float values (which this writes to) as uint8, rounded and limited to 0..255."""
    return values.round_().clamp_(0, 255).to(torch.uint8)


def colour(image: torch.Tensor, operation: Colour, drawn: Drawn) -> torch.Tensor:
    """Turn and stretch the plane of colours of YIQ."""
    return recoloured(image, float(drawn["saturation"]), float(drawn["hue"]))


def recoloured(image: torch.Tensor, saturation: float, degrees: float = 0.0) -> torch.Tensor:
    """Return the image with saturation times a factor and its hue turned, both in YIQ as DALI does."""
    if saturation == 1 and degrees == 0:
        return image
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    change = np.eye(3)
    change[1:, 1:] = saturation * np.array([[cosine, sine], [-sine, cosine]])
    return _mixed(image.float(), (np.linalg.inv(_YIQ) @ change @ _YIQ).astype(np.float32), None)


def _mixed(values: torch.Tensor, matrix: np.ndarray, offset: np.ndarray | None) -> torch.Tensor:
    """Return matrix times the channels of float values [size, size, 3], rounded to uint8."""
    return levels(_channels(values, matrix, offset))


def _channels(values: torch.Tensor, matrix: np.ndarray, offset: np.ndarray | None) -> torch.Tensor:
    turned_matrix, flat = torch.from_numpy(np.ascontiguousarray(matrix.T)), values.view(-1, 3)
    done = flat @ turned_matrix if offset is None else torch.addmm(torch.from_numpy(offset), flat, turned_matrix)
    return done.view(values.shape)


def stain(image: torch.Tensor, operation: Stain, drawn: Drawn) -> torch.Tensor:
    """Change the amounts of stain: a matrix on the logarithms of 1 + level."""
    if not drawn["apply"]:
        return image
    logs = image.float().add_(1).log_()
    return levels(_channels(logs, drawn["matrix"], drawn["offset"]).exp_().sub_(1))


def sharpness(image: torch.Tensor, operation: Sharpness, drawn: Drawn) -> torch.Tensor:
    """Filter with the drawn kernel: one weight in the middle, another around it."""
    return ringed(image, float(drawn["kernel"][1, 1]), float(drawn["kernel"][0, 0]))


def ringed(image: torch.Tensor, middle: float, around: float) -> torch.Tensor:
    """Return middle * pixel + around * the sum of its eight neighbours; the border is mirrored."""
    if around == 0 and middle == 1:
        return image
    values = image.float()
    box = _correlated(values, [1.0, 1.0, 1.0])
    return levels(values.mul_(middle - around).add_(box, alpha=around))


def blur(image: torch.Tensor, operation: Blur, drawn: Drawn) -> torch.Tensor:
    """Blur by a Gaussian as wide as three of its sigmas, as DALI cuts it."""
    if not drawn["apply"]:
        return image
    sigma = float(drawn["sigma"])
    radius = math.ceil(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return levels(_correlated(image.float(), (weights / weights.sum()).tolist()))


def _correlated(values: torch.Tensor, weights: list[float]) -> torch.Tensor:
    """Return the correlation of float values [size, size, 3] with weights down and across; the border is mirrored."""
    size, radius = len(values), len(weights) // 2
    mirrored = torch.from_numpy(np.pad(np.arange(size), radius, mode="reflect"))
    rows = _weighted(values.view(size, -1)[mirrored], weights, 0, 1)
    columns = _weighted(rows.view(size, size, 3)[:, mirrored].view(size, -1), weights, 1, 3)
    return columns.view(size, size, 3)


def _weighted(lines: torch.Tensor, weights: list[float], axis: int, step: int) -> torch.Tensor:
    """Return the sum of the lines and those `step`, 2 * `step`, ... further along the axis, each with its weight."""
    count = lines.shape[axis] - step * (len(weights) - 1)
    total = lines.narrow(axis, 0, count) * weights[0]
    for place, weight in enumerate(weights[1:], 1):
        total.add_(lines.narrow(axis, place * step, count), alpha=weight)
    return total


def erase(image: torch.Tensor, operation: Erase, drawn: Drawn) -> torch.Tensor:
    """Paint the box over."""
    size = len(image)
    if drawn["shape"].min() <= 0:
        return image
    begin = (drawn["anchor"] * np.float32(size)).astype(int)
    end = ((drawn["anchor"] + drawn["shape"]) * np.float32(size)).astype(int)
    image = image.clone()
    image[begin[0] : end[0], begin[1] : end[1]] = operation.fill
    return image


KERNELS: dict[type, Callable[[torch.Tensor, Any, Drawn], torch.Tensor]] = {
    Flip: flip,
    Rotate: rotate,
    Affine: affine,
    Brightness: brightness,
    Colour: colour,
    Stain: stain,
    Sharpness: sharpness,
    Blur: blur,
    Erase: erase,
}
"""The operations after the crop, whose window is the part of the image that is resized."""
