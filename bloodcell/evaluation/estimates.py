"""Every metric with its interval: what is resampled for it and what it stands on (the methods are in `intervals`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from bloodcell.evaluation import metrics
from bloodcell.evaluation.intervals import UNKNOWN, Evidence, Interval, from_draws, wilson
from bloodcell.evaluation.resample import LARGE, Statistic, Sums, Totals

MACRO = ("balanced_accuracy", "macro_precision", "macro_recall", "macro_f1")
SIGNED = ("mcc", "kappa")
LEVELS = 256
"""Half the different scores that the resamples of a large split see."""
PROPORTIONS = ("precision", "recall", "specificity")

Estimate = tuple[float, Interval]


@dataclass(frozen=True)
class Estimates:
    """Values with their intervals.

    Attributes:
        overall: metric -> (value, interval).
        per_class: metric -> a (value, interval) for each class.
    """

    overall: dict[str, Estimate]
    per_class: dict[str, list[Estimate]]


def decision_statistic(
    labels: np.ndarray, predicted: np.ndarray, cluster: np.ndarray, classes: int, resamples: int
) -> Statistic:
    """Return the statistic of everything that the confusion matrix gives: metrics.overall and metrics.per_class."""
    sums = Sums(cluster, labels.astype(np.int64) * classes + predicted, classes * classes)

    def draw(weights: np.ndarray) -> dict[str, np.ndarray]:
        confusion = sums(weights).T.reshape(-1, classes, classes)
        return {**metrics.overall(confusion), **metrics.per_class(confusion)}

    return Statistic(draw, resamples)


def ranking_statistic(labels: np.ndarray, scores: np.ndarray, cluster: np.ndarray, resamples: int) -> Statistic:
    """Return the statistic of auroc and average_precision [classes] and their macro_ means, from one sort a class.

    Above resample.LARGE samples the resamples see scores in fewer than 2 * LEVELS steps, and are shifted by what that
    does to the value itself.
    """
    tables, shifts = [], []
    for index in range(scores.shape[1]):
        positive, seen = labels == index, scores[:, index]
        shift = np.zeros(2)
        if len(labels) > LARGE:
            exact = _ranked(metrics.ranking_columns(seen, positive))
            seen = metrics.coarse(seen, positive, LEVELS)
            shift = exact - _ranked(metrics.ranking_columns(seen, positive))
        columns = metrics.ranking_columns(seen, positive)
        tables.append(Sums(cluster, columns, metrics.column_count(columns)))
        shifts.append(shift)

    def draw(weights: np.ndarray) -> dict[str, np.ndarray]:
        areas, precisions = np.empty((2, weights.shape[1], len(tables)))
        for index, (table, shift) in enumerate(zip(tables, shifts, strict=True)):
            sums = table(weights)
            areas[:, index] = metrics.auroc_of_columns(sums) + shift[0]
            precisions[:, index] = metrics.precision_of_columns(sums) + shift[1]
        found = {"auroc": areas, "average_precision": precisions}
        return {**found, **{f"macro_{name}": metrics.mean_defined(values) for name, values in found.items()}}

    return Statistic(draw, resamples)


def _ranked(columns: np.ndarray) -> np.ndarray:
    """Return AUROC and average precision of samples by the places of metrics.ranking_columns, float64 [2]."""
    counts = np.bincount(columns, minlength=metrics.column_count(columns)).astype(np.float64)[:, None]
    return np.concatenate([metrics.auroc_of_columns(counts), metrics.precision_of_columns(counts)])


def loss_statistic(losses: np.ndarray, cluster: np.ndarray, resamples: int) -> Statistic:
    """Return the statistic of nll, the mean of the samples' losses."""
    totals = Totals(cluster, np.stack([losses, np.ones_like(losses)], axis=1))

    def draw(weights: np.ndarray) -> dict[str, np.ndarray]:
        total, count = totals(weights)
        return {"nll": total / count}

    return Statistic(draw, resamples)


def decisions(
    labels: np.ndarray,
    predicted: np.ndarray,
    cluster: np.ndarray,
    classes: int,
    draws: dict[str, np.ndarray],
    level: float,
) -> Estimates:
    """Return every metric of the confusion matrix with its interval.

    Args:
        labels, predicted: integers [samples], class index.
        cluster: int64 [samples], from resample.cluster_index.
        classes: how many there are.
        draws: what resample.bootstrap made of `decision_statistic`.
        level: of the intervals, in (0, 1).
    """
    confusion = metrics.confusion_matrix(labels, predicted, classes)
    return Estimates(
        _overall(confusion, _Held.of(cluster, labels, classes), draws, level),
        _per_class(confusion, cluster, labels, predicted, draws, level),
    )


