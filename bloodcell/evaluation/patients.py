"""From cells to patients: a diagnosis for each patient, and the share of each class among a patient's cells.

A patient is a named group of the predictions; a cluster of near-duplicates (`near:...`) is none, and samples without a
patient are left out. Patients that share an image were joined when the set was packed ("a+b") and count as one.

- Diagnosis: where a patient's samples all have one label, it is the patient's. Two rules: the largest mean
  probability, and the vote (the class predicted most often; of equals the one with the larger mean probability).
  Patients with samples of several classes have no label: they are left out and counted. If they are the majority, the
  classes are kinds of cells and there is no diagnosis to judge.
- Fractions: the share of each class among the patient's cells (for a class of blasts: the blast fraction), predicted
  less true: mean absolute error, bias, and limits of agreement (Bland and Altman, Lancet 327:307, 1986).

Patients are the samples of all intervals here, each with the same weight.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bloodcell.evaluation import estimates, metrics
from bloodcell.evaluation.entries import entry, numbers, rounded
from bloodcell.evaluation.intervals import Evidence, from_draws
from bloodcell.evaluation.judged import Judged
from bloodcell.evaluation.resample import Statistic, Totals, bootstrap, cluster_index
from shards.shown import NEAR

JOINT = "+"
"""Between the names of patients that were joined because they share an image."""
LIMITS = 1.959963984540054
"""Standard deviations between which 95 % of differences lie."""
MOST_ROWS = 500
"""Patients that are listed one by one; with more of them the list is left out."""


def patient_mask(groups: list[str]) -> np.ndarray:
    """Return which samples have a named patient or slide, bool [samples]."""
    return np.array([bool(name) and not name.startswith(NEAR) for name in groups], dtype=bool)


class Patients:
    """The section `patients` of a result, and the tables by patient behind it.

    Attributes:
        names: of the patients, in order.
        cells: int64 [patients].
        true, given: float64 [patients, classes], share of each class among the labels and among the predictions.
        probabilities: float64 [patients, classes], mean over the patient's samples.

    Args:
        judged: what is judged.
    """

    def __init__(self, judged: Judged) -> None:
        self.judged = judged
        named = patient_mask(judged.predictions.groups)
        groups = [name for name, wanted in zip(judged.predictions.groups, named, strict=True) if wanted]
        self.without = len(named) - len(groups)
        self.names = sorted(set(groups))
        if not groups:
            return
        place = {name: index for index, name in enumerate(self.names)}
        # cluster_index numbers by first appearance: here by name.
        first = cluster_index(groups)
        seen = np.unique(first, return_index=True)[1]
        patient = np.array([place[groups[index]] for index in seen])[first]
        count, classes = len(self.names), len(judged.classes)
        self.cells = np.bincount(patient, minlength=count)
        self.true = _shares(patient, judged.labels[named], count, classes)
        self.given = _shares(patient, judged.predicted[named], count, classes)
        self.probabilities = np.stack(
            [np.bincount(patient, judged.probabilities[named, k], count) / self.cells for k in range(classes)], axis=1
        )

    def section(self, level: float, resamples: int, seed: int) -> dict[str, Any]:
        """Return counts, diagnosis, fractions and rows, or under left_out why there are none.

        Args:
            level: of the intervals, in (0, 1).
            resamples: of the bootstrap over patients.
            seed: of it.
        """
        known = {
            "patients": len(self.names),
            "joined": sum(JOINT in name for name in self.names),
            "samples_without_patient": self.without,
        }
        if len(self.names) < 2:
            reason = "one patient only" if self.names else "no sample has a named patient or slide"
            return {**known, "left_out": reason, "diagnosis": None, "fractions": None, "rows": None}
        return {
            **known,
            "left_out": None,
            "diagnosis": self._diagnosis(level, resamples, seed),
            "fractions": self._fractions(level, resamples, seed),
            "rows": self._rows() if len(self.names) <= MOST_ROWS else None,
        }

    def votes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the class that each patient's samples are predicted as most often, and where that was a tie."""
        best = self.given == self.given.max(axis=1, keepdims=True)
        return np.where(best, self.probabilities, -1.0).argmax(axis=1), best.sum(axis=1) > 1

    def _diagnosis(self, level: float, resamples: int, seed: int) -> dict[str, Any]:
        one = (self.true > 0).sum(axis=1) == 1
        known: dict[str, Any] = {"patients": int(one.sum()), "mixed": int((~one).sum()), "left_out": None}
        if one.sum() < 2 or 2 * one.sum() < len(one):
            known["left_out"] = (
                f"{int((~one).sum()):,} of {len(one):,} patients have samples of several classes, and so no one label"
            )
            return known
        labels = self.true[one].argmax(axis=1)
        vote, tied = self.votes()
        rules = {
            "mean_probability": (self.probabilities[one].argmax(axis=1), self.probabilities[one]),
            "vote": (vote[one], self.given[one]),
        }
        for name, (predicted, scores) in rules.items():
            known[name] = _judge(labels, predicted, scores, self.judged.classes, level, resamples, seed)
        known["vote"]["ties"] = int(tied[one].sum())
        return known

    def _fractions(self, level: float, resamples: int, seed: int) -> dict[str, Any]:
        difference = self.given - self.true
        patients = len(difference)
        totals = Totals(np.arange(patients), np.concatenate([np.abs(difference), difference], axis=1))
        statistic = Statistic(lambda weights: {"mean": (totals(weights) / patients).T}, resamples)
        draws = bootstrap([statistic], np.arange(patients), seed)["mean"]
        found = {}
        for index, name in enumerate(self.judged.classes):
            errors, bias = np.abs(difference[:, index]), float(difference[:, index].mean())
            error, spread = float(errors.mean()), float(difference[:, index].std(ddof=1))
            evidence, other = Evidence(float(patients), math.inf), draws[:, len(self.judged.classes) + index]
            found[name] = {
                "mean_absolute_error": entry((error, from_draws(error, draws[:, index], evidence, level))),
                "bias": entry((bias, from_draws(bias, other, evidence, level, (-1.0, 1.0)))),
                "limits_of_agreement": numbers([bias - LIMITS * spread, bias + LIMITS * spread]),
                "largest_error": rounded(float(errors.max())),
            }
        return found

    def _rows(self) -> list[dict[str, Any]]:
        classes = self.judged.classes
        vote, _ = self.votes()
        return [
            {
                "patient": name,
                "samples": int(self.cells[i]),
                "label": classes[int(self.true[i].argmax())] if (self.true[i] > 0).sum() == 1 else None,
                "mean_probability": classes[int(self.probabilities[i].argmax())],
                "vote": classes[int(vote[i])],
                "probabilities": numbers(self.probabilities[i]),
                "true_fractions": numbers(self.true[i]),
                "predicted_fractions": numbers(self.given[i]),
            }
            for i, name in enumerate(self.names)
        ]


