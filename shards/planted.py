"""Features of any number of drawn cell fields with planted copies: turned, cropped and encoded again.

A field is a sum of soft discs: one cell in the middle, whose size and place vary little from field to field,
chromatin in its nucleus, and red cells with pale centres around it. It is a formula, so it can be drawn at any size
and crop.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.features import FEATURES_DTYPE, SIDE, compute, hashes, orient

_CHROMATIN = 8
_RED = 9
_TINT = np.array([0.6, 1.0, 0.25])  # how much red, green and blue the stain takes away


def planted_features(
    images: int, copies: int, seed: int = 0, crop: float = 0.03
) -> tuple[NDArray[np.void], NDArray[np.int64], NDArray[np.int64]]:
    """Return features [images], planted pairs int64 [copies, 2] (original, copy) and the copies' orientations [copies].

    Copies are the last `copies` images, their originals the first. Originals and copies are drawn large, cropped by
    up to `crop` a side, and go through JPEG; the images between them, which are there to be mistaken, are drawn as
    thumbnails.
    """
    rng = np.random.default_rng(seed)
    features = np.zeros(images, FEATURES_DTYPE)
    turns = rng.integers(0, 8, copies)
    for place in range(copies):
        field = _fields(rng, 1)
        features[place] = compute(_photo(_draw(field, 128, np.zeros((2, 2)))[0], 0, 90))
        edges = rng.uniform(0, crop, (2, 2))
        cropped = _draw(field, 128, edges)[0]
        features[images - copies + place] = compute(_photo(cropped, int(turns[place]), int(rng.integers(30, 80))))
    for start in range(copies, images - copies, 8192):
        part = features[start : min(start + 8192, images - copies)]
        drawn = 245 - _TINT @ [0.25, 0.5, 0.25] * (235 - _draw(_fields(rng, len(part)), SIDE, np.zeros((2, 2))))
        part["thumbnail"] = np.rint(drawn + rng.normal(0, 0.5, drawn.shape)).clip(0, 255)
        part["hash"], part["std"] = hashes(part["thumbnail"]), 20
    return features, np.stack([np.arange(copies), np.arange(images - copies, images)], axis=1), turns


def jittered_fields(images: int, side: int = SIDE, seed: int = 0) -> Iterator[NDArray[np.uint8]]:
    """Yield drawn fields in colour, uint8 [side, side, 3], no two alike: far faster than whole smears are drawn."""
    rng = np.random.default_rng(seed)
    for start in range(0, images, 512):
        grey = _draw(_fields(rng, min(512, images - start)), side, np.zeros((2, 2)))
        yield from _stained(grey)


def _stained(grey: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return grey pictures [..., side, side] in the colours of the stain, uint8 [..., side, side, 3]."""
    return np.asarray(np.rint(245 - _TINT * (235 - grey)[..., None]).clip(0, 255).astype(np.uint8))


def _fields(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Return discs [count, discs, 5]: x, y, radius across, radius down (all in sides of the field), darkness."""
    cell = np.concatenate([rng.normal(0.5, 0.02, (count, 1, 2)), rng.normal(0.24, 0.015, (count, 1, 2))], axis=2)
    cell = np.concatenate([cell, rng.uniform(0.5, 0.7, (count, 1, 1))], axis=2)
    nucleus = cell * [1, 1, 0.7, 0.7, 1.2] + np.append(
        rng.normal(0, 0.02, (count, 1, 2)), np.zeros((count, 1, 3)), axis=2
    )
    places = nucleus[:, :, :2] + rng.normal(0, 0.09, (count, _CHROMATIN, 2))
    grains = [places, rng.uniform(0.03, 0.07, (count, _CHROMATIN, 2)), rng.uniform(-0.5, 0.5, (count, _CHROMATIN, 1))]
    angle, away = rng.uniform(0, 2 * np.pi, (count, _RED, 1)), rng.uniform(0.34, 0.66, (count, _RED, 1))
    places = 0.5 + away * np.concatenate([np.cos(angle), np.sin(angle)], axis=2)
    red = [places, rng.normal(0.085, 0.008, (count, _RED, 2)), rng.uniform(0.25, 0.4, (count, _RED, 1))]
    pale = [places, red[1] * 0.5, red[2] * -0.7]
    discs = [cell, nucleus, *(np.concatenate(part, axis=2) for part in (grains, red, pale))]
    return np.concatenate(discs, axis=1).astype(np.float32)


def _draw(fields: NDArray[np.float32], side: int, edges: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return grey pictures [count, side, side]; `edges` are the shares cut off: [[left, right], [top, bottom]]."""
    profiles = []
    for axis in (0, 1):
        first, last = edges[axis, 0], 1 - edges[axis, 1]
        place = (first + (last - first) * (np.arange(side) + 0.5) / side).astype(np.float32)
        profiles.append(np.exp(-(((place - fields[:, :, axis, None]) / fields[:, :, 2 + axis, None]) ** 2)))
    dark = (profiles[1] * fields[:, :, 4, None]).transpose(0, 2, 1) @ profiles[0]
    return np.asarray(235 * np.exp(-np.maximum(dark, 0)), np.float32)


def _photo(grey: NDArray[np.float32], orientation: int, quality: int) -> NDArray[np.uint8]:
    """Return uint8 [side, side, 3] of a grey picture, turned, stained and sent through JPEG."""
    file = io.BytesIO()
    Image.fromarray(_stained(orient(grey, orientation))).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))
