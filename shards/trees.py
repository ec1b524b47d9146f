"""Cells of similar pictures: random projection trees over numbers that are the same whichever way up a picture is.

Dasgupta and Freund, "Random projection trees and low dimensional manifolds", STOC 2008.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.lowfrequency import SIDE
from shards.spooled import blocks

INVARIANTS = 24


def invariants(descriptors: NDArray) -> NDArray:
    """Return numbers of the lowest frequencies that are the same in all eight orientations, [n, INVARIANTS].

    Turning a picture swaps (u, v) with (v, u), and changes signs unless both are even.
    """
    even = np.arange(5) % 2 == 0
    lowest = descriptors.reshape(-1, SIDE, SIDE)[:, :5, :5]
    lowest = np.where(np.outer(even, even), lowest, np.abs(lowest))
    u, v = np.triu_indices(5, 1)
    more, less = np.maximum(lowest[:, u, v], lowest[:, v, u]), np.minimum(lowest[:, u, v], lowest[:, v, u])
    diagonal = lowest[:, range(1, 5), range(1, 5)]
    return np.concatenate([more, less, diagonal], axis=1)


def cells(points: NDArray, most: int, rng: np.random.RandomState) -> NDArray[np.int32]:
    """Return the cell of each point: halved at the median of random directions until none holds more than `most`."""
    cell = np.zeros(len(points), np.int32)
    todo = [np.arange(len(points))]
    count = 0
    while todo:
        members = todo.pop()
        if len(members) <= most:
            cell[members] = count
            count += 1
            continue
        direction = np.asarray(rng.normal(size=points.shape[1]), np.float32)
        along = np.concatenate([part @ direction for part in blocks(points, members)])
        order = np.argsort(along, kind="stable")
        todo += [members[order[: len(members) // 2]], members[order[len(members) // 2 :]]]
    return cell
