"""Selective prediction: how accuracy rises if the least confident samples are handed to a person.

The samples are ordered by confidence, the largest probability. Risk at a coverage c is the share of errors among the
most confident c of all samples; AURC is the mean of it over the coverages 1/n, 2/n, ... 1 (Geifman and El-Yaniv,
NeurIPS 2017; Geifman, Uziel and El-Yaniv, ICLR 2019). Equal confidences have no order: every value is then the mean
over all their orders. `aurc_best` is what a confidence that puts every error last would have.
Above resample.LARGE samples the resamples see confidences in steps, as those of the rankings do (module `estimates`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bloodcell.evaluation.entries import entry, numbers, rounded
from bloodcell.evaluation.estimates import LEVELS
from bloodcell.evaluation.intervals import Evidence, from_draws
from bloodcell.evaluation.judged import Judged
from bloodcell.evaluation.metrics import coarse
from bloodcell.evaluation.proportions import Proportions
from bloodcell.evaluation.resample import LARGE, Statistic, Sums

COVERAGES = (0.8, 0.9, 0.95)
CURVE = np.arange(1, 101) / 100
"""Coverages at which the curve is given."""


def confidence_columns(confidence: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the place of each sample in a table from which risks are read, int64 [samples], and how many runs it has.

    The samples are sorted by falling confidence and cut into runs: equal confidences share a run, and neighbours that
    are all right, or all wrong, are one, which changes no risk. A place is 2 * run + (1 for a wrong sample).

    Args:
        confidence: floats [samples], at least one.
        wrong: bool [samples].
    """
    order = np.argsort(-confidence)  # equal ones share a run
    ordered, errors = confidence[order], wrong[order].astype(np.int64)
    block = np.cumsum(np.r_[True, ordered[1:] != ordered[:-1]]) - 1
    count, found = np.bincount(block), np.bincount(block, weights=errors)
    kind = np.where(found == 0, 0, np.where(found == count, 1, 2))
    run = np.cumsum(np.r_[True, (kind[1:] != kind[:-1]) | (kind[1:] == 2)]) - 1
    columns = np.empty(len(confidence), dtype=np.int64)
    columns[order] = 2 * run[block] + errors
    return columns, int(run[-1]) + 1


class Risks:
    """Risk at coverages, for weights summed by the places of `confidence_columns`.

    Args:
        sums: float64 [2 * runs, batch], whole numbers.
    """

    def __init__(self, sums: np.ndarray) -> None:
        self.wrong = sums[1::2]
        self.count = sums[0::2] + self.wrong
        self.until = np.cumsum(self.count, axis=0)
        self.wrong_until = np.cumsum(self.wrong, axis=0)

    def at(self, coverage: float) -> np.ndarray:
        """Return the risk at a coverage in (0, 1], float64 [batch]."""
        target = coverage * self.until[-1]
        run = np.minimum((self.until < target).sum(axis=0), len(self.until) - 1)
        here = (run, np.arange(len(target)))
        missing = (self.until[here] - target) / self.count[here]
        return (self.wrong_until[here] - missing * self.wrong[here]) / target

    def aurc(self) -> np.ndarray:
        """Return the area under the risk-coverage curve, float64 [batch].

        In a run of n samples, e wrong, after N samples with E wrong, the mean over all orders of the risks sums to
        e + (E - e N / n) (H(N + n) - H(N)), H being the harmonic numbers.
        """
        before, wrong_before = self.until - self.count, self.wrong_until - self.wrong
        drift = np.divide(self.wrong * before, self.count, out=np.zeros_like(before), where=self.count > 0)
        span = _harmonic(self.until) - _harmonic(before)
        return (self.wrong + (wrong_before - drift) * span).sum(axis=0) / self.until[-1]

    def best(self) -> np.ndarray:
        """Return the area if every error came last, float64 [batch]."""
        total, wrong = self.until[-1], self.wrong_until[-1]
        return (wrong - (total - wrong) * (_harmonic(total) - _harmonic(total - wrong))) / total


def _harmonic(n: np.ndarray) -> np.ndarray:
    """Return the harmonic numbers of whole numbers >= 0, to about 1e-15 of themselves."""
    small = np.cumsum(np.r_[0.0, 1 / np.arange(1, 65)])
    large = np.maximum(n, 64.0)
    series = np.log(large) + np.euler_gamma + 1 / (2 * large) - 1 / (12 * large**2) + 1 / (120 * large**4)
    return np.where(n <= 64, small[np.minimum(n, 64).astype(np.int64)], series)


