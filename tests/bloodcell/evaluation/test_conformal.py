"""Conformal sets: the promise is kept on average, ties and small validation splits err on the side of larger sets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloodcell.evaluation.conformal import METHODS, quantile_of, scores_of, sets_of
from bloodcell.evaluation.judge import judge
from tests.bloodcell.evaluation.drawing import choose, drawn, softmax, table, validation


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=7))
def test_scores_are_their_definition(parts: list[int]) -> None:
    p = np.array(parts) / sum(parts)
    lac, aps = (scores_of(method, p[None])[0] for method in METHODS)
    np.testing.assert_allclose(lac, 1 - p)
    np.testing.assert_allclose(aps, [p[p >= value].sum() for value in p])


def test_the_quantile_counts_one_sample_more() -> None:
    scores = np.arange(1.0, 20.0)  # 19 of them
    assert quantile_of(scores, 0.9) == 18
    assert quantile_of(scores, 0.95) == 19
    assert quantile_of(scores[:-1], 0.95) == math.inf
    assert quantile_of(np.empty(0), 0.5) == math.inf


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [30, 200])
def test_the_promise_is_kept_and_not_much_exceeded(method: str, rows: int) -> None:
    random = np.random.default_rng(0)
    shares, plain = [], []
    for _ in range(150):
        logits = random.normal(size=(rows + 400, 4)) * 3  # twice too sure: conformal sets do not mind
        labels, shown = choose(random, softmax(logits / 2)), softmax(logits)
        scores = scores_of(method, shown)[np.arange(len(labels)), labels]
        quantile = np.full(400, quantile_of(scores[:rows], 0.9))
        inside = sets_of(method, shown[rows:], quantile)
        shares.append(inside[np.arange(400), labels[rows:]].mean())
        below = scores_of(method, shown[rows:]) <= quantile[:, None]
        assert (inside >= below).all()
        plain.append(below[np.arange(400), labels[rows:]].mean())
    error = np.std(shares) / math.sqrt(len(shares))
    assert np.mean(shares) > 0.9 - 3 * error
    # Without the most likely class, which APS always lets in.
    assert np.mean(plain) < 0.9 + 1 / (rows + 1) + 3 * error


@pytest.mark.parametrize("patients", [0, 60])
def test_the_section_counts_what_is_in_the_sets(patients: int) -> None:
    judged, known = drawn(0, 600, patients=patients), validation(rows=500)
    found = judge(judged, known, resamples=200)["conformal"]
    assert found["calibrated_on"][0]["samples"] == 500
    assert "patient" in found["caveat"]
    assert [(s["method"], s["level"]) for s in found["sets"]] == [
        *(("lac", 0.9), ("lac", 0.95), ("aps", 0.9), ("aps", 0.95))
    ]
    p = judged.probabilities()
    for sets in found["sets"]:
        inside = sets_of(sets["method"], p, np.full(600, sets["quantiles"][0]))
        assert sets["coverage"]["value"] == pytest.approx(inside[np.arange(600), judged.labels].mean())
        assert sets["coverage"]["low"] <= sets["coverage"]["value"] <= sets["coverage"]["high"]
        assert sets["reached"] == (sets["coverage"]["high"] >= sets["level"])
        assert sets["reached"]
        assert sets["mean_size"]["value"] == pytest.approx(inside.sum(axis=1).mean())
        assert sets["mean_size"]["low"] < sets["mean_size"]["value"] < sets["mean_size"]["high"]
        assert sum(sets["sizes"].values()) == 600
        assert sets["single"] == pytest.approx((inside.sum(axis=1) == 1).mean())
        for label, name in enumerate(judged.classes):
            here = judged.labels == label
            assert sets["per_class"][name]["value"] == pytest.approx(inside[here, label].mean())
        if sets["method"] == "aps":
            assert "0" not in sets["sizes"]


def test_another_population_is_found_out() -> None:
    """Labels that have nothing to do with the images any more: coverage is not what validation promised."""
    judged = drawn(0, 600)
    shuffled = table(judged.logits, np.random.default_rng(1).permutation(judged.labels))
    found = judge(shuffled, validation(rows=500), resamples=50)["conformal"]
    assert not any(sets["reached"] for sets in found["sets"] if sets["method"] == "lac")


def test_few_validation_samples_let_every_class_in() -> None:
    found = judge(drawn(0), validation(rows=8), resamples=20)["conformal"]["sets"]
    for sets in found:
        assert sets["quantiles"] == [None]
        assert sets["coverage"]["value"] == 1
        assert sets["sizes"] == {"3": 300}


def test_without_validation_there_are_none() -> None:
    found = judge(drawn(0), resamples=20, untuned="the fold has no validation split")["conformal"]
    assert found["left_out"] == "the fold has no validation split"
    assert found["sets"] == []
