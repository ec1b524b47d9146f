"""Tables of predictions that are drawn for the tests: calibrated by construction, with patients if wanted."""

from __future__ import annotations

import numpy as np

from bloodcell.evaluation.predictions import Predictions

NAMES = ["a", "b", "c", "d", "e"]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of each row."""
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def choose(random: np.random.Generator, probabilities: np.ndarray) -> np.ndarray:
    """A class for each row, drawn from its probabilities."""
    level = np.cumsum(probabilities, axis=1)
    return (level < random.random((len(level), 1))).sum(axis=1).clip(0, level.shape[1] - 1).astype(np.int32)


def table(
    logits: np.ndarray,
    labels: np.ndarray,
    groups: list[str] | None = None,
    split: str = "test",
    first: int = 0,
    fingerprint: str = "f00",
    run: str = "run",
) -> Predictions:
    """A table of predictions of these logits and labels; its ids begin with `first`."""
    rows, classes = np.shape(logits)
    return Predictions(
        np.arange(first, first + rows, dtype=np.int64),
        [f"{split}{i}" for i in range(rows)],
        np.asarray(labels, dtype=np.int32),
        groups if groups is not None else [""] * rows,
        np.asarray(logits, dtype=np.float32),
        NAMES[:classes],
        run,
        "set",
        split,
        fingerprint,
    )


def drawn(
    seed: int,
    rows: int = 300,
    classes: int = 3,
    temperature: float = 1.0,
    patients: int = 0,
    split: str = "test",
    first: int = 0,
    run: str = "run",
    fingerprint: str = "f00",
) -> Predictions:
    """Labels drawn from the softmax of logits that are then multiplied by `temperature`: 1 is calibrated."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, classes)) * 2
    labels = choose(random, softmax(logits))
    groups = [f"p{i % patients}" for i in range(rows)] if patients else None
    return table(logits * temperature, labels, groups, split, first, fingerprint, run)


def validation(seed: int = 100, **wanted: object) -> Predictions:
    """As `drawn`, a validation split that shares no sample with it."""
    return drawn(seed, **{"split": "val", "first": 10**6, **wanted})  # type: ignore[arg-type]