class Selective:
    """The section `selective` of a result.

    Args:
        judged: what is judged.
    """

    def __init__(self, judged: Judged) -> None:
        self.judged = judged
        confidence, wrong = judged.probabilities.max(axis=1), judged.predicted != judged.labels
        columns, runs = confidence_columns(confidence, wrong)
        self.risks = Risks(np.bincount(columns, minlength=2 * runs).astype(np.float64)[:, None])
        self.shift = np.zeros(1 + len(COVERAGES))
        if len(wrong) > LARGE:
            columns, runs = confidence_columns(coarse(confidence, wrong, LEVELS), wrong)
            seen = Risks(np.bincount(columns, minlength=2 * runs).astype(np.float64)[:, None])
            self.shift = _values(self.risks)[:, 0] - _values(seen)[:, 0]
        self._table = Sums(judged.blocks, columns, 2 * runs)
        self.statistics = [Statistic(self._draw, judged.resamples)]
        self.kept: list[tuple[list[float], Proportions, Proportions]] = []
        if judged.tuning is not None:
            known = [table.probabilities().max(axis=1) for table in judged.tuning.tables]
            for coverage in COVERAGES:
                thresholds = [threshold_of(values, coverage) for values in known]
                inside = confidence >= np.array(thresholds)[judged.tuning.part]
                name = f"selective/kept/{coverage}"
                whole = np.zeros(len(inside), dtype=np.int64)
                shares = Proportions(name, judged, whole, inside, 1)
                rights = Proportions(f"{name}/right", judged, np.where(inside, 0, -1), ~wrong, 1)
                self.kept.append((thresholds, shares, rights))
                self.statistics += shares.statistics + rights.statistics

    def _draw(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        area, *accuracies = _values(Risks(self._table(weights))) + self.shift[:, None]
        found = {f"selective/{coverage}": values for coverage, values in zip(COVERAGES, accuracies, strict=True)}
        return {"selective/aurc": area, **found}

    def section(self, draws: dict[str, np.ndarray], level: float) -> dict[str, Any]:
        """Return the curve, aurc, accuracy at coverages, and what thresholds chosen on validation keep."""
        groups, samples = float(self.judged.groups), float(len(self.judged.labels))
        area = float(self.risks.aurc()[0])
        evidence = Evidence(groups, math.inf)
        at = []
        for coverage in COVERAGES:
            value = float(1 - self.risks.at(coverage)[0])
            interval = from_draws(value, draws[f"selective/{coverage}"], Evidence(groups, coverage * samples), level)
            at.append({"coverage": coverage, "accuracy": entry((value, interval))})
        tuning = self.judged.tuning
        return {
            "confidence": "largest probability, before temperature scaling",
            "aurc": entry((area, from_draws(area, draws["selective/aurc"], evidence, level))),
            "aurc_best": rounded(float(self.risks.best()[0])),
            "error_rate": rounded(float(self.risks.at(1.0)[0])),
            "curve": {
                "coverage": numbers(CURVE),
                "risk": numbers(float(self.risks.at(float(coverage))[0]) for coverage in CURVE),
            },
            "at_coverage": at,
            "thresholds": {
                "left_out": None if tuning is not None else self.judged.untuned,
                "chosen_on": tuning.about() if tuning is not None else [],
                "points": [
                    {
                        "coverage": coverage,
                        "thresholds": thresholds,
                        "kept": entry(shares.estimates(draws, level)[0]),
                        "accuracy": entry(rights.estimates(draws, level)[0]),
                    }
                    for coverage, (thresholds, shares, rights) in zip(COVERAGES, self.kept, strict=False)
                ],
            },
        }


def _values(risks: Risks) -> np.ndarray:
    """Return AURC and the accuracies at COVERAGES, float64 [1 + coverages, batch]."""
    return np.stack([risks.aurc(), *(1 - risks.at(coverage) for coverage in COVERAGES)])


def threshold_of(confidence: np.ndarray, coverage: float) -> float:
    """Return the largest of the confidences, floats [samples], that keeps at least `coverage` of them."""
    rank = math.ceil(coverage * len(confidence) - 1e-9)
    return float(np.sort(confidence)[len(confidence) - max(rank, 1)])
