"""Temperature scaling: one number by which logits are divided, so that confidence means accuracy.

Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, ICML 2017, section 4.2. With b = 1 / T the
mean negative log-likelihood is convex in b, its slope is the mean of E_p[z] - z_label and its curvature the mean
variance of the logits under p, so Newton's method in a bracket finds the one minimum, the same on every run.
"""

from __future__ import annotations

import numpy as np

from bloodcell.evaluation.predictions import BLOCK, Predictions
from shards.errors import BadInput

SMALLEST, LARGEST = 0.01, 100.0
"""A temperature beyond these bounds says that there is no best one."""
STEPS = 200
TOLERANCE = 1e-12


def fit_temperature(validation: Predictions) -> float:
    """Return the temperature with the smallest negative log-likelihood on `validation`.

    Raises:
        BadInput: there are no samples, or no temperature is best: every label has the largest logit (the smaller, the
            better), or the logits say nothing about the labels (the larger, the better).
    """
    if not len(validation.ids):
        raise BadInput("no validation samples to fit a temperature on", validation.split)
    low, high = 1 / LARGEST, 1 / SMALLEST
    if _slope(validation, low)[0] >= 0:
        raise BadInput("no temperature is best: the logits say nothing about the labels", validation.split)
    if _slope(validation, high)[0] <= 0:
        raise BadInput("no temperature is best: every validation sample is surely right", validation.split)
    scale = 1.0
    for _ in range(STEPS):
        slope, curvature = _slope(validation, scale)
        if slope > 0:
            high = scale
        else:
            low = scale
        following = scale - slope / curvature if curvature > 0 else 0.0
        if not low < following < high:
            following = float(np.sqrt(low * high))
        moved, scale = abs(following - scale), following
        if moved <= TOLERANCE * scale:
            break
    return float(1 / scale)


def _slope(predictions: Predictions, scale: float) -> tuple[float, float]:
    """Return the first and second derivative of the mean loss in the scale of the logits."""
    slope = curvature = 0.0
    for begin in range(0, len(predictions.ids), BLOCK):
        logits = predictions.logits[begin : begin + BLOCK].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        shares = np.exp(scale * logits)
        shares /= shares.sum(axis=1, keepdims=True)
        mean = (shares * logits).sum(axis=1)
        labels = predictions.labels[begin : begin + BLOCK, None].astype(np.int64)
        slope += float((mean - np.take_along_axis(logits, labels, axis=1)[:, 0]).sum())
        curvature += float(((shares * logits**2).sum(axis=1) - mean**2).sum())
    return slope / len(predictions.ids), curvature / len(predictions.ids)
