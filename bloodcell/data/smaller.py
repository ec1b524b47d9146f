"""Images scaled down to a stated shorter side, before anything else is done to them in training (`data.cache_side`)."""

from __future__ import annotations

import numpy as np
import torch

from bloodcell.data.kernels import scaled


def smaller(height: np.ndarray, width: np.ndarray, side: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """Return heights and widths, int64 [n], of images whose shorter side is at most `side`; 0 leaves them.

    The longer side follows in proportion, rounded to whole pixels.
    """
    shorter = np.minimum(height, width)
    due = (np.asarray(side) > 0) & (shorter > side)
    factor = np.where(due, side / np.maximum(shorter, 1), 1.0)
    tall, wide = (np.floor(values * factor + 0.5).astype(np.int64) for values in (height, width))
    return tall, wide


def shrunk(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return an image, uint8 [height, width, 3], in that size: by the CPU backend's kernel, with antialiasing."""
    height, width = pixels.shape[:2]
    tall, wide = smaller(np.asarray(height), np.asarray(width), side)
    if (tall, wide) == (height, width):
        return pixels
    done: np.ndarray = scaled(torch.from_numpy(pixels), int(tall), int(wide)).numpy()
    return done
