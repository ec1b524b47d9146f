"""Operating points: the best threshold by trying all, ties called together, figures of the judged split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloodcell.evaluation.intervals import wilson
from bloodcell.evaluation.judge import judge
from bloodcell.evaluation.operating import GOALS, Goal, Ladder
from tests.bloodcell.evaluation.drawing import drawn, table, validation


def tried(scores: np.ndarray, positive: np.ndarray, goal: Goal) -> tuple[int, int]:
    """Hits and false alarms of the best of all thresholds, by counting."""
    pairs = []
    for threshold in [np.inf, *scores]:
        called = scores >= threshold
        pairs.append((int((called & positive).sum()), int((called & ~positive).sum())))
    negatives, positives = int((~positive).sum()), int(positive.sum())
    if goal.kind == "specificity":
        allowed = [(h, a) for h, a in pairs if round((negatives - a) / negatives, 9) >= goal.at]
        return max(allowed, key=lambda pair: (pair[0], -pair[1]))
    if goal.kind == "sensitivity":
        allowed = [(h, a) for h, a in pairs if round(h / positives, 9) >= goal.at]
        return min(allowed, key=lambda pair: (pair[1], pair[0]))
    return min(pairs, key=lambda pair: (round(goal.at * (positives - pair[0]) + pair[1], 9), -pair[0]))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=2, max_size=60), st.sampled_from(GOALS))
def test_the_threshold_is_the_best_of_all(pairs: list[tuple[int, bool]], goal: Goal) -> None:
    scores = np.array([score / 12 for score, _ in pairs])
    positive = np.array([sign for _, sign in pairs])
    positive[0], positive[1] = True, False
    ladder = Ladder.of(scores, positive)
    step = ladder.choose(goal)
    assert (int(ladder.hits[step]), int(ladder.alarms[step])) == tried(scores, positive, goal)
    called = scores >= ladder.thresholds[step]
    assert int((called & positive).sum()) == ladder.hits[step]
    assert int((called & ~positive).sum()) == ladder.alarms[step]


def test_a_goal_of_19_in_20_is_met_exactly() -> None:
    ladder = Ladder.of(np.arange(40.0), np.arange(40) >= 20)
    overlapping = Ladder.of(np.r_[np.arange(20.0), np.arange(20) + 19.0], np.arange(40) >= 20)
    assert ladder.alarms[ladder.choose(Goal("specificity", 0.95))] == 0
    step = overlapping.choose(Goal("specificity", 0.95))
    assert (overlapping.hits[step], overlapping.alarms[step]) == (20, 1)  # the tie at 19 is called as a whole
    step = overlapping.choose(Goal("specificity", 0.99))
    assert (overlapping.hits[step], overlapping.alarms[step]) == (19, 0)


def points(found: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return list(found["operating_points"]["per_class"][name]["points"])


@pytest.mark.parametrize("classes", [2, 3])
def test_figures_are_those_of_the_judged_split_at_the_threshold(classes: int) -> None:
    judged, known = drawn(0, 300, classes), validation(rows=400, classes=classes)
    found = judge(judged, known, resamples=20)
    assert found["operating_points"]["chosen_on"][0]["split"] == "val"
    for label, name in enumerate(judged.classes):
        positive, scores = judged.labels == label, judged.probabilities()[:, label]
        for point, goal in zip(points(found, name), GOALS, strict=True):
            assert (point["goal"], point["at"]) == (goal.kind, goal.at)
            called = scores >= point["thresholds"][0]
            assert point["sensitivity"]["value"] == pytest.approx(called[positive].mean())
            assert point["specificity"]["value"] == pytest.approx((~called)[~positive].mean())
            assert point["precision"]["value"] == pytest.approx(positive[called].mean())
            expected = wilson(called[positive].mean(), positive.sum(), 1.959963984540054)
            assert point["sensitivity"]["low"] == pytest.approx(expected.low)
            if goal.kind != "cost":
                assert point["on_validation"][goal.kind] >= goal.at - 1e-9


def test_groups_widen_the_intervals() -> None:
    alone, grouped = (judge(drawn(0, 300, patients=n), validation(), resamples=300) for n in (0, 15))
    wider = [
        b["specificity"]["high"] - b["specificity"]["low"] > a["specificity"]["high"] - a["specificity"]["low"]
        for a, b in zip(points(alone, "a"), points(grouped, "a"), strict=True)
    ]
    assert np.mean(wider) > 0.5
    for point in points(grouped, "a"):
        for name in ("sensitivity", "specificity", "precision"):
            assert point[name]["low"] <= point[name]["value"] <= point[name]["high"]


def test_classes_that_are_missing() -> None:
    logits = np.random.default_rng(0).normal(size=(60, 3))
    known = table(logits, np.arange(60) % 2, split="val", first=1000)
    found = judge(drawn(0), known, resamples=20)["operating_points"]["per_class"]
    assert found["c"] == {"left_out": "a validation split has no sample of the class", "points": []}
    assert len(found["a"]["points"]) == len(GOALS)
    only = table(logits, np.zeros(60), split="val", first=1000)
    found = judge(drawn(0), only, resamples=20)["operating_points"]["per_class"]
    assert found["a"]["left_out"] == "a validation split has no sample of another class"
    absent = table(logits, np.arange(60) % 2)
    point = judge(absent, validation(), resamples=20)["operating_points"]["per_class"]["c"]["points"][0]
    assert point["sensitivity"] == {"value": None, "low": None, "high": None}
    assert point["specificity"]["value"] > 0.8


def test_scores_that_are_all_alike_call_nothing() -> None:
    known = table(np.zeros((40, 2)), np.arange(40) % 2, split="val", first=1000)
    point = points(judge(drawn(0, classes=2), known, resamples=20), "a")[0]
    assert point["thresholds"] == [None]
    assert point["sensitivity"]["value"] == 0
    assert point["specificity"]["value"] == 1
    assert point["precision"]["value"] is None
