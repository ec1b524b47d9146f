"""Proportions of disjoint sets of samples, with intervals: Wilson's where samples stand alone, else by their groups."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from bloodcell.evaluation.estimates import Estimate
from bloodcell.evaluation.intervals import UNKNOWN, Evidence, from_draws, wilson
from bloodcell.evaluation.judged import Judged
from bloodcell.evaluation.resample import Statistic, Sums


class Proportions:
    """In each set of samples, the share of hits.

    Args:
        name: of its draws, unlike any other's in the same bootstrap.
        judged: whose samples they are.
        member: int64 [samples], the set of each sample; -1 if it is in none.
        hit: bool [samples].
        sets: how many sets there are.
    """

    def __init__(self, name: str, judged: Judged, member: np.ndarray, hit: np.ndarray, sets: int) -> None:
        self.name, self.sets = name, sets
        inside = member >= 0
        column = 2 * member[inside] + hit[inside]
        counts = np.bincount(column, minlength=2 * sets).reshape(sets, 2)
        self.samples = counts.sum(axis=1)
        self.hits = counts[:, 1]
        self.statistics: list[Statistic] = []
        self.groups = self.samples
        if judged.groups < len(member):
            self.groups = _groups_in(member[inside], judged.cluster[inside], sets, judged.groups)
            # A block that is in no set must still be drawn: the table is as wide as the blocks are many.
            last = int(judged.blocks.max())
            self._table = Sums(np.r_[judged.blocks[inside], last], np.r_[column, 2 * sets], 2 * sets + 1)
            self.statistics = [Statistic(self._draw, judged.resamples)]

    def _draw(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        sums = self._table(weights)[:-1].reshape(self.sets, 2, -1)
        with np.errstate(invalid="ignore"):
            return {self.name: (sums[:, 1] / sums.sum(axis=1)).T}

    def estimates(self, draws: dict[str, np.ndarray], level: float) -> list[Estimate]:
        """Return the share of hits in each set with its interval; NaN for an empty set.

        Args:
            draws: what resample.bootstrap made of `statistics`.
            level: of the intervals, in (0, 1).
        """
        found: list[Estimate] = []
        normal = NormalDist().inv_cdf(0.5 + level / 2)
        for index, (hits, samples, groups) in enumerate(
            zip(self.hits.tolist(), self.samples.tolist(), self.groups.tolist(), strict=True)
        ):
            if not samples:
                found.append((math.nan, UNKNOWN))
            elif not self.statistics:
                found.append((hits / samples, wilson(hits / samples, samples, normal)))
            else:
                evidence = Evidence(float(groups), float(samples))
                found.append((hits / samples, from_draws(hits / samples, draws[self.name][:, index], evidence, level)))
        return found


def _groups_in(member: np.ndarray, cluster: np.ndarray, sets: int, groups: int) -> np.ndarray:
    """Return how many groups have a sample in each set, int64 [sets]."""
    pairs = member * groups + cluster
    if sets * groups <= len(pairs):
        return np.asarray((np.bincount(pairs, minlength=sets * groups) > 0).reshape(sets, groups).sum(axis=1))
    return np.bincount(np.unique(pairs) // groups, minlength=sets)
