"""Random textures for drawn images: tileable fields that are filtered once a process and then sampled anywhere."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

FIELD_PIXELS = 1024
"""Side of a tileable field."""

BLOB_PIXELS = 20.0
"""Typical diameter of a blob in a field, in its own pixels."""


def stream(seed: int, kind: int, number: int) -> np.random.Generator:
    """Return the counter-based generator of one thing: the same whoever asks, in whatever order (Philox).

    Args:
        seed: seed of the whole set, 0 to 2**63 - 1.
        kind: what the numbers are for, 0 to 255: streams of different kinds never meet.
        number: which image, patient or slide, 0 to 2**48 - 1.
    """
    key = np.array([seed, (kind << 48) | number], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


@lru_cache(maxsize=1)
def blobs() -> Floats:
    """Return a tileable field of blobs: float32, [1024, 1024], mean 0, variance 1 (band-pass filtered noise)."""
    white = stream(0, 255, 0).standard_normal((FIELD_PIXELS, FIELD_PIXELS))
    across = np.fft.rfftfreq(FIELD_PIXELS)
    down = np.fft.fftfreq(FIELD_PIXELS)
    frequency = np.hypot(down[:, None], across[None, :]) * 2 * BLOB_PIXELS
    band = frequency**2 * np.exp(-(frequency**2))
    field = np.fft.irfft2(np.fft.rfft2(white) * band, s=white.shape)
    return ((field - field.mean()) / field.std()).astype(np.float32)


def sample_blobs(rng: np.random.Generator, x: Floats, y: Floats, diameter: float) -> Floats:
    """Return the field of blobs at points (x, y), shifted and turned at random.

    Args:
        rng: draws the shift and the turn.
        x: float32, any shape, in any unit of length; y alike.
        diameter: typical diameter of a blob in that unit.

    Returns:
        float32 of the shape of x, mean 0, variance 1.
    """
    angle, left, top = rng.random(3)
    scale = BLOB_PIXELS / diameter
    cosine, sine = np.float32(np.cos(2 * np.pi * angle) * scale), np.float32(np.sin(2 * np.pi * angle) * scale)
    # 1024 fields further right and down, so that the cast to int never rounds towards zero from below.
    column = (x * cosine - y * sine + np.float32(left * FIELD_PIXELS + 1024 * FIELD_PIXELS)).astype(np.int32)
    row = (x * sine + y * cosine + np.float32(top * FIELD_PIXELS + 1024 * FIELD_PIXELS)).astype(np.int32)
    mask = FIELD_PIXELS - 1
    return blobs().ravel()[((row & mask) << (FIELD_PIXELS.bit_length() - 1)) | (column & mask)]


@lru_cache(maxsize=4)
def _grain(values: int) -> Floats:
    return stream(0, 255, 1).standard_normal(max(1 << 18, 2 * values), dtype=np.float32)


def sensor_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Return float32 normal noise (mean 0, variance 1) of `shape`: a random piece of numbers that were drawn once."""
    values = int(np.prod(shape))
    bank = _grain(values)
    start = int(rng.integers(bank.size - values))
    return bank[start : start + values].reshape(shape)
