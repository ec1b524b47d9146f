"""Selective prediction: areas and risks by averaging over every order of ties, thresholds from validation."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloodcell.evaluation.judge import judge
from bloodcell.evaluation.selective import Risks, confidence_columns, threshold_of
from tests.bloodcell.evaluation.drawing import drawn, table, validation


def risks_of(confidence: np.ndarray, wrong: np.ndarray) -> Risks:
    columns, runs = confidence_columns(confidence, wrong)
    return Risks(np.bincount(columns, minlength=2 * runs).astype(float)[:, None])


def every_order(confidence: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """The mean over all orders that confidence allows of the risks at 1/n ... 1."""
    curves = []
    for order in permutations(range(len(wrong))):
        ordered = confidence[list(order)]
        if (np.diff(ordered) <= 0).all():
            curves.append(np.cumsum(wrong[list(order)]) / np.arange(1, len(wrong) + 1))
    return np.mean(curves, axis=0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6))
def test_area_and_risks_are_means_over_the_orders_of_ties(pairs: list[tuple[int, bool]]) -> None:
    confidence, wrong = np.array([c / 4 for c, _ in pairs]), np.array([w for _, w in pairs])
    expected, found = every_order(confidence, wrong), risks_of(confidence, wrong)
    assert found.aurc()[0] == pytest.approx(expected.mean(), abs=1e-12)
    for place, risk in enumerate(expected, start=1):
        assert found.at(place / len(pairs))[0] == pytest.approx(risk, abs=1e-12)
    best = every_order(-wrong.astype(float), wrong)
    assert found.best()[0] == pytest.approx(best.mean(), abs=1e-12)


def test_area_of_many_samples() -> None:
    random = np.random.default_rng(0)
    confidence, wrong = random.random(5000), random.random(5000) < 0.2
    order = np.argsort(-confidence)
    curve = np.cumsum(wrong[order]) / np.arange(1, 5001)
    found = risks_of(confidence, wrong)
    assert found.aurc()[0] == pytest.approx(curve.mean(), abs=1e-12)
    assert found.at(0.9)[0] == pytest.approx(curve[4499], abs=1e-12)


def test_weights_are_repeated_samples() -> None:
    random = np.random.default_rng(1)
    confidence, wrong = np.round(random.random(200), 1), random.random(200) < 0.3
    columns, runs = confidence_columns(confidence, wrong)
    weights = random.integers(0, 3, 200)
    sums = np.bincount(columns, weights=weights, minlength=2 * runs)[:, None]
    rows = np.repeat(np.arange(200), weights)
    again = risks_of(confidence[rows], wrong[rows])
    assert Risks(sums).aurc()[0] == pytest.approx(again.aurc()[0])
    assert Risks(sums).at(0.8)[0] == pytest.approx(again.at(0.8)[0])


def test_the_section_says_what_handing_over_brings() -> None:
    judged, known = drawn(0, 500, patients=50), validation(rows=500)
    found = judge(judged, known, resamples=300)["selective"]
    assert found["error_rate"] == pytest.approx((judged.predicted() != judged.labels).mean())
    assert found["aurc_best"] < found["aurc"]["value"] < found["error_rate"]
    assert found["curve"]["risk"][-1] == found["error_rate"]
    assert len(found["curve"]["coverage"]) == len(found["curve"]["risk"]) == 100
    for entry in (found["aurc"], *(at["accuracy"] for at in found["at_coverage"])):
        assert entry["low"] < entry["value"] < entry["high"]
    accuracies = [at["accuracy"]["value"] for at in found["at_coverage"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[-1] > 1 - found["error_rate"]
    confidence = judged.probabilities().max(axis=1)
    for point in found["thresholds"]["points"]:
        assert (known.probabilities().max(axis=1) >= point["thresholds"][0]).mean() >= point["coverage"]
        inside = confidence >= point["thresholds"][0]
        assert point["kept"]["value"] == pytest.approx(inside.mean())
        assert point["accuracy"]["value"] == pytest.approx((judged.predicted() == judged.labels)[inside].mean())


def test_without_validation_only_the_thresholds_are_missing() -> None:
    found = judge(drawn(0), resamples=20)["selective"]
    assert found["aurc"]["value"] > 0
    assert found["thresholds"] == {
        "left_out": "no validation predictions were given",
        "chosen_on": [],
        "points": [],
    }


def test_nothing_wrong_and_nothing_sure() -> None:
    labels = np.arange(40) % 2
    right = judge(table(np.eye(2)[labels], labels), resamples=20)["selective"]
    assert right["aurc"]["value"] == right["aurc_best"] == 0
    assert right["aurc"]["high"] > 0
    flat = judge(table(np.zeros((40, 2)), labels), resamples=20)["selective"]
    assert flat["curve"]["risk"] == [0.5] * 100
    assert flat["aurc"]["value"] == pytest.approx(0.5)


def test_thresholds_keep_at_least_what_they_promise() -> None:
    values = np.array([0.9, 0.9, 0.7, 0.5, 0.5])
    assert [threshold_of(values, c) for c in (0.01, 0.4, 0.41, 0.6, 0.8, 1.0)] == [0.9, 0.9, 0.7, 0.7, 0.5, 0.5]
