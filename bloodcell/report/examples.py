"""Images that a run got right and wrong, from its table of predictions, with thumbnails from its set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from bloodcell.evaluation.predictions import Predictions
from shards.format import DatasetInfo, read_samples
from shards.pictures import COLUMNS, Picture, pictures

SIDE = 176
"""Longer side of a thumbnail in pixels: shown at about 130."""

THUMBNAIL_BYTES = 9_000
"""JPEG bytes aimed at for each thumbnail: all of a report stay under 1 MB."""

MOST_WRONG = 24
MOST_RIGHT = 18


@dataclass(frozen=True)
class Example:
    """One sample: its picture (None without the set), key, class, predicted class and that one's probability."""

    picture: Picture | None
    key: str
    true: str
    predicted: str
    probability: float
    of_true: float


@dataclass(frozen=True)
class Examples:
    """The surest errors, and right ones of each class from the surest to the least sure; `errors` counts all errors."""

    wrong: list[Example]
    right: list[Example]
    errors: int


def examples(predictions: Predictions, folder: Path | None, info: DatasetInfo | None) -> Examples:
    """Choose examples from a table of predictions.

    Args:
        predictions: of one split.
        folder: the set that was predicted, None if it is not at hand.
        info: its dataset.json.

    Raises:
        BadInput: the set's sample table cannot be read.
    """
    probabilities = predictions.probabilities()
    predicted = predictions.predicted()
    sure = probabilities.max(axis=1) if len(predicted) else np.empty(0)
    missed = np.flatnonzero(predicted != predictions.labels)
    wrong = missed[np.argsort(-sure[missed], kind="stable")][:MOST_WRONG]
    right = _right(predictions, predicted, sure)
    chosen = [int(i) for i in (*wrong, *right)]
    shown = _pictures(predictions, chosen, folder, info)
    all_ = [
        Example(
            shown[place],
            predictions.keys[i],
            predictions.classes[int(predictions.labels[i])],
            predictions.classes[int(predicted[i])],
            float(sure[i]),
            float(probabilities[i, predictions.labels[i]]),
        )
        for place, i in enumerate(chosen)
    ]
    return Examples(all_[: len(wrong)], all_[len(wrong) :], len(missed))


def _right(predictions: Predictions, predicted: np.ndarray, sure: np.ndarray) -> list[int]:
    """Return right samples of each class at equal distances from the surest to the least sure."""
    present = np.unique(predictions.labels)
    each = max(1, min(6, MOST_RIGHT // max(1, len(present))))
    chosen: list[int] = []
    for label in present[:MOST_RIGHT]:
        hits = np.flatnonzero((predictions.labels == label) & (predicted == label))
        hits = hits[np.argsort(-sure[hits], kind="stable")]
        if len(hits):
            chosen += [int(i) for i in hits[np.unique(np.linspace(0, len(hits) - 1, each).astype(np.int64))]]
    return chosen


def _pictures(
    predictions: Predictions, rows: Sequence[int], folder: Path | None, info: DatasetInfo | None
) -> list[Picture | None]:
    """Return the pictures of some rows; None where the set is missing or is not the one that was predicted."""
    if folder is None or info is None or info.fingerprint != predictions.fingerprint:
        return [None] * len(rows)
    table = read_samples(folder, COLUMNS)
    ids = [int(predictions.ids[i]) for i in rows]
    if any(not 0 <= i < table.num_rows for i in ids):
        return [None] * len(rows)
    keys = table.column("key").take(pa.array(ids, pa.int64())).to_pylist()
    if keys != [predictions.keys[i] for i in rows]:
        return [None] * len(rows)
    return list(pictures(folder, info, ids, SIDE, THUMBNAIL_BYTES, table))
