"""Operating points: thresholds chosen on validation for what a clinic asks for, and what they reach when judged.

For every class against the rest, a sample is called positive if the class's probability is at least the threshold. A
threshold is one of the validation scores, so ties are all called or all not; null calls nothing positive. The choices:

- specificity at least so much: the most sensitive threshold that has it; of equals the most specific.
- sensitivity at least so much: the most specific threshold that has it.
- cost: the smallest cost if a missed sample costs so many false alarms (Elkan, IJCAI 2001); of equals the most
  sensitive.

The thresholds are taken as given in the intervals: they do not hold the chance in the choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bloodcell.evaluation.entries import entry, rounded
from bloodcell.evaluation.judged import Judged
from bloodcell.evaluation.proportions import Proportions

SLACK = 1e-9
"""Rounding that a goal such as 0.95 of 20 samples may suffer from."""


@dataclass(frozen=True)
class Goal:
    """What a threshold is chosen for.

    Attributes:
        kind: specificity, sensitivity or cost.
        at: the share that is asked for, or how many false alarms a missed sample costs.
    """

    kind: str
    at: float


GOALS = (
    Goal("specificity", 0.95),
    Goal("specificity", 0.99),
    Goal("sensitivity", 0.95),
    Goal("sensitivity", 0.99),
    Goal("cost", 1.0),
    Goal("cost", 10.0),
)


@dataclass(frozen=True)
class Ladder:
    """The different thresholds of a set of scores, falling, the first one infinite, and what each calls positive.

    Attributes:
        thresholds: float64 [steps].
        hits, alarms: int64 [steps], positive and negative samples with at least that score.
        positives, negatives: how many there are.
    """

    thresholds: np.ndarray
    hits: np.ndarray
    alarms: np.ndarray
    positives: int
    negatives: int

    @classmethod
    def of(cls, scores: np.ndarray, positive: np.ndarray) -> Ladder:
        """Return the ladder of scores, floats [samples], whose positive samples are marked, bool [samples]."""
        order = np.argsort(-scores)
        ordered = scores[order]
        last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True]) if len(ordered) else np.empty(0, np.int64)
        hits = np.cumsum(positive[order])[last]
        return cls(
            np.r_[np.inf, ordered[last]],
            np.r_[0, hits],
            np.r_[0, last + 1 - hits],
            int(np.count_nonzero(positive)),
            int(np.count_nonzero(~positive)),
        )

    def choose(self, goal: Goal) -> int:
        """Return the step that meets the goal best; there must be positives and negatives."""
        steps = np.arange(len(self.thresholds))
        if goal.kind == "specificity":
            allowed = steps[self.negatives - self.alarms >= goal.at * self.negatives - SLACK]
            return int(allowed[np.argmax(self.hits[allowed])])
        if goal.kind == "sensitivity":
            return int(steps[self.hits >= goal.at * self.positives - SLACK][0])
        cost = goal.at * (self.positives - self.hits) + self.alarms
        return int(steps[cost <= cost.min() + SLACK][-1])


class _Point:
    """One threshold of one class, judged."""

    def __init__(self, judged: Judged, label: int, goal: Goal, ladders: list[Ladder]) -> None:
        assert judged.tuning is not None
        self.goal = goal
        steps = [ladder.choose(goal) for ladder in ladders]
        self.thresholds = [float(ladder.thresholds[step]) for ladder, step in zip(ladders, steps, strict=True)]
        pairs = list(zip(ladders, steps, strict=True))
        self.sensitivity = sum(int(x.hits[s]) for x, s in pairs) / sum(x.positives for x in ladders)
        self.specificity = 1 - sum(int(x.alarms[s]) for x, s in pairs) / sum(x.negatives for x in ladders)
        positive = judged.labels == label
        called = judged.probabilities[:, label] >= np.array(self.thresholds)[judged.tuning.part]
        name = f"operating/{label}/{goal.kind}/{goal.at}"
        self.rates = Proportions(name, judged, (~positive).astype(np.int64), called == positive, 2)
        inside = np.where(called, 0, -1)
        self.precision = Proportions(f"{name}/precision", judged, inside, positive, 1)
        self.statistics = self.rates.statistics + self.precision.statistics

    def section(self, draws: dict[str, np.ndarray], level: float) -> dict[str, Any]:
        sensitivity, specificity = self.rates.estimates(draws, level)
        return {
            "goal": self.goal.kind,
            "at": self.goal.at,
            # Not rounded: a threshold is a score, and calling by it must give the same calls.
            "thresholds": [value if math.isfinite(value) else None for value in self.thresholds],
            "on_validation": {"sensitivity": rounded(self.sensitivity), "specificity": rounded(self.specificity)},
            "sensitivity": entry(sensitivity),
            "specificity": entry(specificity),
            "precision": entry(self.precision.estimates(draws, level)[0]),
        }


class OperatingPoints:
    """The section `operating_points` of a result.

    Args:
        judged: what is judged.
    """

    def __init__(self, judged: Judged) -> None:
        self.judged = judged
        self.points: list[list[_Point]] = []
        self.reasons: list[str] = []
        tables = judged.tuning.tables if judged.tuning is not None else ()
        probabilities = [table.probabilities() for table in tables]
        for label in range(len(judged.classes) if tables else 0):
            ladders = [
                Ladder.of(scores[:, label], table.labels == label)
                for scores, table in zip(probabilities, tables, strict=True)
            ]
            reason = ""
            if not all(ladder.positives for ladder in ladders):
                reason = "a validation split has no sample of the class"
            elif not all(ladder.negatives for ladder in ladders):
                reason = "a validation split has no sample of another class"
            self.reasons.append(reason)
            self.points.append([] if reason else [_Point(judged, label, goal, ladders) for goal in GOALS])
        self.statistics = [s for points in self.points for point in points for s in point.statistics]

    def section(self, draws: dict[str, np.ndarray], level: float) -> dict[str, Any]:
        """Return chosen_on, left_out and per_class: for each class its points, or why there are none."""
        if self.judged.tuning is None:
            return {"left_out": self.judged.untuned, "chosen_on": [], "per_class": {}}
        return {
            "left_out": None,
            "chosen_on": self.judged.tuning.about(),
            "per_class": {
                name: {"left_out": reason or None, "points": [point.section(draws, level) for point in points]}
                for name, reason, points in zip(self.judged.classes, self.reasons, self.points, strict=True)
            },
        }
