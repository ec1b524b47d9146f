"""Metrics: the same as scikit-learn where it defines them, undefined where they are undefined."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import metrics as reference

from bloodcell.evaluation import metrics

TOLERANCE = 1e-9


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Labels, scores (rounded: many ties) and classes; some classes have no samples, some no predictions."""
    random = np.random.default_rng(seed)
    classes, rows = int(random.integers(2, 9)), int(random.integers(2, 200))
    labels = random.choice(random.choice(classes, size=random.integers(1, classes + 1)), size=rows)
    scores = random.normal(size=(rows, classes))
    scores[np.arange(rows), labels] += random.choice([0.0, 1.0, 4.0])
    scores[:, random.random(classes) < 0.2] -= 5
    return labels, np.round(scores, int(random.integers(0, 3))), classes


@pytest.mark.parametrize("seed", range(60))
def test_decisions_agree_with_scikit_learn(seed: int) -> None:
    labels, scores, classes = random_case(seed)
    predicted = scores.argmax(axis=1)
    confusion = metrics.confusion_matrix(labels, predicted, classes)
    np.testing.assert_array_equal(confusion, reference.confusion_matrix(labels, predicted, labels=range(classes)))
    ours = {name: float(value) for name, value in metrics.overall(confusion).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = {
            "accuracy": reference.accuracy_score(labels, predicted),
            "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
            "macro_recall": reference.balanced_accuracy_score(labels, predicted),
            "macro_precision": reference.precision_score(labels, predicted, average="macro"),
            "macro_f1": reference.f1_score(labels, predicted, average="macro"),
            "weighted_precision": reference.precision_score(labels, predicted, average="weighted"),
            "weighted_recall": reference.recall_score(labels, predicted, average="weighted"),
            "weighted_f1": reference.f1_score(labels, predicted, average="weighted"),
            "mcc": reference.matthews_corrcoef(labels, predicted),
            "kappa": reference.cohen_kappa_score(labels, predicted),
        }
    if len(np.unique(labels)) == 1:
        assert np.isnan(ours.pop("mcc"))
        theirs.pop("mcc")
    present = np.unique(labels)
    each = {
        label: reference.recall_score(labels != label, predicted != label, zero_division=np.nan)
        for label in range(classes)
    }
    theirs["macro_specificity"] = np.nanmean(list(each.values()))
    theirs["weighted_specificity"] = sum((labels == label).mean() * each[label] for label in present)
    assert ours == pytest.approx(theirs, abs=TOLERANCE, nan_ok=True)


@pytest.mark.parametrize("seed", range(60))
def test_classes_agree_with_scikit_learn(seed: int) -> None:
    labels, scores, classes = random_case(seed)
    predicted = scores.argmax(axis=1)
    ours = metrics.per_class(metrics.confusion_matrix(labels, predicted, classes))
    precision, recall, f1, support = reference.precision_recall_fscore_support(
        labels, predicted, labels=range(classes), zero_division=0
    )
    given = np.bincount(predicted, minlength=classes)
    neither = (support == 0) & (given == 0)
    np.testing.assert_allclose(ours["precision"], np.where(neither, np.nan, precision), atol=TOLERANCE)
    np.testing.assert_allclose(ours["recall"], np.where(support == 0, np.nan, recall), atol=TOLERANCE)
    np.testing.assert_allclose(ours["f1"], np.where(neither, np.nan, f1), atol=TOLERANCE)
    for index in range(classes):
        if (labels != index).any():
            expected = reference.recall_score(labels != index, predicted != index)
            assert ours["specificity"][index] == pytest.approx(expected, abs=TOLERANCE)
        else:
            assert np.isnan(ours["specificity"][index])


@pytest.mark.parametrize("seed", range(60))
def test_rankings_agree_with_scikit_learn(seed: int) -> None:
    labels, scores, classes = random_case(seed)
    areas, precisions = metrics.auroc(scores, labels), metrics.average_precision(scores, labels)
    for index in range(classes):
        positive = labels == index
        if positive.any():
            expected = reference.average_precision_score(positive, scores[:, index])
            assert precisions[index] == pytest.approx(expected, abs=TOLERANCE)
        else:
            assert np.isnan(precisions[index])
        if positive.any() and not positive.all():
            expected = reference.roc_auc_score(positive, scores[:, index])
            assert areas[index] == pytest.approx(expected, abs=TOLERANCE)
        else:
            assert np.isnan(areas[index])


def test_macro_auroc_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels = np.r_[np.arange(4), random.integers(0, 4, 100)]
    scores = random.random((104, 4))
    scores /= scores.sum(axis=1, keepdims=True)
    expected = reference.roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert metrics.mean_defined(metrics.auroc(scores, labels)) == pytest.approx(expected, abs=TOLERANCE)


def test_two_classes_and_perfect_reversed_and_constant_scores() -> None:
    labels, score = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    assert metrics.auroc(np.stack([1 - score, score], axis=1), labels).tolist() == [1, 1]
    assert metrics.auroc(np.stack([score, 1 - score], axis=1), labels).tolist() == [0, 0]
    assert metrics.auroc(np.full((4, 2), 0.5), labels).tolist() == [0.5, 0.5]
    assert metrics.average_precision(np.full((4, 2), 0.5), labels).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("seed", range(20))
def test_weighted_rankings_agree_with_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    positive = np.r_[True, False, random.random(60) < 0.3]
    scores = np.round(random.normal(size=62) + positive, 1)
    weights = random.integers(0, 4, size=62)
    weights[:2] = 1
    columns = metrics.ranking_columns(scores, positive)
    summed = np.bincount(columns, weights=weights, minlength=metrics.column_count(columns))
    expected = reference.roc_auc_score(positive, scores, sample_weight=weights)
    assert metrics.auroc_of_columns(summed[:, None])[0] == pytest.approx(expected, abs=TOLERANCE)
    expected = reference.average_precision_score(positive, scores, sample_weight=weights)
    assert metrics.precision_of_columns(summed[:, None])[0] == pytest.approx(expected, abs=TOLERANCE)


def test_runs_are_as_many_as_scores_of_positives() -> None:
    scores = np.r_[np.linspace(0, 1, 500), np.linspace(2, 3, 100)]
    assert metrics.column_count(metrics.ranking_columns(scores, np.arange(600) >= 500)) == 2 * 101


def test_a_batch_of_matrices_gives_what_each_gives() -> None:
    batch = np.random.default_rng(0).integers(0, 4, size=(2, 7, 4, 4))
    batch[:, :, 2] = 0
    for compute in (metrics.overall, metrics.per_class):
        together = compute(batch)
        for i, j in np.ndindex(2, 7):
            for name, value in compute(batch[i, j]).items():
                np.testing.assert_array_equal(together[name][i, j], value)


def test_one_class_only() -> None:
    found = metrics.overall(np.array([[5, 0], [0, 0]]))
    assert found["accuracy"] == found["macro_f1"] == found["balanced_accuracy"] == 1
    assert np.isnan(found["mcc"])
    assert np.isnan(found["kappa"])
    single = metrics.per_class(np.array([[3]]))
    assert single["recall"].tolist() == [1]
    assert np.isnan(single["specificity"][0])


def test_a_class_never_predicted_counts_and_a_class_that_is_not_there_does_not() -> None:
    confusion = np.array([[8, 0, 0], [2, 0, 0], [0, 0, 0]])
    found, classes = metrics.overall(confusion), metrics.per_class(confusion)
    np.testing.assert_allclose(classes["precision"], [0.8, 0, np.nan])
    np.testing.assert_allclose(classes["recall"], [1, 0, np.nan])
    assert found["macro_precision"] == pytest.approx(0.4)
    assert found["mcc"] == 0
    assert found["kappa"] == 0


def test_nothing_is_undefined() -> None:
    assert all(np.isnan(value) for name, value in metrics.overall(np.zeros((3, 3))).items() if name != "mcc")
    assert np.isnan(metrics.auroc(np.empty((0, 2)), np.empty(0, dtype=int))).all()
    assert np.isnan(metrics.average_precision(np.empty((0, 2)), np.empty(0, dtype=int))).all()


def test_counts_of_large_sets_do_not_overflow() -> None:
    confusion = np.array([[400_000_000, 1], [1, 400_000_000]])
    assert metrics.overall(confusion)["mcc"] == pytest.approx(1 - 2 / 400_000_001, abs=1e-12)
