"""Calibration: whether a confidence of 90 % is right nine times in ten; before and after temperature scaling.

- ECE: the confidences (largest probabilities) in 15 bins of equal width, closed on the right; the mean distance
  between confidence and accuracy, weighted by samples. Naeini, Cooper and Hauskrecht, AAAI 2015; Guo et al., ICML 2017.
- adaptive ECE: the same in 15 bins of equal numbers of samples (Nguyen and O'Connor, EMNLP 2015); equal confidences
  stay together, in the bin of their mean rank.
- classwise ECE: the mean over the classes of the same distance for every class's probability, in bins of equal width
  (Kull et al., NeurIPS 2019).
- Brier score: mean squared distance between the probabilities and the label, summed over the classes, from 0 to 2
  (Brier, Mon. Weather Rev. 78:1, 1950). NLL: mean negative log-likelihood in nats.

An ECE is never below 0 and so it is too large by what chance alone puts into the bins: `expected_if_calibrated` is what
a calibrated network would show on a split like this one. Its interval keeps the bins and allows for that: with g the
bins' gaps (each times the bin's share of the samples), g* those of a resample, the lower end is the ECE less a high
quantile of the sum of |g* - g|, since |sum |g| - sum |G|| <= sum |g - G| for the true gaps G; the upper end, where
chance only helps, is the ECE plus t standard errors of the sum of sign(g) g*. It covers the truth at least as often as
stated, more often where the gaps are small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from bloodcell.evaluation.entries import entry, rounded
from bloodcell.evaluation.estimates import Estimate
from bloodcell.evaluation.intervals import UNKNOWN, Evidence, Interval, from_draws, student
from bloodcell.evaluation.judged import Judged
from bloodcell.evaluation.proportions import Proportions
from bloodcell.evaluation.resample import Statistic, Sums, Totals
from bloodcell.evaluation.temperature import fit_temperature
from shards.errors import BadInput

BINS = 15


def equal_width(values: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return the bin of each value from 0 to 1, int64 [samples]: bin b holds b / bins < value <= (b + 1) / bins, and
    bin 0 also the value 0.
    """
    edges = np.arange(1, bins) / bins
    return np.searchsorted(edges, values, side="left")


