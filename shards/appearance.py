"""How an image looks, as one fixed-width record: light, colour, border, corners, coarse layout, texture.

Everything but the fine features (`shards.features`) is measured on a grid of 64 × 64 sampled pixels, so the cost does
not grow with the size of the image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.features import FEATURES_DTYPE, compute

HUES, LEVELS = 12, 6
"""Bins of hue, and of saturation and of value, in a colour histogram."""

CORNERS = ("upper left", "upper right", "lower left", "lower right")

LOOK_DTYPE = np.dtype(
    [
        ("features", FEATURES_DTYPE),
        ("brightness", "<f4"),  # mean grey, 0..255
        ("saturation", "<f4"),  # mean saturation (HSV), 0..1
        ("clipped", "<f4"),  # share of pixels whose three channels are all at 254 or above
        ("border", "<f4", (6,)),  # mean and standard deviation of red, green, blue along the four edges
        ("corners", "u1", (4, 4, 8, 3)),  # CORNERS, each 15 % of the height and 25 % of the width, squeezed to 4 × 8
        ("histogram", "<f4", (HUES + 2 * LEVELS,)),  # hue weighted by chroma, saturation, value; each sums to 1 at most
        ("layout", "u1", (8, 8, 3)),  # mean colour of 8 × 8 fields
        ("stain", "<f4", (6,)),  # mean red, green, blue of the darkest and of the lightest eighth: nuclei, background
        ("texture", "<f4", (6,)),  # log of mean grey differences at 1, 2, 4, 8, 16 samples, and of the contrast
    ]
)

_GRID = 64
_CORNER = (0.15, 0.25)


def look(rgb: NDArray[np.uint8]) -> NDArray[np.void]:
    """Return the LOOK_DTYPE record of one image, uint8 [height, width, 3]."""
    record = np.zeros((), LOOK_DTYPE)
    record["features"] = compute(rgb)
    sample = _sampled(rgb, _GRID, _GRID)
    colours = sample.astype(np.float32) / np.float32(255)
    value, chroma = colours.max(axis=2), np.ptp(colours, axis=2)
    saturation = chroma / np.maximum(value, 1e-6)
    grey = sample.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    record["brightness"], record["saturation"] = grey.mean(), saturation.mean()
    record["clipped"] = (sample.min(axis=2) >= 254).mean()
    edges = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]]).astype(np.float32)
    record["border"] = np.concatenate([edges.mean(axis=0), edges.std(axis=0)])
    record["corners"] = _corners(rgb)
    record["histogram"] = _histogram(colours, value, chroma, saturation)
    record["layout"] = _squeezed(sample, 8, 8)
    record["stain"] = _stain(sample, grey)
    record["texture"] = _texture(grey)
    return record


def _sampled(rgb: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """Return evenly spaced pixels [rows, columns, 3]; those of a small image are repeated."""
    height, width = rgb.shape[:2]
    down = (np.arange(rows) * 2 + 1) * height // (2 * rows)
    across = (np.arange(columns) * 2 + 1) * width // (2 * columns)
    return np.ascontiguousarray(rgb[down][:, across])


def _squeezed(sample: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.float32]:
    """Return mean colours [rows, columns, 3] of a sample whose sides they divide."""
    height, width = sample.shape[0] // rows, sample.shape[1] // columns
    blocks = sample.reshape(rows, height, columns, width, 3)
    return np.rint(blocks.mean(axis=(1, 3), dtype=np.float32))


def _corners(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    tall = max(1, round(_CORNER[0] * rgb.shape[0]))
    wide = max(1, round(_CORNER[1] * rgb.shape[1]))
    cuts = [
        rgb[down, across] for down in (slice(tall), slice(-tall, None)) for across in (slice(wide), slice(-wide, None))
    ]
    return np.stack([_squeezed(_sampled(cut, 16, 32), 4, 8) for cut in cuts])


def _histogram(
    colours: NDArray[np.float32],
    value: NDArray[np.float32],
    chroma: NDArray[np.float32],
    saturation: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return shares of hue (weighted by chroma), of saturation and of value over colours 0..1 [rows, columns, 3]."""
    red, green, blue = np.moveaxis(colours, 2, 0)
    width = np.maximum(chroma, 1e-6)
    sector = np.select(
        [value == red, value == green],
        [(green - blue) / width % 6, (blue - red) / width + 2],
        (red - green) / width + 4,
    )
    places = (sector.ravel() / 6 * HUES).astype(np.int64) % HUES
    parts = [np.bincount(places, chroma.ravel(), HUES)]
    for channel in (saturation, value):
        parts.append(np.bincount(np.minimum((channel.ravel() * LEVELS).astype(np.int64), LEVELS - 1), minlength=LEVELS))
    return (np.concatenate(parts) / value.size).astype(np.float32)


def _stain(sample: NDArray[np.uint8], grey: NDArray[np.float32]) -> NDArray[np.float32]:
    order, eighth = np.argsort(grey.ravel(), kind="stable"), grey.size // 8
    colours = sample.reshape(-1, 3).astype(np.float32)
    return np.concatenate([colours[part].mean(axis=0) for part in (order[:eighth], order[-eighth:])])


def _texture(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    steps = [
        np.abs(grey[lag:] - grey[:-lag]).mean() + np.abs(grey[:, lag:] - grey[:, :-lag]).mean()
        for lag in (1, 2, 4, 8, 16)
    ]
    return np.log1p(np.array([*steps, grey.std()], np.float32))
