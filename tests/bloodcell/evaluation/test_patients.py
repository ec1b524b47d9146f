"""Patients: who is one, what is voted, whose label counts, and intervals over patients that hold the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bloodcell.evaluation.intervals import wilson
from bloodcell.evaluation.judge import judge
from bloodcell.evaluation.judged import Judged
from bloodcell.evaluation.patients import Patients, patient_mask
from bloodcell.evaluation.predictions import Predictions
from tests.bloodcell.evaluation.drawing import table


def section(predictions: Predictions, resamples: int = 200) -> dict[str, Any]:
    return Patients(Judged.of(predictions, resamples)).section(0.95, resamples, 0)


def hospital(
    random: np.random.Generator, patients: int, cells: int, blur: float = 1.5, lean: float = 0.6
) -> Predictions:
    """Patients of two diagnoses, all of whose cells carry it; the network's errors come patient by patient."""
    labels = np.repeat(random.integers(0, 2, patients), cells)
    shift = np.repeat(random.normal(size=patients) * lean, cells)
    margin = np.where(labels == 1, 1.0, -1.0) + shift + random.normal(size=patients * cells) * blur
    names = [f"p{i // cells:03d}" for i in range(patients * cells)]
    return table(np.stack([-margin / 2, margin / 2], axis=1), labels, names)


def test_who_is_a_patient() -> None:
    names = ["7", "", "near:a/1.png", "3+4", "7"]
    assert patient_mask(names).tolist() == [True, False, False, True, True]
    logits = np.zeros((5, 2))
    found = section(table(logits, np.zeros(5), names))
    assert (found["patients"], found["joined"], found["samples_without_patient"]) == (2, 1, 2)
    assert [row["patient"] for row in found["rows"]] == ["3+4", "7"]
    assert [row["samples"] for row in found["rows"]] == [1, 2]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([""] * 6, "no sample has a named patient or slide"),
        (["near:x"] * 6, "no sample has a named patient or slide"),
        (["only"] * 5 + [""], "one patient only"),
    ],
)
def test_too_few_patients_are_a_reason_and_no_crash(names: list[str], reason: str) -> None:
    found = judge(table(np.zeros((6, 2)), np.arange(6) % 2, names), resamples=20)["patients"]
    assert found["left_out"] == reason
    assert found["diagnosis"] is found["fractions"] is found["rows"] is None


def test_mean_probability_and_vote() -> None:
    """Two cells hardly say 0, one surely says 1: the vote and the mean differ; a tie of votes goes by the mean."""
    logits = np.array([[0.1, 0], [0.1, 0], [0, 5], [4, 0], [0, 0.1], [3, 0], [3, 0]])
    names = ["p", "p", "p", "q", "q", "r", "r"]
    found = section(table(logits, [1, 1, 1, 0, 0, 0, 0], names))
    rows = {row["patient"]: row for row in found["rows"]}
    assert (rows["p"]["mean_probability"], rows["p"]["vote"]) == ("b", "a")
    assert (rows["q"]["mean_probability"], rows["q"]["vote"]) == ("a", "a")
    shown = 1 / (1 + np.exp([0.1, 0.1, -5]))
    assert rows["p"]["probabilities"][1] == pytest.approx(shown.mean(), abs=1e-6)
    assert rows["p"]["predicted_fractions"] == pytest.approx([2 / 3, 1 / 3])
    diagnosis = found["diagnosis"]
    assert (diagnosis["patients"], diagnosis["mixed"], diagnosis["vote"]["ties"]) == (3, 0, 1)
    assert diagnosis["mean_probability"]["confusion"] == [[2, 0], [0, 1]]
    assert diagnosis["vote"]["confusion"] == [[2, 0], [1, 0]]
    assert diagnosis["mean_probability"]["metrics"]["accuracy"]["value"] == 1
    assert diagnosis["vote"]["per_class"]["b"]["recall"]["value"] == 0


