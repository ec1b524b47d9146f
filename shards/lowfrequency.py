"""Which pictures are alike at all: the lowest cosine frequencies of thumbnails, in units of their spread over the set.

Fields of cells share most of what they show: something dark in the middle, pale ground. Dividing each frequency by
its spread over the set gives the rest its weight. A picture that is turned or flipped has the same numbers in another
order and with other signs, so one product of matrices for each of the eight orientations compares all with all.

Descriptors are whole numbers of limited length: products of them are exact in float32, on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from shards.features import ORIENTATIONS
from shards.spooled import Records

SIDE = 8  # frequencies along each axis, in half cycles
_LENGTH = 1024  # of a descriptor
_ROWS = 4096  # pictures worked on at a time
_PART = 256  # of which so many are whole numbers of 8 bytes at a time; divides _ROWS
_BLOCK = 256  # descriptors compared with all others at a time


def describe(thumbnails: Records) -> NDArray[np.float32]:
    """Return descriptors [n, SIDE * SIDE] of a set of thumbnails uint8 [n, t, t]; see `described`."""
    return np.concatenate([np.empty((0, SIDE * SIDE), np.float32), *described(thumbnails)])


def described(
    thumbnails: Records, others: NDArray[np.uint8] | None = None, dtype: type = np.float32
) -> Iterator[NDArray]:
    """Yield descriptors [_ROWS, SIDE * SIDE] of a set of thumbnails uint8 [n, t, t], and behind them of `others`.

    Each frequency is divided by its spread over the set, in all eight orientations, after its mean is taken off:
    frequencies that are odd along an axis have mean 0, and (u, v) shares its numbers with (v, u). A flat picture has
    a descriptor of zeros. The whole numbers fit an int16 `dtype` too, which takes half the memory. Frequencies are
    computed again for each pass, in place of being kept.
    """
    mean, spread = _of_the_set(thumbnails)
    known = spread > 64 * 64  # a flat set says nothing
    scale = np.where(known, 1 / np.where(known, spread, 1), 0)
    more = thumbnails[:0] if others is None else others
    for values in chain(frequencies(thumbnails), frequencies(more)):
        white = ((values - mean) * scale).reshape(-1, SIDE * SIDE)
        length = np.sqrt((white**2).sum(axis=1, keepdims=True))
        yield np.rint(_LENGTH * white / np.maximum(length, 1e-6)).astype(dtype)


def frequencies(thumbnails: Records) -> Iterator[NDArray[np.float64]]:
    """Yield the lowest cosine frequencies [_ROWS, SIDE, SIDE] of thumbnails uint8 [n, t, t], as whole numbers."""
    side = thumbnails.shape[-1]
    angle = np.pi / (2 * side) * (2 * np.arange(side) + 1) * np.arange(SIDE)[:, None]
    waves = np.rint(64 * np.cos(angle))
    for start in range(0, len(thumbnails), _ROWS):
        parts = range(start, min(start + _ROWS, len(thumbnails)), _PART)
        yield np.concatenate([waves @ thumbnails[i : i + _PART].astype(np.float64) @ waves.T for i in parts])


def _of_the_set(thumbnails: Records) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and spread [SIDE, SIDE] of the frequencies of thumbnails [n, t, t] over all orientations."""
    nothing = np.zeros((SIDE, SIDE))
    if not len(thumbnails):
        return nothing, nothing
    even = np.arange(SIDE) % 2 == 0
    mean = sum((values.sum(axis=0) for values in frequencies(thumbnails)), nothing) / len(thumbnails)
    mean = np.where(np.outer(even, even), (mean + mean.T) / 2, 0)
    total = sum((((values - mean) ** 2).sum(axis=0) for values in frequencies(thumbnails)), nothing)
    square = total / len(thumbnails)
    spread = np.sqrt((square + square.T) / 2)
    spread[0, 0] = 0  # brightness says nothing about what is shown
    return mean, spread


def turned(descriptors: NDArray[np.float32], orientation: int) -> NDArray[np.float32]:
    """Return the descriptors of the same pictures in another orientation (`shards.features.orient`)."""
    grid = descriptors.reshape(-1, SIDE, SIDE)
    if orientation & 4:
        grid = grid.swapaxes(1, 2)
    sign = np.where(np.arange(SIDE) % 2, -1, 1).astype(np.float32)
    grid = grid * sign[:, None] if orientation & 2 else grid
    grid = grid * sign if orientation & 1 else grid
    return np.ascontiguousarray(grid.reshape(-1, SIDE * SIDE))


@dataclass
class Crowd:
    """Where more than `pairs` of a block of pictures are alike in one orientation, only the `each` most similar ones of
    each of the first pictures count, and those as similar; `met` says that this was so."""

    pairs: int
    each: int
    met: bool = False


def alike(
    first: NDArray[np.float32], second: NDArray[np.float32], least: float, crowd: Crowd | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], int, NDArray[np.float32]]]:
    """Compare all of `first` with all of `second` in all orientations; of a `crowd` the most similar count.

    Yields:
        (positions in first, positions in second, orientation, correlation -1..1) of those with a correlation of at
        least `least`; the first in that orientation looks like the second.
    """
    across = np.ascontiguousarray(second.T)
    products = np.empty((min(_BLOCK, len(first)), len(second)), np.float32)
    for start in range(0, len(first) if len(second) else 0, _BLOCK):
        for orientation in range(ORIENTATIONS):
            block = turned(first[start : start + _BLOCK], orientation)
            grid = np.matmul(block, across, out=products[: len(block)])
            values = grid.ravel()
            found = np.flatnonzero(values >= least * _LENGTH**2)
            if crowd and len(found) > crowd.pairs and crowd.each < len(second):
                crowd.met = True
                nearest = np.partition(grid, -crowd.each, axis=1)[:, -crowd.each, None]
                found = np.flatnonzero((grid >= np.maximum(nearest, least * _LENGTH**2)).ravel())
            one, other = found // len(second), found % len(second)
            yield one + start, other, orientation, (values[found] / _LENGTH**2).astype(np.float32)
