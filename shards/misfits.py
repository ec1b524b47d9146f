"""Images that do not fit their class: unlike all others of it, or nearer to another class than others of it are.

The first is the distance to the k-th neighbour within the class, beside the class's own 75th percentile: a cell in
another stain among its class. The second is the ratio of the distances to the nearest images of the own class and of
any other, as a robust z-score within the class (the nearest-neighbour margin of Crammer et al., "Margin analysis of
the LVQ algorithm", NIPS 2002): perhaps a wrong label, where classes differ in appearance at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.crowds import LEAST, neighbour_distance, spaced

UNLIKE = 2.0
"""Distance within the class, as a multiple of the class's 75th percentile, from which an image does not fit."""

NEARER = 1.2
"""Ratio of the distance to the own class to that to another, from which an image fits the other better ..."""

Z = 3.5
"""... if the ratio is unusual in the class by this many robust standard deviations, too."""

NEIGHBOURS = (5, 40)
"""The k-th neighbour: 2 % of the class, within these bounds."""

_REFERENCE = 1_500  # images that stand for a class: evenly spaced
_LEAST_SPREAD = 0.05  # of the logarithm of the ratio: a class that is more even than this is not judged more finely


@dataclass(frozen=True)
class Misfits:
    """How well each image fits its class.

    Attributes:
        score: distance within the class, as a multiple of the class's 75th percentile, float64 [images].
        unlike: score >= UNLIKE, bool [images].
        nearer: whether another class fits better, bool [images].
        other: the nearest other class of each image; "" where there is none to compare with, str [images].
    """

    score: NDArray[np.float64]
    unlike: NDArray[np.bool_]
    nearer: NDArray[np.bool_]
    other: NDArray[np.str_]


def find_misfits(points: NDArray[np.float64], labels: NDArray[np.str_]) -> Misfits:
    """Judge points [images, d] of the classes `labels` [images]; classes of fewer than LEAST images take no part."""
    count = len(points)
    names, sizes = np.unique(labels, return_counts=True)
    judged = [str(name) for name, size in zip(names, sizes, strict=True) if size >= LEAST]
    own, other = np.full(count, np.nan), np.full(count, np.inf)
    nearest = np.full(count, "", dtype=labels.dtype if count else "<U1")
    for name in judged:
        mine = labels == name
        reference = points[mine][spaced(int(mine.sum()), _REFERENCE)]
        k = int(np.clip(0.02 * len(reference), *NEIGHBOURS))
        own[mine] = neighbour_distance(points[mine], reference, k)  # the nearest is the image itself
        away = neighbour_distance(points[~mine], reference, k - 1)
        closer = np.flatnonzero(~mine)[away < other[~mine]]
        other[~mine] = np.minimum(other[~mine], away)
        nearest[closer] = name
    score, nearer = np.zeros(count), np.zeros(count, bool)
    for name in judged:
        mine = labels == name
        score[mine] = own[mine] / max(float(np.quantile(own[mine], 0.75)), 1e-9)
        if len(judged) > 1:
            ratio = np.log(np.maximum(own[mine], 1e-9) / np.maximum(other[mine], 1e-9))
            middle = np.median(ratio)
            spread = max(1.4826 * float(np.median(np.abs(ratio - middle))), _LEAST_SPREAD)
            nearer[mine] = (ratio > np.log(NEARER)) & (ratio > middle + Z * spread)
    return Misfits(score, score >= UNLIKE, nearer, nearest)