def test_patients_are_the_samples_of_the_intervals() -> None:
    p = hospital(np.random.default_rng(0), 30, 40)
    accuracy = section(p)["diagnosis"]["vote"]["metrics"]["accuracy"]
    expected = wilson(accuracy["value"], 30, 1.959963984540054)
    assert (accuracy["low"], accuracy["high"]) == pytest.approx((expected.low, expected.high))
    assert section(p) == section(p)


def test_mixed_patients_have_no_label_but_fractions() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 400)
    logits = random.normal(size=(400, 3)) + 3 * np.eye(3)[labels]
    names = [f"p{i % 20}" for i in range(400)]
    found = section(table(logits, labels, names))
    assert found["diagnosis"] == {
        "patients": 0,
        "mixed": 20,
        "left_out": "20 of 20 patients have samples of several classes, and so no one label",
    }
    predicted = logits.argmax(axis=1)
    patient = np.arange(400) % 20
    for label, name in enumerate("abc"):
        difference = np.array(
            [(predicted[patient == i] == label).mean() - (labels[patient == i] == label).mean() for i in range(20)]
        )
        entry = found["fractions"][name]
        assert entry["mean_absolute_error"]["value"] == pytest.approx(np.abs(difference).mean())
        assert entry["bias"]["value"] == pytest.approx(difference.mean())
        assert entry["largest_error"] == pytest.approx(np.abs(difference).max())
        low, high = entry["limits_of_agreement"]
        assert (low + high) / 2 == pytest.approx(difference.mean())
        assert high - low == pytest.approx(2 * 1.96 * difference.std(ddof=1), rel=1e-3)
        for kind in ("mean_absolute_error", "bias"):
            assert entry[kind]["low"] <= entry[kind]["value"] <= entry[kind]["high"]


def test_a_few_mixed_patients_are_left_out_and_counted() -> None:
    p = hospital(np.random.default_rng(1), 12, 5)
    labels = p.labels.copy()
    labels[0] = 1 - labels[0]
    diagnosis = section(table(p.logits, labels, p.groups))["diagnosis"]
    assert (diagnosis["patients"], diagnosis["mixed"], diagnosis["left_out"]) == (11, 1, None)
    assert np.sum(diagnosis["vote"]["confusion"]) == 11


def test_the_order_of_samples_does_not_matter() -> None:
    p = hospital(np.random.default_rng(2), 10, 6)
    order = np.random.default_rng(0).permutation(60)
    other = table(p.logits[order], p.labels[order], [p.groups[i] for i in order])
    one, two = section(p), section(other)
    assert one["diagnosis"]["vote"] == two["diagnosis"]["vote"]
    assert one["fractions"] == two["fractions"]


def covering(patients: int, cells: int, sets: int) -> dict[str, float]:
    """In what share of drawn hospitals the intervals hold the truth."""
    random = np.random.default_rng(3)

    def values(found: dict[str, Any]) -> dict[str, Any]:
        metrics = found["diagnosis"]["mean_probability"]["metrics"]
        wanted = {name: metrics[name] for name in ("accuracy", "macro_auroc", "macro_average_precision", "macro_f1")}
        fractions = found["fractions"]["b"]
        return {**wanted, "error": fractions["mean_absolute_error"], "bias": fractions["bias"]}

    truth = values(section(hospital(random, 30_000, cells), 1))
    held = dict.fromkeys(truth, 0)
    for _ in range(sets):
        for name, entry in values(section(hospital(random, patients, cells))).items():
            held[name] += int(entry["low"] <= truth[name]["value"] <= entry["high"])
    return {name: count / sets for name, count in held.items()}


def test_intervals_over_patients_cover_the_truth() -> None:
    held = covering(30, 10, sets=100)
    assert min(held.values()) >= 0.88, held


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "cells"), [(15, 40), (40, 10), (150, 5)])
def test_intervals_over_patients_cover_the_truth_at_length(patients: int, cells: int) -> None:
    held = covering(patients, cells, sets=800)
    assert min(held.values()) >= 0.92, held
