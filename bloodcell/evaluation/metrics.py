"""Metrics from arrays: everything that a confusion matrix gives, for one or for many at once, and ranking metrics.

Undefined values are NaN. The rules, class by class:

- precision: 0 if the class has samples but is never predicted (scikit-learn's default); undefined if it has neither.
- recall: undefined for a class without samples. (scikit-learn says 0 there, which blames the model for the split.)
- F1 = 2 TP / (2 TP + FP + FN): undefined only if the class has neither samples nor predictions.
- specificity: undefined if every sample is of the class.
- AUROC, average precision: undefined if the class has no samples; AUROC also if every sample is of the class.

A macro mean runs over the classes where the value is defined. So macro precision and macro F1 are those of scikit-learn
without `labels=`, and macro recall is always its `balanced_accuracy_score`.
"""

from __future__ import annotations

import numpy as np


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return how many samples of each class (rows) were predicted as each class (columns), int64 [classes, classes]."""
    cells = labels.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def per_class(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Return precision, recall, f1 and specificity, each float64 [..., classes].

    Args:
        confusion: counts or weights [..., classes, classes], rows true, columns predicted.
    """
    true, predicted, hit, total = _margins(confusion)
    return {
        "precision": np.where((predicted == 0) & (true > 0), 0.0, _ratio(hit, predicted)),
        "recall": _ratio(hit, true),
        "f1": _ratio(2 * hit, true + predicted),
        "specificity": _ratio(total[..., None] - true - predicted + hit, total[..., None] - true),
    }


