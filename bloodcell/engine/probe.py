"""Classifiers on frozen features: multinomial logistic regression and nearest neighbours, chosen on validation alone.

How well a plain classifier does on what a network sees says what that is worth before anything is trained. Both methods
are those by which features learned without labels are compared: Kornblith et al., Do Better ImageNet Models Transfer
Better?, CVPR 2019 (logistic regression by L-BFGS, L2 strength from a logarithmic grid); Wu et al., Unsupervised Feature
Learning via Non-Parametric Instance Discrimination, CVPR 2018 (weighted nearest neighbours).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from shards.errors import BadInput

STRENGTHS = tuple(float(f"{10**power:.3g}") for power in np.arange(-4.0, 2.0, 0.5))
"""Inverse strengths C of the L2 penalty that are tried, from the strongest penalty on."""
NEIGHBOURS = (1, 3, 5, 10, 20, 50, 100, 200)
TEMPERATURE = 0.07
"""A neighbour of cosine similarity s has exp(s / TEMPERATURE) votes."""
ITERATIONS = 200
WORSE = 2
"""Strengths in a row that must do worse than the best before no weaker penalty is tried."""
UNSEEN = -20.0
"""Logit, beside the smallest, of a class that has no training sample."""

Apply = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Probe:
    """A classifier on features.

    Attributes:
        logits: from features float32 [n, features] to float32 [n, classes].
        chosen: its setting, as {name: value}.
        tried: {name: value, loss, accuracy} on the validation samples for each setting.
        weight, bias: float32 [classes, features] and [classes] of a linear one; None for neighbours.
    """

    logits: Apply
    chosen: dict[str, float]
    tried: list[dict[str, float]]
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Samples:
    """Features float32 [n, features] and labels int64 [n]."""

    features: np.ndarray
    labels: np.ndarray


def linear_probe(training: Samples, validation: Samples, classes: int) -> Probe:
    """Return logistic regression; the penalty with the smallest validation loss is taken.

    The features are centred and divided by one number, their mean deviation: a deviation of each its own would blow up
    features that are hardly ever active. Both are part of the weights that are returned. From the strongest penalty on,
    each fit begins where the last one ended; the path ends where the loss has risen for some steps.

    Raises:
        BadInput: the training samples are all of one class.
    """
    seen = np.unique(training.labels)
    if len(seen) < 2:
        raise BadInput("all training samples are of one class", "probe", "take a split with two or more")
    mean = training.features.mean(axis=0, dtype=np.float64)
    deviation = float(np.sqrt(training.features.var(axis=0, dtype=np.float64).mean()))
    scale = max(deviation, float(np.finfo(np.float32).tiny))
    inputs = ((training.features - mean) / scale).astype(np.float32)
    model = LogisticRegression(max_iter=ITERATIONS, warm_start=True)
    best: Probe | None = None
    tried: list[dict[str, float]] = []
    for strength in STRENGTHS:
        model.set_params(C=strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the path is judged by the validation loss
            model.fit(inputs, training.labels)
        weight, bias = _plain(model, seen, classes, mean, scale)
        probe = Probe(_linear(weight, bias), {"C": strength}, tried, weight, bias)
        tried.append({"C": strength, **_judged(probe.logits(validation.features), validation.labels)})
        losses = [row["loss"] for row in tried]
        if losses[-1] == min(losses):
            best = probe
        elif len(losses) - 1 - int(np.argmin(losses)) >= WORSE:
            break
    assert best is not None
    return best


def _plain(
    model: LogisticRegression, seen: np.ndarray, classes: int, mean: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights float32 [classes, features] and biases float32 [classes] for features as they are."""
    own, intercept = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
    if len(seen) == 2:  # sklearn keeps the difference of two classes only
        own, intercept = np.concatenate([-own, own]) / 2, np.concatenate([-intercept, intercept]) / 2
    own = own / scale
    intercept = intercept - own @ mean
    weight = np.zeros((classes, own.shape[1]))
    bias = np.full(classes, intercept.min() + UNSEEN)
    weight[seen], bias[seen] = own, intercept
    return weight.astype(np.float32), bias.astype(np.float32)


def _linear(weight: np.ndarray, bias: np.ndarray) -> Apply:
    return lambda features: features @ weight.T + bias


def neighbour_probe(training: Samples, validation: Samples, classes: int) -> Probe:
    """Return a vote of the nearest training samples by cosine; the number with the smallest validation loss is taken.

    Logits are logarithms of the shares of votes; one vote more is spread evenly, so that no class is impossible.
    """
    counts = [count for count in NEIGHBOURS if count <= len(training.labels)]
    known, labels = _directions(training.features), np.eye(classes)[training.labels]

    def votes(features: np.ndarray, wanted: list[int]) -> list[np.ndarray]:
        parts = [_votes(rows, known, labels, wanted) for rows in _blocks(_directions(features))]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    found = votes(validation.features, counts)
    tried = [{"k": count, **_judged(logits, validation.labels)} for count, logits in zip(counts, found, strict=True)]
    k = int(min(tried, key=lambda row: row["loss"])["k"])
    return Probe(lambda features: votes(features, [k])[0], {"k": k}, tried)


def _votes(rows: np.ndarray, known: np.ndarray, labels: np.ndarray, counts: list[int]) -> list[np.ndarray]:
    """Return the logits [rows, classes], float32, of some directions for each number of neighbours."""
    likeness = rows @ known.T
    order = np.argsort(-likeness, axis=1, kind="stable")[:, : max(counts)]
    near = np.take_along_axis(likeness, order, axis=1).astype(np.float64)
    weights = np.exp((near - near[:, :1]) / TEMPERATURE)
    found = []
    for count in counts:
        share = np.einsum("nk,nkc->nc", weights[:, :count], labels[order[:, :count]])
        share /= weights[:, :count].sum(axis=1, keepdims=True)
        found.append(np.log((count * share + 1 / labels.shape[1]) / (count + 1)).astype(np.float32))
    return found


def _directions(features: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(length, np.finfo(np.float32).tiny)


def _blocks(rows: np.ndarray, size: int = 1024) -> list[np.ndarray]:
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]


def _judged(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the mean negative log-likelihood in nats and the accuracy."""
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    return {"loss": float(losses.mean()), "accuracy": float((wide.argmax(axis=1) == labels).mean())}


METHODS: dict[str, Callable[[Samples, Samples, int], Probe]] = {"linear": linear_probe, "knn": neighbour_probe}


def settings(probe: Probe) -> dict[str, Any]:
    """Return how a probe was chosen, as JSON values."""
    return {"chosen": probe.chosen, "tried": probe.tried}
