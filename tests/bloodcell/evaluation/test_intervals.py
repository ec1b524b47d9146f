"""Intervals: known values, the same resamples whatever the chunks, and the truth covered at the stated rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]
from sklearn.metrics import average_precision_score, roc_auc_score

from bloodcell.evaluation import estimates, metrics, resample
from bloodcell.evaluation.estimates import Estimate, Estimates
from bloodcell.evaluation.intervals import Evidence, from_draws, student, wilson
from bloodcell.evaluation.resample import Statistic, Sums, Totals, bootstrap, cluster_index

Z = 1.959963984540054


@pytest.mark.parametrize(("hits", "n"), [(8, 10), (0, 12), (12, 12), (1, 300), (150, 300)])
def test_wilson_is_that_of_scipy(hits: int, n: int) -> None:
    expected = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    found = wilson(hits / n, n, Z)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_without_samples_knows_nothing() -> None:
    assert wilson(0.0, 0, Z).low == 0
    assert wilson(0.0, 0, Z).high == pytest.approx(1)


@pytest.mark.parametrize("degrees", [0.7, 1, 1.5, 2, 3, 7.25, 39.9, 40, 1e3, 1e7])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_student_is_that_of_scipy(degrees: float, level: float) -> None:
    assert student(level, degrees) == pytest.approx(stats.t.ppf(0.5 + level / 2, degrees), rel=1e-5)


def test_samples_without_a_group_are_groups_of_their_own() -> None:
    assert cluster_index(["b", "", "a", "b", ""]).tolist() == [0, 2, 1, 0, 3]
    assert cluster_index(["", "x", ""]).tolist() == [1, 0, 2]
    assert cluster_index(["x", "y", "x"]).tolist() == [0, 1, 0]


def resampled(cluster: np.ndarray, resamples: int = 100, seed: int = 0) -> np.ndarray:
    """The weights of the groups, [resamples, groups]."""
    return bootstrap([Statistic(lambda weights: {"w": weights.T.copy()}, resamples)], cluster, seed)["w"]


def test_resamples_are_drawn_with_replacement_and_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = np.arange(300) // 3
    weights = resampled(cluster, 4000)
    assert (weights.sum(axis=1) == 100).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(100), abs=0.1)
    assert weights.var() == pytest.approx(0.99, abs=0.02)
    monkeypatch.setattr(resample, "CHUNK_WEIGHTS", 300 * 7)
    np.testing.assert_array_equal(resampled(cluster, 4000), weights)
    np.testing.assert_array_equal(resampled(cluster, 50), weights[:50])
    assert (resampled(cluster, 50, seed=1) != weights[:50]).any()


@pytest.mark.parametrize(("groups", "columns"), [(5, 4), (200, 3), (400, 900)])
def test_sums_are_those_of_each_sample(groups: int, columns: int) -> None:
    random = np.random.default_rng(0)
    cluster = np.r_[np.arange(groups), random.integers(0, groups, 200)]
    column = random.integers(0, columns, len(cluster))
    weights = random.integers(0, 5, size=(groups, 6)).astype(np.uint8)
    expected = np.zeros((columns, 6))
    np.add.at(expected, column, weights[cluster])
    np.testing.assert_array_equal(Sums(cluster, column, columns)(weights), expected)
    values = random.normal(size=(len(cluster), 2))
    np.testing.assert_allclose(Totals(cluster, values)(weights), values.T @ weights[cluster], atol=1e-9)


def test_every_draw_is_the_metric_of_the_resampled_samples() -> None:
    random = np.random.default_rng(3)
    cluster = np.r_[np.arange(25), random.integers(0, 25, 60)]
    labels = random.integers(0, 3, len(cluster))
    scores = np.round(random.normal(size=(len(cluster), 3)) + np.eye(3)[labels], 1)
    predicted = scores.argmax(axis=1)
    losses = random.random(len(cluster))
    statistics = [
        estimates.decision_statistic(labels, predicted, cluster, 3, 20),
        estimates.ranking_statistic(labels, scores, cluster, 10),
        estimates.loss_statistic(losses, cluster, 20),
    ]
    draws = bootstrap(statistics, cluster, seed=5)
    assert len(draws["auroc"]) == 10
    for index, weights in enumerate(resampled(cluster, 10, seed=5)):
        rows = np.repeat(np.arange(len(cluster)), weights[cluster])
        confusion = metrics.confusion_matrix(labels[rows], predicted[rows], 3)
        for name, value in {**metrics.overall(confusion), **metrics.per_class(confusion)}.items():
            np.testing.assert_allclose(draws[name][index], value, atol=1e-12)
        for label in range(3):
            expected = roc_auc_score(labels[rows] == label, scores[rows, label])
            assert draws["auroc"][index, label] == pytest.approx(expected)
            expected = average_precision_score(labels[rows] == label, scores[rows, label])
            assert draws["average_precision"][index, label] == pytest.approx(expected)
        assert draws["nll"][index] == pytest.approx(losses[rows].mean())


def judged(
    labels: np.ndarray, predicted: np.ndarray, groups: list[str], classes: int, resamples: int = 200
) -> Estimates:
    cluster = cluster_index(groups)
    statistic = estimates.decision_statistic(labels, predicted, cluster, classes, resamples)
    return estimates.decisions(labels, predicted, cluster, classes, bootstrap([statistic], cluster, 0), 0.95)


def same(estimate: Estimate, value: float, n: float) -> bool:
    """Whether an estimate is `value` with Wilson's interval for `n`."""
    expected = wilson(value, n, Z)
    return (estimate[0], estimate[1].low, estimate[1].high) == pytest.approx((value, expected.low, expected.high))


