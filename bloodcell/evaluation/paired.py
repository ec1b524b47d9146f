"""Differences between predictions of the same samples, with intervals from resamples that all of them share.

The groups are drawn once and every model is measured on the same draw (the paired bootstrap: Efron and Tibshirani, An
Introduction to the Bootstrap, 1993; over groups: Field and Welsh, J. R. Stat. Soc. B 69:369, 2007), so what makes a
split easy or hard for all models cancels. The interval of a difference is the wider, at each end, of the percentiles
of the resampled differences, expanded for few groups (Hesterberg, Am. Stat. 69:371, 2015), and the difference plus and
minus Student's t standard errors. Where no resample differs, a bounded metric gets the difference plus and minus the
upper end of Wilson's interval for none of the groups; the loss has no interval then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from bloodcell.evaluation import estimates, metrics
from bloodcell.evaluation.intervals import NO_SPREAD, UNKNOWN, Interval, student, wilson
from bloodcell.evaluation.predictions import Predictions
from bloodcell.evaluation.resample import bootstrap, cluster_index
from shards.errors import BadInput

OVERALL = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "mcc", "kappa", "nll")
PER_CLASS = ("recall", "precision", "f1", "auroc")
SMALLER_IS_BETTER = ("nll",)
SIGNED = ("mcc", "kappa")
MACRO = ("balanced_accuracy", "macro_f1", "macro_auroc")

RESAMPLES = 2000
WORK = 2_000_000_000
"""Samples times resamples that the cheap metrics may take, and the AUROCs a quarter."""
FEWEST = 200
"""Resamples that are taken however large the split is."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Metrics of one model on some samples, and in every resample of them.

    Attributes:
        values: metric -> float, or float64 [classes].
        draws: metric -> float64 [resamples] or [resamples, classes].
        groups: independent groups of samples.
        class_groups: float64 [classes], groups that hold samples of each class.
    """

    values: dict[str, Any]
    draws: dict[str, np.ndarray]
    groups: int
    class_groups: np.ndarray

    def basis(self, name: str, index: int | None) -> float:
        """Return as how many groups a metric counts: those of its class; of means classes^2 / sum(1 / groups)."""
        if index is not None:
            return float(self.class_groups[index])
        if name not in MACRO:
            return float(self.groups)
        held = self.class_groups[self.class_groups > 0]
        return min(float(self.groups), float(len(held) ** 2 / (1 / held).sum()))


def measure(
    predictions: Predictions, groups: Sequence[str] | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Measured:
    """Return the metrics of `predictions` and their resamples; equal samples, groups and seed share the resamples.

    Args:
        predictions: of every sample.
        groups: of the samples, where not those of the table count.
        resamples: fewer are drawn for very large splits, but never under FEWEST.
        seed: of the resamples.

    Raises:
        BadInput: there are no samples.
    """
    p = predictions
    if not len(p.ids):
        raise BadInput("there are no samples to measure", p.split, "choose another split")
    cluster = cluster_index(p.groups if groups is None else groups)
    classes, predicted = len(p.classes), p.predicted()
    probabilities, losses = p.probabilities(), p.losses()
    many, fewer = (min(resamples, max(FEWEST, work // len(p.ids))) for work in (WORK, WORK // 4))
    statistics = [
        estimates.decision_statistic(p.labels, predicted, cluster, classes, many),
        estimates.ranking_statistic(p.labels, probabilities, cluster, fewer),
        estimates.loss_statistic(losses, cluster, many),
    ]
    confusion = metrics.confusion_matrix(p.labels, predicted, classes)
    areas = metrics.auroc(probabilities, p.labels)
    values: dict[str, Any] = {**metrics.overall(confusion), **metrics.per_class(confusion), "auroc": areas}
    values |= {"macro_auroc": metrics.mean_defined(areas), "nll": losses.mean()}
    pairs = np.unique(cluster * classes + p.labels)
    held = np.bincount(pairs % classes, minlength=classes).astype(np.float64)
    return Measured(values, bootstrap(statistics, cluster, seed), int(cluster.max()) + 1, held)


def differences(
    first: Measured, others: Sequence[Measured], classes: Sequence[str], level: float = 0.95
) -> dict[str, Any]:
    """Return {overall: {metric: entry}, per_class: {class: {metric: entry}}} of `first` less the mean of `others`.

    An entry is {value, low, high}, undefined ones None. The resamples are paired where samples, groups and seed agree,
    and independent where they do not (two sets with two seeds).
    """
    overall = {name: _entry(first, others, name, level) for name in OVERALL}
    per_class = {
        label: {name: _entry(first, others, name, level, index) for name in PER_CLASS}
        for index, label in enumerate(classes)
    }
    return {"overall": overall, "per_class": per_class}


def _entry(
    first: Measured, others: Sequence[Measured], name: str, level: float, index: int | None = None
) -> dict[str, float | None]:
    place = () if index is None else (index,)
    value = float(np.asarray(first.values[name])[place]) - float(
        np.mean([np.asarray(other.values[name])[place] for other in others])
    )
    column = (slice(None), *place)
    count = min(len(first.draws[name]), *(len(other.draws[name]) for other in others))
    draws = first.draws[name][:count][column] - np.mean([other.draws[name][:count][column] for other in others], axis=0)
    groups = min(measured.basis(name, index) for measured in (first, *others))
    bound = math.inf if name in SMALLER_IS_BETTER else 2.0 if name in SIGNED else 1.0
    found = interval(value, draws, groups, level, bound)
    return {"value": rounded(value), "low": rounded(found.low), "high": rounded(found.high)}


def interval(value: float, draws: np.ndarray, groups: float, level: float, bound: float) -> Interval:
    """Return the interval of a difference from its resamples, as the module's docstring says.

    Args:
        value: the difference; NaN gives no interval.
        draws: floats [resamples], NaN where undefined.
        groups: as how many independent groups of samples the metric counts.
        level: of the interval, in (0, 1).
        bound: the difference lies between -bound and bound; may be infinite.
    """
    if math.isnan(value):
        return UNKNOWN
    draws = draws[np.isfinite(draws)]
    spread = float(draws.std()) if len(draws) else 0.0
    if spread <= NO_SPREAD or groups <= 1:
        if math.isinf(bound):
            return UNKNOWN
        most = bound * wilson(0.0, groups, NormalDist().inv_cdf(0.5 + level / 2)).high
        return Interval(max(value - most, -bound), min(value + most, bound))
    quantile = student(level, groups - 1) * math.sqrt(groups / (groups - 1))
    tail = NormalDist().cdf(-quantile)
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(
        max(min(float(low), value - quantile * spread), -bound), min(max(float(high), value + quantile * spread), bound)
    )


def rounded(value: float, digits: int = 10) -> float | None:
    """Return the value to so many significant digits, so that the last bits of a sum do not show; None if undefined."""
    return float(f"{value:.{digits}g}") + 0.0 if math.isfinite(value) else None