def equal_mass(values: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return the bin of each value, int64 [samples]: as many samples in each as ties allow, low values first."""
    if not len(values):
        return np.empty(0, dtype=np.int64)
    ordered = np.sort(values)
    begin, end = np.searchsorted(ordered, values, side="left"), np.searchsorted(ordered, values, side="right")
    return np.minimum((begin + end - 1) * bins // (2 * len(values)), bins - 1)


def calibration_error(bins: np.ndarray, gaps: np.ndarray) -> float:
    """Return the ECE: the sum over the bins of the distance of the bin's summed `gaps` from 0, over the samples.

    Args:
        bins: int64 [samples], bin of each sample.
        gaps: floats [samples], 1 or 0 for right or wrong, less the confidence.
    """
    return float(np.abs(np.bincount(bins, weights=gaps)).sum() / len(gaps)) if len(gaps) else math.nan


def brier_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return each sample's squared distance between probabilities and label, float64 [samples], from 0 to 2."""
    true = np.take_along_axis(probabilities, labels[:, None].astype(np.int64), axis=1)[:, 0]
    return np.einsum("nk,nk->n", probabilities, probabilities) - 2 * true + 1


class Gaps:
    """One calibration error with its interval.

    Args:
        name: of its draws.
        judged: whose samples they are.
        bins: int64 [samples] for each of one or several kinds of gaps.
        gaps: floats [samples] for each, hit less confidence; several kinds give the mean of their errors.
    """

    def __init__(self, name: str, judged: Judged, bins: Sequence[np.ndarray], gaps: Sequence[np.ndarray]) -> None:
        self.name = name
        self._groups, self._samples = judged.groups, len(judged.labels)
        self._scale = 1 / (self._samples * len(bins))
        self._sums = [np.bincount(b, weights=g, minlength=BINS) for b, g in zip(bins, gaps, strict=True)]
        self._tables = [Sums(judged.blocks, b, BINS, g) for b, g in zip(bins, gaps, strict=True)]
        self._count = Totals(judged.blocks, np.ones((self._samples, 1)))
        self.value = float(sum(np.abs(sums).sum() for sums in self._sums) * self._scale)
        self.statistics = [Statistic(self._draw, judged.resamples)]

    def _draw(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        share = self._samples / self._count(weights)
        distance, signed = np.zeros((2, weights.shape[1]))
        for sums, table in zip(self._sums, self._tables, strict=True):
            drawn = table(weights) * share
            distance += np.abs(drawn - sums[:, None]).sum(axis=0)
            signed += np.sign(sums) @ drawn
        return {f"{self.name}/distance": distance * self._scale, f"{self.name}/signed": signed * self._scale}

    def estimate(self, draws: dict[str, np.ndarray], level: float) -> tuple[Estimate, float]:
        """Return the error with its interval, and the error that a calibrated network would show.

        Args:
            draws: what resample.bootstrap made of `statistics`.
            level: of the interval, in (0, 1).
        """
        groups = self._groups
        if groups < 2:
            return (self.value, UNKNOWN), math.nan
        distance, signed = draws[f"{self.name}/distance"], draws[f"{self.name}/signed"]
        expansion = math.sqrt(groups / (groups - 1))
        quantile = student(level, groups - 1)
        below = float(np.quantile(distance, 0.5 + level / 2)) * quantile / NormalDist().inv_cdf(0.5 + level / 2)
        high = self.value + quantile * expansion * float(signed.std())
        interval = Interval(max(self.value - expansion * below, 0.0), min(high, 1.0))
        return (self.value, interval), expansion * float(distance.mean())


class _Side:
    """Everything on one side of the scaling: before, or after."""

    def __init__(self, name: str, judged: Judged, probabilities: np.ndarray, losses: np.ndarray) -> None:
        labels, blocks = judged.labels, judged.blocks
        self.name = name
        confidence = probabilities.max(axis=1)
        hit = judged.predicted == labels
        gap = hit - confidence
        width = equal_width(confidence)
        classes = range(probabilities.shape[1])
        self.gaps = {
            "ece": Gaps(f"{name}/ece", judged, [width], [gap]),
            "adaptive_ece": Gaps(f"{name}/adaptive", judged, [equal_mass(confidence)], [gap]),
            "classwise_ece": Gaps(
                f"{name}/classwise",
                judged,
                [equal_width(probabilities[:, k]) for k in classes],
                [(labels == k) - probabilities[:, k] for k in classes],
            ),
        }
        self.curve = Proportions(f"{name}/curve", judged, width, hit, BINS)
        self.confidence = np.bincount(width, weights=confidence, minlength=BINS)
        self.scores = {"brier": brier_losses(probabilities, labels), "nll": losses}
        self._means = {kind: float(values.mean()) for kind, values in self.scores.items()}
        self._totals = Totals(blocks, np.stack([*self.scores.values(), np.ones(len(labels))], axis=1))
        self.groups = float(judged.groups)
        self.statistics = [Statistic(self._draw, judged.resamples), *self.curve.statistics]
        self.statistics += [statistic for gaps in self.gaps.values() for statistic in gaps.statistics]

    def _draw(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        *totals, count = self._totals(weights)
        return {f"{self.name}/{kind}": total / count for kind, total in zip(self.scores, totals, strict=True)}

    def section(self, draws: dict[str, np.ndarray], level: float) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for kind, gaps in self.gaps.items():
            estimate, expected = gaps.estimate(draws, level)
            found[kind] = {**entry(estimate), "expected_if_calibrated": rounded(expected)}
        for kind, high in (("brier", 2.0), ("nll", math.inf)):
            value = self._means[kind]
            evidence = Evidence(self.groups, math.inf)
            found[kind] = entry((value, from_draws(value, draws[f"{self.name}/{kind}"], evidence, level, (0.0, high))))
        curve = zip(self.curve.estimates(draws, level), self.confidence, self.curve.samples.tolist(), strict=True)
        found["reliability"] = [
            {
                "from": rounded(index / BINS),
                "to": rounded((index + 1) / BINS),
                "samples": samples,
                "confidence": rounded(total / samples) if samples else None,
                "accuracy": entry(estimate),
            }
            for index, (estimate, total, samples) in enumerate(curve)
        ]
        return found


@dataclass(frozen=True)
class Scaling:
    """The temperatures of a tuning, or why there are none.

    Attributes:
        temperatures: one for each validation table; empty if there are none.
        reason: why they are left out, else "".
    """

    temperatures: tuple[float, ...]
    reason: str


def scaling_of(judged: Judged) -> Scaling:
    """Return the temperatures that the validation splits of `judged` ask for."""
    if judged.tuning is None:
        return Scaling((), judged.untuned)
    try:
        return Scaling(tuple(fit_temperature(table) for table in judged.tuning.tables), "")
    except BadInput as error:
        return Scaling((), error.what)


class Calibration:
    """The section `calibration` of a result.

    Args:
        judged: what is judged.
    """

    def __init__(self, judged: Judged) -> None:
        self.judged = judged
        self.scaling = scaling_of(judged)
        self.sides = [_Side("before", judged, judged.probabilities, judged.losses)]
        if judged.tuning is not None and self.scaling.temperatures:
            temperature = np.array(self.scaling.temperatures)[judged.tuning.part]
            p = judged.predictions
            self.sides.append(_Side("after", judged, p.probabilities(temperature), p.losses(temperature)))
        self.statistics = [statistic for side in self.sides for statistic in side.statistics]

    def section(self, draws: dict[str, np.ndarray], level: float) -> dict[str, Any]:
        """Return bins, temperature {value(s), fitted_on, left_out}, before, after (None if there is none)."""
        values = [rounded(value) for value in self.scaling.temperatures]
        fitted = self.judged.tuning.about() if self.judged.tuning is not None and values else []
        found = {side.name: side.section(draws, level) for side in self.sides}
        return {
            "bins": BINS,
            "temperature": {
                "values": values,
                "fitted_on": fitted,
                "left_out": self.scaling.reason or None,
            },
            "before": found["before"],
            "after": found.get("after"),
        }
