"""Conformal sets: for each sample the classes that cannot be ruled out, with a promised share that holds the true one.

Split conformal prediction (Vovk, Gammerman and Shafer 2005; Angelopoulos and Bates, Found. Trends Mach. Learn. 16:494,
2023): a score of how strange the true class looks, on n validation samples; a set holds every class whose score is at
most the ceil((n + 1) level)-th smallest of them. With fewer samples than that asks for every class is in every set.

- LAC: the score is 1 - probability of the class (Sadinle, Lei and Wasserman, J. Am. Stat. Assoc. 114:223, 2019).
  Smallest sets on average; a set may be empty.
- APS: the score is the total probability of all classes at least as likely as the class (Romano, Sesia and Candes,
  NeurIPS 2020), without their randomisation, so that equal images have equal sets; the most likely class is always in.
  Both make the sets larger than need be, never smaller.

The promise is for samples that are exchangeable with the validation samples. Samples of one patient are alike, and a
new patient or laboratory may not be: so coverage is checked on the judged split, with an interval over its groups.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bloodcell.evaluation.entries import entry, rounded
from bloodcell.evaluation.intervals import Evidence, from_draws
from bloodcell.evaluation.judged import Judged
from bloodcell.evaluation.predictions import BLOCK, Predictions
from bloodcell.evaluation.proportions import Proportions
from bloodcell.evaluation.resample import Statistic, Totals

LEVELS = (0.9, 0.95)
METHODS = ("lac", "aps")
CAVEAT = (
    "promised for samples drawn like the validation samples; samples of one patient are alike and new patients may "
    "differ, so what counts is the coverage reached here, with its interval over groups"
)


def scores_of(method: str, probabilities: np.ndarray) -> np.ndarray:
    """Return how strange each class looks, float64 [samples, classes], by `method` (lac, aps)."""
    if method == "lac":
        return 1 - probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, axis=1)
    total = np.cumsum(ordered, axis=1)
    for column in range(total.shape[1] - 2, -1, -1):  # equal probabilities share the total behind the last of them
        tied = ordered[:, column] == ordered[:, column + 1]
        total[tied, column] = total[tied, column + 1]
    scores = np.empty_like(total)
    np.put_along_axis(scores, order, total, axis=1)
    return scores


def sets_of(method: str, probabilities: np.ndarray, quantile: np.ndarray) -> np.ndarray:
    """Return which classes are in each sample's set, bool [samples, classes].

    Args:
        method: lac or aps.
        probabilities: float64 [samples, classes].
        quantile: float64 [samples], the largest score that is let in.
    """
    inside = np.empty(probabilities.shape, dtype=bool)
    for begin in range(0, len(probabilities), BLOCK):
        rows = slice(begin, begin + BLOCK)
        inside[rows] = scores_of(method, probabilities[rows]) <= quantile[rows, None]
    if method == "aps":
        inside[np.arange(len(inside)), probabilities.argmax(axis=1)] = True
    return inside


def quantile_of(scores: np.ndarray, level: float) -> float:
    """Return the ceil((n + 1) level)-th smallest of n scores, floats [n]; infinite if there are too few."""
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def true_scores(method: str, table: Predictions) -> np.ndarray:
    """Return how strange each sample's own class looks, float64 [samples]."""
    probabilities, labels = table.probabilities(), table.labels[:, None].astype(np.int64)
    found = np.empty(len(labels))
    for begin in range(0, len(labels), BLOCK):
        rows = slice(begin, begin + BLOCK)
        found[rows] = np.take_along_axis(scores_of(method, probabilities[rows]), labels[rows], axis=1)[:, 0]
    return found


class _Sets:
    """The sets of one method and level, judged."""

    def __init__(self, judged: Judged, method: str, level: float, quantiles: list[float]) -> None:
        assert judged.tuning is not None
        self.method, self.level, self.quantiles = method, level, quantiles
        inside = sets_of(method, judged.probabilities, np.array(quantiles)[judged.tuning.part])
        sizes = inside.sum(axis=1)
        covered = inside[np.arange(len(inside)), judged.labels]
        self.name = f"conformal/{method}/{level}"
        self.sizes = np.bincount(sizes, minlength=inside.shape[1] + 1)
        self.most = float(inside.shape[1])
        self.groups, labels = float(judged.groups), judged.labels.astype(np.int64)
        self.whole = Proportions(f"{self.name}/all", judged, 0 * labels, covered, 1)
        self.each = Proportions(f"{self.name}/class", judged, labels, covered, len(judged.classes))
        self.mean = float(sizes.mean())
        self._totals = Totals(judged.blocks, np.stack([sizes, np.ones(len(sizes))], axis=1))
        self.statistics = [Statistic(self._draw, judged.resamples), *self.whole.statistics, *self.each.statistics]

    def _draw(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        total, count = self._totals(weights)
        return {f"{self.name}/size": total / count}

    def section(self, draws: dict[str, np.ndarray], level: float, classes: list[str]) -> dict[str, Any]:
        coverage = self.whole.estimates(draws, level)[0]
        evidence = Evidence(self.groups, math.inf)
        size = from_draws(self.mean, draws[f"{self.name}/size"], evidence, level, (0.0, self.most))
        return {
            "method": self.method,
            "level": self.level,
            "quantiles": [value if math.isfinite(value) else None for value in self.quantiles],
            "coverage": entry(coverage),
            "reached": bool(coverage[1].high >= self.level),
            "mean_size": entry((self.mean, size)),
            "sizes": {str(size): count for size, count in enumerate(self.sizes.tolist()) if count},
            "single": rounded(self.sizes[1] / self.sizes.sum()),
            "per_class": dict(zip(classes, map(entry, self.each.estimates(draws, level)), strict=True)),
        }


class Conformal:
    """The section `conformal` of a result.

    Args:
        judged: what is judged.
    """

    def __init__(self, judged: Judged) -> None:
        self.judged = judged
        self.sets: list[_Sets] = []
        for method in METHODS if judged.tuning is not None else ():
            assert judged.tuning is not None
            scores = [true_scores(method, table) for table in judged.tuning.tables]
            self.sets += [_Sets(judged, method, level, [quantile_of(s, level) for s in scores]) for level in LEVELS]
        self.statistics = [statistic for sets in self.sets for statistic in sets.statistics]

    def section(self, draws: dict[str, np.ndarray], level: float) -> dict[str, Any]:
        """Return calibrated_on, left_out, caveat and sets: one entry for each method and level.

        `reached` says whether the interval of the coverage does not lie below the level; `single` is the share of sets
        with one class; a quantile of null lets every class in.
        """
        tuning = self.judged.tuning
        return {
            "left_out": None if tuning is not None else self.judged.untuned,
            "calibrated_on": tuning.about() if tuning is not None else [],
            "caveat": CAVEAT,
            "sets": [sets.section(draws, level, self.judged.classes) for sets in self.sets],
        }