def test_without_groups_proportions_have_wilsons_interval() -> None:
    labels = np.r_[np.zeros(40, int), np.ones(10, int)]
    predicted = labels.copy()
    predicted[:4] = 1
    found = judged(labels, predicted, [""] * 50, 2)
    assert same(found.overall["accuracy"], 0.92, 50)
    expected = {"recall": [(0.9, 40), (1.0, 10)], "precision": [(1.0, 36), (10 / 14, 14)]}
    expected["specificity"] = expected["recall"][::-1]
    for name, pairs in expected.items():
        for estimate, (value, n) in zip(found.per_class[name], pairs, strict=True):
            assert same(estimate, value, n)


def test_a_perfect_result_has_an_interval_that_groups_widen() -> None:
    labels = np.arange(200) % 4
    singles = judged(labels, labels, [""] * 200, 4)
    patients = judged(labels, labels, [f"p{i // 10}" for i in range(200)], 4)
    for name in ("accuracy", "macro_f1", "balanced_accuracy", "weighted_f1"):
        assert same(singles.overall[name], 1.0, 200)
        assert same(patients.overall[name], 1.0, 20)
    assert same(patients.per_class["recall"][0], 1.0, 20)
    for name in ("mcc", "kappa"):
        value, interval = patients.overall[name]
        assert value == interval.high == 1
        assert 0.5 < interval.low < wilson(1.0, 20, Z).low


def test_a_rare_class_widens_the_means_over_classes() -> None:
    labels = np.r_[np.zeros(500, int), np.ones(500, int), np.full(4, 2)]
    found = judged(labels, labels, [""] * len(labels), 3)
    assert found.overall["accuracy"][1].low > 0.99
    assert found.overall["macro_f1"][1].low < 0.93


def test_one_patient_tells_little_and_undefined_stays_undefined() -> None:
    labels = np.r_[np.zeros(90, int), np.ones(10, int)]
    predicted = np.zeros(100, int)
    found = judged(labels, predicted, ["only"] * 100, 3)
    assert same(found.overall["accuracy"], 0.9, 1)
    assert found.overall["accuracy"][1].high - found.overall["accuracy"][1].low > 0.7
    value, interval = found.per_class["recall"][2]
    assert math.isnan(value)
    assert math.isnan(interval.low)
    never = found.per_class["precision"][1]
    assert never[0] == never[1].low == 0
    assert never[1].high == pytest.approx(1)


def test_the_ends_enclose_the_value_and_stay_in_bounds() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        value, spread, groups = random.random(), random.random() / 4, random.integers(1, 30)
        draws = np.clip(value + random.normal(size=100) * spread, 0, 1)
        draws[:3] = np.nan
        found = from_draws(value, draws, Evidence(float(groups), 50.0), 0.95)
        assert 0 <= found.low <= value <= found.high <= 1
    loss = from_draws(0.1, random.exponential(0.1, 100), Evidence(5.0, math.inf), 0.95, (0.0, math.inf))
    assert 0 <= loss.low < 0.1 < loss.high < math.inf
    assert math.isnan(from_draws(0.1, np.full(9, 0.1), Evidence(1.0, math.inf), 0.95, (0.0, math.inf)).low)


