"""Uploaded files become pictures, within limits; what cannot be used gets its reason."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from bloodcell.app.limits import AT_ONCE, Limits
from bloodcell.predict.classifier import Picture, looked

SIDE = 320
"""Side of a picture on the page, pixels."""


def pictures_of(paths: Sequence[Path], limits: Limits) -> list[Picture]:
    """Return a picture for each file, in order, decoded by the checks and steps of `predict`.

    Args:
        paths: of the files.
        limits: what is beyond them is not decoded and says so.
    """
    room = AT_ONCE * limits.megapixels * 1e6
    read: list[bytes | Picture] = []
    for place, path in enumerate(paths):
        found = _read(path, place, limits)
        if isinstance(found, bytes):
            pixels = _announced(found)
            if pixels > limits.megapixels * 1e6:
                said = f"too large: more than {limits.megapixels:g} million pixels"
                found = Picture(None, hashlib.sha256(found).hexdigest(), said)
            elif pixels > room:
                found = Picture(None, "", "not looked at: the images before it are as much as is looked at at once")
            else:
                room -= pixels
        read.append(found)
    with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
        return list(pool.map(lambda one: looked(one) if isinstance(one, bytes) else one, read))


def _read(path: Path, place: int, limits: Limits) -> bytes | Picture:
    if place >= limits.images:
        return Picture(None, "", f"not looked at: more than {limits.images:,} images at once")
    try:
        size = path.stat().st_size
        if size > limits.megabytes * 1e6:
            return Picture(None, "", f"too large: {size / 1e6:,.1f} MB, limit {limits.megabytes:g} MB")
        return path.read_bytes()
    except OSError as error:
        return Picture(None, "", f"unreadable: {error.strerror}")


def _announced(data: bytes) -> int:
    """Return the pixels that the header of an image promises, 0 where no decoder knows it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                return image.width * image.height
    except Image.DecompressionBombError:
        return sys.maxsize
    except Exception:  # decoders raise many kinds of error; looked() says which
        return 0


def square(rgb: np.ndarray) -> np.ndarray:
    """Return the part of a picture that a network sees, its largest central square, uint8 [side, side, 3].

    Args:
        rgb: uint8 [height, width, 3]; a larger square than SIDE is scaled down to it.
    """
    height, width = rgb.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    part = Image.fromarray(np.ascontiguousarray(rgb[top : top + side, left : left + side]))
    part.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(part)


def enlarged(heat: np.ndarray, side: int) -> np.ndarray:
    """Return a map, float32 [h, w] in 0..1, at another size: [side, side]."""
    resized = Image.fromarray(heat.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(resized), 0, 1)