def overall(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Return the metrics of the whole set, each float64 [...].

    accuracy; balanced_accuracy (mean recall); macro_ and weighted_ precision, recall, f1 and specificity (weighted by
    the classes' samples); mcc (Matthews' coefficient for many classes, Gorodkin, Comput. Biol. Chem. 28:367, 2004);
    kappa (Cohen, Educ. Psychol. Meas. 20:37, 1960). mcc is 0 if one class only is predicted, as in scikit-learn; mcc
    and kappa are undefined if all samples and all predictions are of one class, and mcc whenever all samples are of
    one class (scikit-learn says 0, torchmetrics 1).

    Args:
        confusion: counts or weights [..., classes, classes], rows true, columns predicted.
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    true, predicted, hit, total = _margins(confusion)
    values = per_class(confusion)
    found = {"accuracy": _ratio(hit.sum(axis=-1), total), "balanced_accuracy": mean_defined(values["recall"])}
    for name in ("precision", "recall", "f1", "specificity"):
        found[f"macro_{name}"] = mean_defined(values[name])
        found[f"weighted_{name}"] = _ratio(np.where(true > 0, true * values[name], 0.0).sum(axis=-1), total)
    agreement = hit.sum(axis=-1) * total - (true * predicted).sum(axis=-1)
    free_true = total**2 - (true**2).sum(axis=-1)
    free_predicted = total**2 - (predicted**2).sum(axis=-1)
    mcc = np.where(free_predicted > 0, _ratio(agreement, np.sqrt(free_true) * np.sqrt(free_predicted)), 0.0)
    found["mcc"] = np.where(free_true > 0, mcc, np.nan)
    found["kappa"] = _ratio(agreement, total**2 - (true * predicted).sum(axis=-1))
    return found


def mean_defined(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis of the values that are not NaN; NaN if there is none."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))


def auroc(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the one-versus-rest area under the ROC curve of each class, float64 [classes]; ties count half.

    It is the share of pairs (sample of the class, other sample) in which the first has the larger score: Hanley and
    McNeil, Radiology 143:29, 1982. The macro value is `mean_defined` of it.

    Args:
        scores: floats [samples, classes], a class's probability or anything that rises with it.
        labels: integers [samples], class index.
    """
    return rankings(scores, labels)["auroc"]


def ranking_columns(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return the place of each sample in a table from which weighted ranking metrics are read, int64 [samples].

    The samples are sorted by score and cut into runs: samples of equal score share a run, and neighbouring runs of
    negatives only are one. A place is 2 * run + (1 for a positive sample). So there are at most two runs for each
    different score of a positive sample, and one more.

    Args:
        scores: floats [samples].
        positive: bool [samples].
    """
    if len(scores) == 0:
        return np.empty(0, dtype=np.int64)
    order = np.argsort(scores)  # samples of equal score share a run, so their order does not matter
    ordered, sign = scores[order], positive[order].astype(np.int64)
    block = np.cumsum(np.r_[True, ordered[1:] != ordered[:-1]]) - 1
    negative = np.bincount(block, weights=sign) == 0
    run = np.cumsum(np.r_[True, ~(negative[1:] & negative[:-1])]) - 1
    columns = np.empty(len(scores), dtype=np.int64)
    columns[order] = 2 * run[block] + sign
    return columns


def column_count(columns: np.ndarray) -> int:
    """Return how many columns a table for `ranking_columns` has: two for each run."""
    return (int(columns.max()) // 2 + 1) * 2 if len(columns) else 0


def auroc_of_columns(weights: np.ndarray) -> np.ndarray:
    """Return the AUROC for weights summed by the places of `ranking_columns`, float64 [2 * runs, batch] -> [batch]."""
    below, above = weights[0::2], weights[1::2]
    negatives = np.cumsum(below, axis=0)
    negatives -= below / 2
    return _ratio(np.einsum("rb,rb->b", above, negatives), above.sum(axis=0) * below.sum(axis=0))


def precision_of_columns(weights: np.ndarray) -> np.ndarray:
    """Return the average precision for the same weights, float64 [2 * runs, batch] -> [batch]."""
    hits = np.cumsum(weights[1::2][::-1], axis=0)
    found = np.cumsum(weights[0::2][::-1], axis=0)
    found += hits
    gain = weights[1::2][::-1] * hits
    np.divide(gain, found, out=gain, where=found > 0)
    return _ratio(gain.sum(axis=0), weights[1::2].sum(axis=0))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the one-versus-rest average precision of each class, float64 [classes].

    The sum over the distinct scores, falling, of the gain in recall times the precision there (no interpolation), as
    scikit-learn defines it. The macro value is `mean_defined` of it.

    Args:
        scores: floats [samples, classes].
        labels: integers [samples], class index.
    """
    return rankings(scores, labels)["average_precision"]


def rankings(scores: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return auroc and average_precision, each float64 [classes], from one sort for each class.

    Args:
        scores: floats [samples, classes].
        labels: integers [samples], class index.
    """
    found = {name: np.full(scores.shape[1], np.nan) for name in ("auroc", "average_precision")}
    for index in range(scores.shape[1]):
        columns = ranking_columns(scores[:, index], labels == index)
        counts = np.bincount(columns, minlength=column_count(columns)).astype(np.float64)[:, None]
        found["auroc"][index] = auroc_of_columns(counts)[0]
        found["average_precision"][index] = precision_of_columns(counts)[0]
    return found


def coarse(scores: np.ndarray, positive: np.ndarray, levels: int) -> np.ndarray:
    """Return scores as small integers that keep their order, int64 [samples]: fewer than 2 * levels different ones.

    The edges are scores of positives and scores of negatives, at equal steps in the numbers of each.

    Args:
        scores: floats [samples].
        positive: bool [samples].
        levels: how many parts each of the two is cut into.
    """
    edges = []
    for side in (scores[positive], scores[~positive]):
        if len(side):
            edges.append(np.sort(side)[np.arange(1, levels) * len(side) // levels])
    return np.searchsorted(np.unique(np.concatenate(edges)), scores, side="right")


def _margins(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return samples, predictions and hits of each class [..., classes] and the total [...], float64."""
    confusion = np.asarray(confusion, dtype=np.float64)
    hit = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    return true, predicted, hit, true.sum(axis=-1)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide; NaN where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator == 0, np.nan, numerator / denominator)
