"""Aligned pixel correlation of two thumbnails: are these the same picture, slightly cropped, shifted or encoded again?

The second thumbnail is shifted and stretched along each axis until it fits the first best (Lucas and Kanade, "An
iterative image registration technique with an application to stereo vision", IJCAI 1981, with gain and offset of the
grey values), first at half the size and blurred; only a pair that looks alike after that is fitted at full size. What
is compared is the fine structure: normalised correlation after the local mean has been taken off and strong edges
have been compressed. Two cells in the middle of their fields agree in the large, so plain correlation cannot tell
them apart.

Every sum here is of numbers with few enough binary digits to be exact in float64, and nothing else depends on the
order of operations, so the result is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from shards.features import ORIENTATIONS, orient
from shards.parallel import Processes
from shards.spooled import Records

_PER_TASK = 1024  # pairs that a process is given at a time
_FEW = 4 * _PER_TASK  # pairs that are aligned sooner than processes are there
_CHUNK = 128  # pairs aligned at a time: their pictures stay in the processor's cache
_COARSE_STEPS = 2
_FULL_STEPS = 2
_PROMISING = 0.5  # correlation after the coarse fit that earns a pair the full one
_MAX_SHIFT = 0.1  # of the side
_MAX_STRETCH = 0.15
_FINE = 2  # radius, in pixels, of the local mean that is taken off
_BUSY = (
    1 / 8
)  # of the pixels must have more than the mean structure; in real fields 1 / 5 have, in a dot on black 1 / 12
_RIM = 3  # pixels at the edge that are not compared: they may come from outside of the other picture


def compare(
    first: Records,
    a: NDArray[np.int64],
    second: Records,
    b: NDArray[np.int64],
    turns: NDArray[np.int64],
    processes: Processes | None = None,
) -> NDArray[np.float64]:
    """Return the aligned correlation [pairs] of first[a] with second[b] in the orientations `turns`.

    Args:
        first, second: thumbnails uint8 [n, t, t].
        a, b, turns: int64 [pairs]; the orientations are those of `shards.features.orient`.
        processes: which align where the pairs are many; None: this one. The result does not depend on them.
    """

    def pictures() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        for start in range(0, len(a), _PER_TASK):
            part = slice(start, start + _PER_TASK)
            moving = second[b[part]]
            for orientation in range(1, ORIENTATIONS):
                chosen = turns[part] == orientation
                moving[chosen] = orient(moving[chosen], orientation)
            yield first[a[part]], moving

    # Threads would wait for each other: between two short operations each needs the interpreter.
    aligned = processes.map if processes and len(a) > _FEW else map
    return np.concatenate([np.zeros(0), *aligned(_aligned, pictures())])


def _aligned(pictures: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> NDArray[np.float64]:
    return aligned_correlation(*pictures)


def aligned_correlation(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the correlation of fine structure, -1..1, of pairs of thumbnails, the second fitted to the first.

    Args:
        first, second: uint8 [pairs, t, t] with even t >= 16; already in the same orientation.

    Returns:
        float64 [pairs]; 0 where a thumbnail has no fine structure at all.
    """
    result = np.zeros(len(first))
    for start in range(0, len(first), _CHUNK):
        part = slice(start, start + _CHUNK)
        target, moving = first[part].astype(np.float64), second[part].astype(np.float64)
        motion = _coarse_motion(target, moving)
        values = _fine_correlation(target, _warp(moving, motion))
        chosen = np.flatnonzero(values >= _PROMISING)
        if len(chosen):
            better = _full_fit(target[chosen], moving[chosen], motion[chosen])
            values[chosen] = np.maximum(values[chosen], better)
        result[part] = values
    return result