def _overall(confusion: np.ndarray, truth: _Held, draws: dict[str, np.ndarray], level: float) -> dict[str, Estimate]:
    whole = Evidence(truth.all_groups, truth.all_samples)
    macro = Evidence(min(truth.all_groups, _mean_basis(truth.groups)), _mean_basis(truth.samples))
    others = Evidence(
        min(truth.all_groups, _mean_basis(truth.groups_of_others)), _mean_basis(truth.all_samples - truth.samples)
    )
    basis = {**dict.fromkeys(MACRO, macro), "macro_specificity": others}
    found = {}
    for name, point in metrics.overall(confusion).items():
        value = float(point)
        if name == "accuracy" and truth.alone:
            found[name] = (value, wilson(value, truth.all_samples, _normal(level)))
        else:
            bounds = (-1.0, 1.0) if name in SIGNED else (0.0, 1.0)
            found[name] = (value, from_draws(value, draws[name], basis.get(name, whole), level, bounds))
    return found


def _per_class(
    confusion: np.ndarray,
    cluster: np.ndarray,
    labels: np.ndarray,
    predicted: np.ndarray,
    draws: dict[str, np.ndarray],
    level: float,
) -> dict[str, list[Estimate]]:
    classes = len(confusion)
    truth, given = _Held.of(cluster, labels, classes), _Held.of(cluster, predicted, classes)
    either = _Held.of(np.r_[cluster, cluster], np.r_[labels, predicted], classes)
    basis = {
        "precision": (given.groups, given.samples),
        "recall": (truth.groups, truth.samples),
        "f1": (either.groups, truth.samples + given.samples - np.diagonal(confusion)),
        "specificity": (truth.groups_of_others, truth.all_samples - truth.samples),
    }
    found: dict[str, list[Estimate]] = {name: [] for name in basis}
    for name, values in metrics.per_class(confusion).items():
        for index, (value, groups, samples) in enumerate(zip(values.tolist(), *basis[name], strict=True)):
            if name in PROPORTIONS and truth.alone:
                interval = UNKNOWN if math.isnan(value) else wilson(value, samples, _normal(level))
            else:
                interval = from_draws(value, draws[name][:, index], Evidence(groups, samples), level)
            found[name].append((value, interval))
    return found


def ranking(
    labels: np.ndarray, scores: np.ndarray, cluster: np.ndarray, draws: dict[str, np.ndarray], level: float
) -> Estimates:
    """Return auroc, average_precision and their macro_ means with their intervals.

    Args:
        labels: integers [samples], class index.
        scores: floats [samples, classes].
        cluster: int64 [samples], from resample.cluster_index.
        draws: what resample.bootstrap made of `ranking_statistic`.
        level: of the intervals, in (0, 1).
    """
    held = _Held.of(cluster, labels, scores.shape[1])
    groups = np.minimum(held.groups, held.groups_of_others)
    found = Estimates({}, {})
    for name, values in metrics.rankings(scores, labels).items():
        # No cap by samples: with many pairs an AUROC may be surer than any proportion of the samples.
        found.per_class[name] = [
            (value, from_draws(value, draws[name][:, index], Evidence(groups[index], math.inf), level))
            for index, value in enumerate(values.tolist())
        ]
        macro = float(metrics.mean_defined(values))
        evidence = Evidence(min(held.all_groups, _mean_basis(groups)), math.inf)
        found.overall[f"macro_{name}"] = (macro, from_draws(macro, draws[f"macro_{name}"], evidence, level))
    return found


def loss(losses: np.ndarray, cluster: np.ndarray, draws: dict[str, np.ndarray], level: float) -> Estimates:
    """Return nll, the mean of `losses` (floats [samples], nats), with its interval; draws are of `loss_statistic`."""
    value = float(losses.mean())
    evidence = Evidence(float(cluster.max() + 1), math.inf)
    return Estimates({"nll": (value, from_draws(value, draws["nll"], evidence, level, (0.0, math.inf)))}, {})


@dataclass(frozen=True)
class _Held:
    """How many groups and samples hold each class, float64 [classes], and there are in all.

    `groups_of_others`: groups with a sample of another class. `alone`: every sample is a group of its own.
    """

    groups: np.ndarray
    groups_of_others: np.ndarray
    samples: np.ndarray
    all_groups: float
    all_samples: float

    @classmethod
    def of(cls, cluster: np.ndarray, members: np.ndarray, classes: int) -> _Held:
        sizes = np.bincount(cluster)
        pairs, counts = np.unique(cluster * classes + members, return_counts=True)
        group, held = np.divmod(pairs, classes)
        only = np.bincount(held[counts == sizes[group]], minlength=classes)
        return cls(
            np.bincount(held, minlength=classes).astype(np.float64),
            (len(sizes) - only).astype(np.float64),
            np.bincount(members, minlength=classes).astype(np.float64),
            float(len(sizes)),
            float(len(cluster)),
        )

    @property
    def alone(self) -> bool:
        return self.all_groups == self.all_samples


def _mean_basis(counts: np.ndarray) -> float:
    """Return as how many units a mean over classes counts that have `counts` each: classes^2 / sum(1 / counts)."""
    held = counts[counts > 0]
    return float(len(held) ** 2 / (1 / held).sum()) if len(held) else 0.0


def _normal(level: float) -> float:
    return NormalDist().inv_cdf(0.5 + level / 2)
