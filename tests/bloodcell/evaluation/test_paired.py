"""Differences of models on the same samples: intervals that hold, exact tests that agree with enumeration."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest

from bloodcell.evaluation import metrics
from bloodcell.evaluation.mcnemar import exchange, holm, mcnemar
from bloodcell.evaluation.paired import OVERALL, PER_CLASS, differences, interval, measure
from tests.bloodcell.evaluation.tables import CLASSES, drawn


def test_a_difference_is_that_of_the_metrics_and_changes_sign_with_the_order() -> None:
    good, bad = drawn(skill=3), drawn(seed=1, skill=1)
    there = differences(measure(good), [measure(bad)], CLASSES)
    back = differences(measure(bad), [measure(good)], CLASSES)
    accuracy = [float((p.predicted() == p.labels).mean()) for p in (good, bad)]
    areas = [metrics.auroc(p.probabilities(), p.labels) for p in (good, bad)]
    assert there["overall"]["accuracy"]["value"] == pytest.approx(accuracy[0] - accuracy[1], abs=1e-9)
    assert there["overall"]["macro_auroc"]["value"] == pytest.approx(areas[0].mean() - areas[1].mean(), abs=1e-9)
    assert there["overall"]["nll"]["value"] == pytest.approx(good.losses().mean() - bad.losses().mean(), abs=1e-9)
    assert there["per_class"]["early"]["auroc"]["value"] == pytest.approx(areas[0][1] - areas[1][1], abs=1e-9)
    for name in OVERALL:
        ours, theirs = there["overall"][name], back["overall"][name]
        assert ours["value"] == pytest.approx(-theirs["value"])
        assert ours["low"] == pytest.approx(-theirs["high"])
        assert ours["low"] < ours["value"] < ours["high"]
    assert set(there["per_class"]["pro"]) == set(PER_CLASS)


def test_pairing_makes_the_interval_of_alike_models_narrow() -> None:
    first = drawn(400, skill=1)
    other = replace(first, logits=first.logits + np.random.default_rng(3).normal(0, 0.05, (400, 3)).astype(np.float32))
    paired = differences(measure(first), [measure(other)], ())["overall"]["accuracy"]
    independent = differences(measure(first), [measure(other, seed=1)], ())["overall"]["accuracy"]
    assert paired["high"] - paired["low"] < 0.5 * (independent["high"] - independent["low"])


def test_against_several_the_mean_counts() -> None:
    first, others = drawn(skill=3), [drawn(seed=1, skill=1), drawn(seed=2, skill=2)]
    found = differences(measure(first), [measure(p) for p in others], ())["overall"]["accuracy"]["value"]
    alone = [differences(measure(first), [measure(p)], ())["overall"]["accuracy"]["value"] for p in others]
    assert found == pytest.approx(np.mean(alone))


def test_the_same_model_twice_is_no_proof_of_equality() -> None:
    found = differences(measure(drawn(50)), [measure(drawn(50))], CLASSES)
    entry = found["overall"]["accuracy"]
    assert entry["value"] == 0
    assert entry["low"] == -entry["high"]
    assert 0.03 < entry["high"] < 0.1
    assert found["overall"]["nll"] == {"value": 0, "low": None, "high": None}
    few = differences(measure(drawn(50, group_size=25)), [measure(drawn(50, group_size=25))], CLASSES)
    assert few["per_class"]["early"]["recall"]["high"] > 0.5, "two groups hold next to no evidence"


def test_an_undefined_difference_has_no_interval() -> None:
    absent = drawn(30)
    absent = replace(absent, labels=np.minimum(absent.labels, 1))
    entry = differences(measure(absent), [measure(absent)], CLASSES)["per_class"]["pro"]["recall"]
    assert entry == {"value": None, "low": None, "high": None}


@pytest.mark.parametrize("group_size", [1, 5])
def test_intervals_cover_the_true_difference_at_the_stated_rate(group_size: int) -> None:
    """Two models, right with 0.85 and 0.75 on samples whose difficulty is shared by their group; 300 draws."""
    random = np.random.default_rng(5)
    groups, covered, times = 40, 0, 300
    for _ in range(times):
        shared = np.repeat(random.normal(size=groups), group_size)
        difficulty = (shared + random.normal(size=groups * group_size)) / np.sqrt(2)
        cuts = [1.0364, 0.6745]  # of a standard normal: 0.85 and 0.75 lie below
        right = np.stack([difficulty + random.normal(0, 1, len(difficulty)) < cut * np.sqrt(2) for cut in cuts])
        per_group = right.reshape(2, groups, group_size).mean(axis=2)
        gaps = per_group[0] - per_group[1]
        draws = gaps[random.integers(0, groups, (300, groups))].mean(axis=1)
        found = interval(float(gaps.mean()), draws, groups, 0.95, 1.0)
        covered += found.low <= 0.1 <= found.high
    assert 0.92 <= covered / times <= 0.995


def test_mcnemar_is_the_exact_binomial_test() -> None:
    first = np.array([True] * 12 + [False] * 3 + [True] * 30)
    second = np.array([False] * 12 + [True] * 3 + [True] * 30)
    found = mcnemar(first, second, np.arange(45))
    assert (found["only_first"], found["only_second"], found["grouped"]) == (12, 3, False)
    assert found["p"] == found["p_samples"] == pytest.approx(binomtest(12, 15).pvalue)
    same = mcnemar(first, first, np.arange(45))
    assert (same["only_first"], same["p"]) == (0, 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_exchange_by_group_agrees_with_enumeration(seed: int) -> None:
    balances = np.random.default_rng(seed).integers(-4, 5, 11)
    sums = [abs(sum(s * b for s, b in zip(signs, balances, strict=True))) for signs in product((1, -1), repeat=11)]
    share = np.mean(np.array(sums) >= abs(balances.sum()))
    assert exchange(balances) == pytest.approx(share, abs=1e-12)


def test_with_groups_alike_samples_count_once() -> None:
    """Forty samples of four patients, all lost by one model: not the evidence of forty patients."""
    first, second = np.ones(40, dtype=bool), np.zeros(40, dtype=bool)
    found = mcnemar(first, second, np.repeat(np.arange(4), 10))
    assert found["p_samples"] < 1e-10
    assert found["p"] == found["p_groups"] == pytest.approx(2 / 2**4)


def test_exchange_without_repeats_is_the_binomial_test() -> None:
    balances = np.array([1] * 30 + [-1] * 14 + [0] * 9)
    assert exchange(balances) == pytest.approx(binomtest(30, 44).pvalue, abs=1e-12)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
