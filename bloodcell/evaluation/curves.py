"""Curves of predictions, one class against the others, as few points: for places that draw them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bloodcell.evaluation.predictions import Predictions

POINTS = 101
"""Points of a curve at most: a page of them loads quickly, and nobody sees more."""


def roc_points(predictions: Predictions) -> list[tuple[str, float, float]]:
    """Return (class, false positive rate, recall) along each class's ROC curve, both ascending.

    Classes without samples, or that all samples are of, have none.
    """
    from sklearn.metrics import roc_curve

    found = []
    for name, truth, scores in _each(predictions):
        wrong, right, _ = roc_curve(truth, scores)
        found += [(name, float(wrong[i]), float(right[i])) for i in _spread(wrong, right)]
    return found


def precision_recall_points(predictions: Predictions) -> list[tuple[str, float, float]]:
    """Return (class, recall, precision) along each class's precision-recall curve, recall ascending."""
    from sklearn.metrics import precision_recall_curve

    found = []
    for name, truth, scores in _each(predictions):
        precision, recall, _ = (values[::-1] for values in precision_recall_curve(truth, scores))
        found += [(name, float(recall[i]), float(precision[i])) for i in _spread(recall, precision)]
    return found


def _each(predictions: Predictions) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    scores = predictions.probabilities()
    for index, name in enumerate(predictions.classes):
        truth = predictions.labels == index
        if 0 < truth.sum() < len(truth):
            yield name, truth, scores[:, index]


def _spread(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the indices of at most POINTS points that lie about evenly along a curve, both ends among them."""
    if len(x) <= POINTS:
        return np.arange(len(x))
    way = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    return np.unique(np.searchsorted(way, np.linspace(0.0, way[-1], POINTS)))
