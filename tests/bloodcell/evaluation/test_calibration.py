"""Calibration: the textbook's sums, temperatures found again, errors repaired, intervals that hold the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from sklearn.metrics import brier_score_loss, log_loss

from bloodcell.evaluation import calibration
from bloodcell.evaluation.calibration import BINS, Calibration, brier_losses, calibration_error, equal_mass, equal_width
from bloodcell.evaluation.judged import Judged
from bloodcell.evaluation.predictions import Predictions
from bloodcell.evaluation.resample import bootstrap
from bloodcell.evaluation.temperature import fit_temperature
from bloodcell.evaluation.tuning import Tuning
from shards.errors import BadInput
from tests.bloodcell.evaluation.drawing import choose, drawn, softmax, table, validation


def section(predictions: Predictions, tuned_on: Predictions | None = None, resamples: int = 200) -> dict[str, Any]:
    tuning = Tuning.of(predictions, [tuned_on]) if tuned_on is not None else None
    found = Calibration(Judged.of(predictions, resamples, tuning))
    return found.section(bootstrap(found.statistics, found.judged.blocks, 0), 0.95)


def plain_error(confidence: np.ndarray, hit: np.ndarray, bins: int = BINS) -> float:
    """The definition of Guo et al., bin by bin: (low, high], and 0 in the first."""
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins) | ((confidence == 0) & (b == 0))
        if inside.any():
            total += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    return total


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=60))
def test_the_error_is_the_definitions_also_on_the_edges(pairs: list[tuple[int, bool]]) -> None:
    confidence, hit = np.array([p / 30 for p, _ in pairs]), np.array([h for _, h in pairs], dtype=float)
    found = calibration_error(equal_width(confidence), hit - confidence)
    assert found == pytest.approx(plain_error(confidence, hit), abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=100))
def test_bins_of_equal_mass_keep_order_and_ties(numbers: list[int]) -> None:
    values = np.array(numbers) / 20
    bins = equal_mass(values)
    assert bins.min() >= 0
    assert bins.max() < BINS
    order = np.argsort(values, kind="stable")
    assert (np.diff(bins[order]) >= 0).all()
    for value in set(numbers):
        assert len(set(bins[values == value / 20].tolist())) == 1


def test_bins_of_equal_mass_have_equal_mass() -> None:
    values = np.random.default_rng(0).random(1500)
    assert np.bincount(equal_mass(values)).tolist() == [100] * BINS
    assert np.bincount(equal_mass(np.arange(31.0))).max() <= 3


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_scores_agree_with_scikit_learn(classes: int) -> None:
    p = drawn(3, classes=classes, temperature=1.7)
    probabilities = p.probabilities()
    expected = brier_score_loss(p.labels, probabilities, labels=range(classes), scale_by_half=False)
    found = section(p)["before"]
    assert brier_losses(probabilities, p.labels).mean() == pytest.approx(expected, abs=1e-12)
    assert found["brier"]["value"] == pytest.approx(expected, abs=1e-9)
    assert found["nll"]["value"] == pytest.approx(log_loss(p.labels, probabilities), abs=1e-9)
    each = [plain_error(probabilities[:, k], p.labels == k) for k in range(classes)]
    assert found["classwise_ece"]["value"] == pytest.approx(np.mean(each), abs=1e-9)
    confidence, hit = probabilities.max(axis=1), p.predicted() == p.labels
    assert found["ece"]["value"] == pytest.approx(plain_error(confidence, hit), abs=1e-9)
    adaptive = calibration_error(equal_mass(confidence), hit - confidence)
    assert found["adaptive_ece"]["value"] == pytest.approx(adaptive, abs=1e-9)


def test_the_reliability_diagram_holds_every_sample() -> None:
    p = drawn(4)
    bins = section(p)["before"]["reliability"]
    assert [b["samples"] for b in bins] == np.bincount(
        equal_width(p.probabilities().max(axis=1)), minlength=15
    ).tolist()
    for b in bins:
        assert (b["confidence"] is None) == (b["samples"] == 0)
        if b["samples"]:
            assert b["from"] < b["confidence"] <= b["to"] + 1e-9
            assert b["accuracy"]["low"] <= b["accuracy"]["value"] <= b["accuracy"]["high"]


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_planted_temperature_is_found_and_the_error_repaired(temperature: float) -> None:
    judged, known = drawn(1, 4000, temperature=temperature), validation(rows=4000, temperature=temperature)
    found = section(judged, known)
    assert found["temperature"]["values"][0] == pytest.approx(temperature, rel=0.08)
    assert found["temperature"]["left_out"] is None
    assert found["temperature"]["fitted_on"] == [
        {"run": "run", "data": "set", "split": "val", "samples": 4000, "fingerprint": "f00"}
    ]
    before, after = found["before"]["ece"], found["after"]["ece"]
    if temperature != 1:
        assert before["low"] > 0.05
        assert before["low"] > 3 * before["expected_if_calibrated"]
        assert found["after"]["nll"]["value"] < found["before"]["nll"]["value"]
    assert after["value"] < 0.03
    assert after["low"] < 0.005
    assert found["after"]["classwise_ece"]["value"] < 0.03


@pytest.mark.parametrize("seed", range(5))
def test_the_temperature_is_the_minimum(seed: int) -> None:
    known = validation(seed, rows=80, temperature=2.0)
    best = minimize_scalar(lambda b: known.losses(np.exp(-b)).mean(), bounds=(-4, 4), method="bounded")
    fitted = fit_temperature(known)
    assert fitted == pytest.approx(np.exp(-best.x), rel=1e-3)
    assert known.losses(fitted).mean() <= best.fun + 1e-12
    assert fit_temperature(known) == fitted
    around = [known.losses(fitted * factor).mean() for factor in (0.999, 1.001)]
    assert min(around) > known.losses(fitted).mean()


def test_no_temperature_where_none_is_best() -> None:
    logits = np.eye(3)[np.arange(30) % 3]
    with pytest.raises(BadInput, match="surely right"):
        fit_temperature(table(logits, np.arange(30) % 3))
    with pytest.raises(BadInput, match="say nothing"):
        fit_temperature(table(logits, (np.arange(30) + 1) % 3))
    with pytest.raises(BadInput, match="say nothing"):
        fit_temperature(table(np.zeros((30, 3)), np.arange(30) % 3))
    with pytest.raises(BadInput, match="no validation samples"):
        fit_temperature(table(np.empty((0, 3)), np.empty(0)))
    known = table(logits, np.arange(30) % 3, split="val", first=1000)
    found = section(drawn(0), known)
    assert found["after"] is None
    assert found["temperature"]["values"] == found["temperature"]["fitted_on"] == []
    assert "surely right" in found["temperature"]["left_out"]


def test_without_validation_the_reason_is_there() -> None:
    found = section(drawn(0))
    assert found["after"] is None
    assert found["temperature"]["left_out"] == "no validation predictions were given"


@pytest.mark.parametrize("rows", [1, 2])
def test_one_and_two_samples(rows: int) -> None:
    found = section(drawn(0, rows), validation())
    ece = found["before"]["ece"]
    assert 0 <= ece["value"] <= 1
    assert (ece["low"] is None) == (rows == 1)
    assert found["after"]["nll"]["value"] > 0


def test_draws_of_gaps_are_those_of_the_resampled_samples() -> None:
    p = drawn(5, 90, patients=20)
    judged = Judged.of(p, 15)
    confidence = judged.probabilities.max(axis=1)
    gaps, bins = (judged.predicted == p.labels) - confidence, equal_width(confidence)
    part = calibration.Gaps("x", judged, [bins], [gaps])
    seen: list[np.ndarray] = []
    draw = part.statistics[0].draw

    def spy(weights: np.ndarray) -> dict[str, np.ndarray]:
        seen.extend(weights.T.copy())
        return draw(weights)

    object.__setattr__(part.statistics[0], "draw", spy)
    draws = bootstrap(part.statistics, judged.blocks, 1)
    sums = np.bincount(bins, gaps, BINS) / len(gaps)
    for index, weights in enumerate(seen):
        rows = np.repeat(np.arange(len(gaps)), weights[judged.cluster])
        again = np.bincount(bins[rows], gaps[rows], BINS) / len(rows)
        assert draws["x/distance"][index] == pytest.approx(np.abs(again - sums).sum())
        assert draws["x/signed"][index] == pytest.approx((np.sign(sums) * again).sum())


def covering(rows: int, patients: int, temperature: float, sets: int) -> tuple[dict[str, float], dict[str, float]]:
    """In what share of drawn splits the intervals hold the truth, and what calibrated networks are said to show."""
    random = np.random.default_rng(7)

    def population(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Logits and true probabilities; patients differ in how sure the network is of their cells."""
        sure = np.exp(random.normal(size=(count, 1, 1)) * 0.5) if size > 1 else np.ones((count, 1, 1))
        logits = random.normal(size=(count, size, 3)) * 2 * sure
        return (logits * temperature).reshape(-1, 3), softmax(logits.reshape(-1, 3))

    size = rows // patients if patients else 1
    logits, true = population(200_000 // size, size)
    shown = softmax(logits)
    confidence = shown.max(axis=1)
    right = true[np.arange(len(true)), shown.argmax(axis=1)]
    truth = {"ece": calibration_error(equal_width(confidence), right - confidence)}
    truth["brier"] = float((shown**2).sum(axis=1).mean() - 2 * (shown * true).sum(axis=1).mean() + 1)
    truth["nll"] = float(-(true * np.log(shown)).sum(axis=1).mean())
    held, calibrated = dict.fromkeys(truth, 0), 0.0
    for _ in range(sets):
        logits, true = population(patients or rows, size)
        names = [f"p{i // size}" for i in range(len(logits))] if patients else None
        found = section(table(logits, choose(random, true), names))["before"]
        for name, value in truth.items():
            held[name] += int(found[name]["low"] <= value <= found[name]["high"])
        calibrated += found["ece"]["expected_if_calibrated"] / sets
    return {name: count / sets for name, count in held.items()}, {**truth, "expected": calibrated}


@pytest.mark.parametrize(
    ("rows", "patients", "temperature"), [(300, 0, 1.0), (300, 0, 2.0), (300, 20, 2.0)], ids=["calibrated", "not", "20"]
)
def test_intervals_cover_the_truth(rows: int, patients: int, temperature: float) -> None:
    held, _ = covering(rows, patients, temperature, sets=100)
    assert min(held.values()) >= 0.88, held


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "patients"), [(150, 0), (1000, 0), (400, 40), (400, 10)])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_intervals_cover_the_truth_at_length(rows: int, patients: int, temperature: float) -> None:
    held, _ = covering(rows, patients, temperature, sets=600)
    assert min(held.values()) >= 0.92, held


def test_what_a_calibrated_network_shows_is_foretold() -> None:
    _, truth = covering(300, 0, 1.0, sets=40)
    shown = [section(drawn(seed, 300), resamples=20)["before"]["ece"]["value"] for seed in range(60)]
    assert truth["ece"] < 0.005
    assert truth["expected"] == pytest.approx(np.mean(shown), rel=0.15)