def test_perfect_and_near_perfect_auroc() -> None:
    labels = np.r_[np.zeros(60, int), np.ones(12, int)]
    scores = np.stack([-np.arange(72.0), np.arange(72.0)], axis=1)
    cluster = np.arange(72)
    draws = bootstrap([estimates.ranking_statistic(labels, scores, cluster, 100)], cluster, 0)
    found = estimates.ranking(labels, scores, cluster, draws, 0.95)
    assert all(same(estimate, 1.0, 12) for estimate in found.per_class["auroc"])
    assert found.overall["macro_auroc"][1].low < 0.9


SHARES = np.array([0.5, 0.3, 0.2])


def simulated(random: np.random.Generator, groups: int, size: int, right: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions of `groups` patients; with several cells each they differ in mix and difficulty."""
    mix = random.dirichlet(SHARES * 5, size=groups) if size > 1 else np.tile(SHARES, (groups, 1))
    ease = random.beta(right * 20, (1 - right) * 20, size=(groups, 1)) if size > 1 else np.full((groups, 1), right)
    labels = (np.cumsum(mix, axis=1)[:, None, :] < random.random((groups, size, 1))).sum(axis=2).clip(0, 2)
    wrong = random.random((groups, size)) > ease
    predicted = np.where(wrong, (labels + random.integers(1, 3, size=labels.shape)) % 3, labels)
    return labels.ravel(), predicted.ravel()


@pytest.mark.parametrize(
    ("groups", "size", "right"),
    [(150, 1, 0.85), (150, 1, 0.98), (20, 8, 0.9), (8, 20, 0.9)],
    ids=["singles", "near perfect", "20 patients", "8 patients"],
)
def test_intervals_cover_the_truth(groups: int, size: int, right: float) -> None:
    random = np.random.default_rng(42)
    population = simulated(random, 40_000, size, right)
    truth = metrics.overall(metrics.confusion_matrix(*population, 3))
    names = [f"p{i // size}" for i in range(groups * size)]
    sets, width = 200, 0.0
    covered = {"accuracy": 0, "macro_f1": 0}
    for _ in range(sets):
        found = judged(*simulated(random, groups, size, right), names, 3, resamples=400)
        for name in covered:
            interval = found.overall[name][1]
            covered[name] += int(interval.low <= truth[name] <= interval.high)
        width += (found.overall["accuracy"][1].high - found.overall["accuracy"][1].low) / sets
    assert all(0.92 * sets <= count for count in covered.values()), covered
    # Wide enough is easy: the widths must also stay near what the spread between sets asks for.
    spread = np.std([np.mean(np.equal(*simulated(random, groups, size, right))) for _ in range(sets)])
    assert width < 2 * 2 * Z * spread


def rankable(random: np.random.Generator, groups: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of `groups` patients with a rare class; patients differ in mix and in how well they show it."""
    rare = random.beta(2, 8, size=(groups, 1)) if size > 1 else np.full((groups, 1), 0.2)
    labels = (random.random((groups, size)) < rare).astype(int).ravel()
    shift = np.repeat(random.normal(size=groups) * (0.5 if size > 1 else 0.0), size)
    score = labels * 1.5 + shift + random.normal(size=groups * size)
    return labels, np.stack([-score, score], axis=1)


def ranking_coverage(groups: int, size: int, sets: int) -> dict[str, float]:
    """In what share of drawn sets the intervals of both rankings hold the truth."""
    random = np.random.default_rng(11)
    labels, scores = rankable(random, 200_000 // size, size)
    truth = metrics.rankings(scores, labels)
    held = dict.fromkeys(truth, 0.0)
    cluster = np.repeat(np.arange(groups), size)
    for _ in range(sets):
        labels, scores = rankable(random, groups, size)
        draws = bootstrap([estimates.ranking_statistic(labels, scores, cluster, 300)], cluster, 0)
        found = estimates.ranking(labels, scores, cluster, draws, 0.95)
        for name, values in truth.items():
            interval = found.per_class[name][1][1]
            held[name] += (interval.low <= values[1] <= interval.high) / sets
    return held


def test_intervals_of_rankings_cover_the_truth() -> None:
    held = ranking_coverage(30, 10, sets=120)
    assert min(held.values()) >= 0.89, held


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "size"), [(200, 1), (1000, 1), (15, 30), (60, 10)])
def test_intervals_of_rankings_cover_the_truth_at_length(groups: int, size: int) -> None:
    held = ranking_coverage(groups, size, sets=800)
    assert min(held.values()) >= 0.92, held