def _shares(patient: np.ndarray, members: np.ndarray, count: int, classes: int) -> np.ndarray:
    table = np.bincount(patient * classes + members, minlength=count * classes).reshape(count, classes)
    return np.asarray(table / table.sum(axis=1, keepdims=True))


def _judge(
    labels: np.ndarray,
    predicted: np.ndarray,
    scores: np.ndarray,
    classes: list[str],
    level: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Return metrics, per_class and confusion of patients, as result.evaluate_predictions does of samples."""
    cluster, count = np.arange(len(labels)), len(classes)
    statistics = [
        estimates.decision_statistic(labels, predicted, cluster, count, resamples),
        estimates.ranking_statistic(labels, scores, cluster, resamples),
    ]
    draws = bootstrap(statistics, cluster, seed)
    parts = [
        estimates.decisions(labels, predicted, cluster, count, draws, level),
        estimates.ranking(labels, scores, cluster, draws, level),
    ]
    support = np.bincount(labels, minlength=count).tolist()
    return {
        "metrics": {name: entry(found) for part in parts for name, found in part.overall.items()},
        "per_class": {
            name: {
                "support": support[index],
                **{kind: entry(found[index]) for part in parts for kind, found in part.per_class.items()},
            }
            for index, name in enumerate(classes)
        },
        "confusion": metrics.confusion_matrix(labels, predicted, count).tolist(),
    }
