"""Of very many similar pairs the closest of each image: what is looked at where a crowd of pictures is alike.

Pairs are codes (a * images + b) * 8 + orientation. What is kept of some pairs holds what is kept of all of them, so a
search may leave out the others as it goes on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.features import ORIENTATIONS


def closest(
    codes: NDArray[np.int64], values: NDArray[np.float32], images: int, room: int, each: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return all pairs, or of more than `room` those among the most similar ones of either image.

    Args:
        codes, values: the pairs and how similar they are [pairs].
        images: how many there are.
        room: pairs that are all kept; of more than these as many of each image as it has room for,
        each: and at least so many.
    """
    if len(codes) <= room:
        return codes, values
    kept = _closest(*ends(codes, images), values, max(each, room // images))
    return codes[kept], values[kept]


def ends(codes: NDArray[np.int64], images: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a and b of codes (a * images + b) * 8 + orientation."""
    a, b = np.divmod(codes // ORIENTATIONS, max(images, 1))
    return a, b


def _closest(a: NDArray[np.int64], b: NDArray[np.int64], similar: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """Return the pairs among the `most` most similar ones of either image; of equal ones, the nearest rows."""
    image, other, pair = np.append(a, b), np.append(b, a), np.tile(np.arange(len(a)), 2)
    order = np.lexsort((np.abs(image - other), -similar[pair], image))
    starts = np.flatnonzero(np.diff(image[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return np.unique(pair[order[rank < most]])
