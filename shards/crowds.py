"""Crowds of foreign pictures: alike among themselves, and far from the bulk of the set and of their own class.

A picture's distance to its k-th neighbour says nothing about a crowd, whose pictures have each other. What tells a
crowd is the distance to the nearest quarter of the set and to the nearest quarter of its class: a rare class is far
from the set but not from itself, and a class of two stains is near the half of itself. What is far from both is
connected to what is alike (single linkage at the distance that neighbours usually have). A crowd may be foreign, or
another stain, another microscope, a rare appearance: a person has to look at it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.duplicates import connected

LEAST = 20
"""Images that a set or a class needs to have a bulk."""

QUARTER = 0.25
"""Share of the set, or of the class, that counts as its bulk if it lies together."""

APART = 1.8
"""Distance to that bulk, as a multiple of the median, from which an image is apart."""

FOREIGN = 2.8
"""The same, median over a crowd, from which the crowd is probably foreign."""

SMALLEST = 8
"""Images of a crowd, at least; and at least SHARE of the set."""

SHARE = 0.005
LINK = 2.0
"""Two images apart are alike up to this multiple of the usual distance to the k-th neighbour."""

_REFERENCE = 2_000  # images that stand for the set or a class: evenly spaced
_LINKED = 4_000  # images apart that are compared with each other; the others follow the nearest of them
_ROWS = 1_024


@dataclass(frozen=True)
class Crowds:
    """Which images lie in crowds.

    Attributes:
        member: number of each image's crowd, from 1 for the largest; 0 is none, int64 [images].
        apart: distance to the bulk of set and class (the smaller of the two multiples), float64 [images].
    """

    member: NDArray[np.int64]
    apart: NDArray[np.float64]

    @property
    def groups(self) -> list[NDArray[np.int64]]:
        """The positions of each crowd's images, crowd 1 first."""
        return [np.flatnonzero(self.member == number) for number in range(1, int(self.member.max(initial=0)) + 1)]


def find_crowds(points: NDArray[np.float64], labels: NDArray[np.str_], usual: float) -> Crowds:
    """Find the crowds among points [images, d] with the classes `labels` [images].

    `usual` is the distance to the k-th neighbour that most images do not exceed (see `shards.outliers`).
    """
    count = len(points)
    if count < LEAST:
        return Crowds(np.zeros(count, np.int64), np.zeros(count))
    apart = _bulk_distance(points)
    for label in np.unique(labels):
        own = labels == label
        if own.sum() >= LEAST:
            apart[own] = np.minimum(apart[own], _bulk_distance(points[own]))
    far = np.flatnonzero(apart >= APART)
    member = np.zeros(count, np.int64)
    member[far] = _linked(points[far], LINK * usual, max(SMALLEST, round(SHARE * count)))
    return Crowds(member, apart)


def spaced(count: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` evenly spaced positions of `count`."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def neighbour_distance(points: NDArray[np.float64], reference: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return each point's distance to its k-th nearest (0: the nearest) of the reference points [n, d]."""
    from sklearn.metrics.pairwise import euclidean_distances

    k = min(k, len(reference) - 1)
    rows = [points[start : start + _ROWS] for start in range(0, len(points), _ROWS)]
    found = [np.partition(euclidean_distances(part, reference), k, axis=1)[:, k] for part in rows]
    return np.concatenate([np.zeros(0), *found])


def _bulk_distance(points: NDArray[np.float64]) -> NDArray[np.float64]:
    reference = points[spaced(len(points), _REFERENCE)]
    distance = neighbour_distance(points, reference, int(QUARTER * len(reference)))
    return distance / max(float(np.median(distance)), 1e-9)


def _linked(points: NDArray[np.float64], reach: float, least: int) -> NDArray[np.int64]:
    """Return the number of each point's crowd, the largest is 1; 0 where fewer than `least` are alike."""
    from sklearn.neighbors import NearestNeighbors

    if len(points) < least:
        return np.zeros(len(points), np.int64)
    chosen = spaced(len(points), _LINKED)
    search = NearestNeighbors(radius=reach, algorithm="brute").fit(points[chosen])
    alike = search.radius_neighbors_graph(points[chosen]).tocoo()
    roots = connected(len(chosen), np.stack([alike.row, alike.col], axis=1).astype(np.int64))
    distance, nearest = search.kneighbors(points, 1)
    roots = np.where(distance[:, 0] <= reach, roots[nearest[:, 0]], -1)
    names, sizes = np.unique(roots[roots >= 0], return_counts=True)
    order = [int(names[place]) for place in np.lexsort((names, -sizes)) if sizes[place] >= least]
    numbers = {root: number for number, root in enumerate(order, 1)}
    return np.array([numbers.get(int(root), 0) for root in roots], np.int64)