def _coarse_motion(target: NDArray[np.float64], moving: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (shift across, stretch across, shift down, stretch down) [n, 4], in pixels, found at half the size."""
    small_target, small_moving = _blur(_halve(target)), _halve(moving)
    motion = np.zeros((len(target), 4))
    for _ in range(_COARSE_STEPS):
        motion = _limit(motion + _step(small_target, _blur(_warp(small_moving, motion))), small_moving.shape[-1])
    return motion * np.array([2.0, 1.0, 2.0, 1.0])


def _full_fit(
    target: NDArray[np.float64], moving: NDArray[np.float64], motion: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the fine correlation [n] after the motion is made better at full size."""
    warped = _warp(moving, motion)
    for _ in range(_FULL_STEPS):
        motion = _limit(motion + _step(target, warped), target.shape[-1])
        warped = _warp(moving, motion)
    return _fine_correlation(target, warped)


def _limit(motion: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    most = np.array([_MAX_SHIFT * side, _MAX_STRETCH, _MAX_SHIFT * side, _MAX_STRETCH])
    return np.clip(motion, -most, most)


def _step(target: NDArray[np.float64], warped: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the change of motion [n, 4] that brings `warped` closest to `target`, to first order."""
    count, side = len(target), target.shape[-1]
    place = np.arange(side - 2) - (side - 3) / 2
    inner = warped[:, 1:-1, 1:-1]
    across = (warped[:, 1:-1, 2:] - warped[:, 1:-1, :-2]) / 2
    down = (warped[:, 2:, 1:-1] - warped[:, :-2, 1:-1]) / 2
    slopes = [across, across * place, down, down * place[:, None], inner, np.ones_like(inner)]
    design = np.stack(slopes, axis=1).reshape(count, len(slopes), -1)
    difference = (target[:, 1:-1, 1:-1] - inner).reshape(count, -1, 1)
    normal = design @ design.transpose(0, 2, 1)
    change = _solve(normal, (design @ difference)[:, :, 0])
    gain = np.maximum(1 + change[:, 4:5], 0.25)  # the slopes of `warped` are those of the target only up to the gain
    return np.asarray(change[:, :4] / gain)


def _solve(matrix: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return x with matrix[i] @ x[i] = right[i] for symmetric matrices [n, k, k], by elimination in a fixed order."""
    size = matrix.shape[1]
    rows = np.concatenate([matrix, right[:, :, None]], axis=2)
    rows[:, range(size), range(size)] += 1.0  # keeps a flat picture solvable; far below the sums of a real one
    for pivot in range(size):
        rows[:, pivot] /= rows[:, pivot, pivot, None].copy()
        for other in range(size):
            if other != pivot:
                rows[:, other] -= rows[:, other, pivot, None] * rows[:, pivot]
    return rows[:, :, size]


def _warp(pictures: NDArray[np.float64], motion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the pictures moved by `motion` [n, 4]; places are rounded to 64ths of a pixel, linear between pixels."""
    side = pictures.shape[-1]
    grid, middle = np.arange(side), (side - 1) / 2
    weights = []
    for shift, stretch in ((motion[:, 2], motion[:, 3]), (motion[:, 0], motion[:, 1])):
        place = shift[:, None] + (1 + stretch[:, None]) * (grid - middle) + middle
        place = np.clip(np.rint(64 * place) / 64, 0, side - 1)
        weights.append(np.maximum(1 - np.abs(place[:, :, None] - grid), 0))
    return np.rint(16 * (weights[0] @ pictures @ weights[1].transpose(0, 2, 1))) / 16


def _halve(pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return averages of 2 x 2 pixels."""
    rows = pictures[:, ::2] + pictures[:, 1::2]
    return np.asarray((rows[:, :, ::2] + rows[:, :, 1::2]) / 4)


def _blur(pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the pictures smoothed by (1, 2, 1) / 4 along both axes, one pixel smaller at each edge."""
    rows = (pictures[:, :-2] + 2 * pictures[:, 1:-1] + pictures[:, 2:]) / 4
    return np.asarray((rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4)


def _fine_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the normalised correlation [n] of the fine structure of pairs of pictures; 0 if one has hardly any."""
    (a, busy_a), (b, busy_b) = _detail(first), _detail(second)
    count = a.shape[1]
    mean_a, mean_b = a.sum(axis=1), b.sum(axis=1)
    shared = count * (a * b).sum(axis=1) - mean_a * mean_b
    energy = (count * (a * a).sum(axis=1) - mean_a**2) * (count * (b * b).sum(axis=1) - mean_b**2)
    return np.where(busy_a & busy_b, shared / np.sqrt(np.maximum(energy, 1)), 0)


def _detail(pictures: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return pictures [n, pixels] minus their local mean, compressed to -1023..1023, and whether each has enough left.

    The compression keeps a few strong edges (a scale bar, the black corner of a turned picture) from deciding alone.
    """
    side, width = pictures.shape[-1], 2 * _FINE + 1
    kept = side - 2 * _FINE
    rows = sum(pictures[:, i : i + kept] for i in range(1, width)) + pictures[:, :kept]
    local = sum(rows[:, :, i : i + kept] for i in range(1, width)) + rows[:, :, :kept]
    fine = width * width * pictures[:, _FINE : side - _FINE, _FINE : side - _FINE] - local
    cut = slice(_RIM - _FINE, side - _RIM - _FINE)
    fine = np.asarray(fine[:, cut, cut]).reshape(len(pictures), -1)
    size = np.abs(fine)
    typical = size.sum(axis=1, keepdims=True) / size.shape[1]
    busy = (size > typical).sum(axis=1) >= _BUSY * size.shape[1]
    return np.rint(1024 * fine / (size + typical + 1)), busy
