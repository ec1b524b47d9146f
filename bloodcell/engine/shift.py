"""The shift report of a run on another set: images, features and classes beside those of the run's own test split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bloodcell.engine.agree import on_first_rank
from bloodcell.engine.features import image_quantities, penultimate, sample
from bloodcell.engine.inference import split_ids
from bloodcell.engine.subject import Subject
from bloodcell.evaluation import shift
from bloodcell.evaluation.predictions import Predictions
from shards.atomic import write_json

SCHEMA = "bloodcell/shift/1"
IMAGES = 400
"""Images of each set that are looked at."""
OWN = "test"
"""The run's own split that another set is compared with: images that it was not trained on."""


def shift_report(
    subject: Subject, own: Subject, name: str, predictions: Predictions | None, anew: bool
) -> dict[str, Any] | None:
    """Write FOLDER/shift-<split>.json and return what it holds on the first rank. Collective.

    Args:
        subject: the run on the other set.
        own: the same run on its own set; what needs that set is left out (None) where it is not at hand.
        name: split of the other set.
        predictions: of that split, on the first rank.
        anew: predict the own test split although an older table holds.
    """
    before = own.table(OWN, anew)[0] if own.info is not None else None

    def report() -> dict[str, Any]:
        assert predictions is not None
        ids = split_ids(subject.shards, subject.split(name))
        labels = np.asarray(subject.shards.index["label"][ids])
        left_out = {} if subject.labels is None else subject.labels.left_out(labels)
        images = None if own.info is None else _images(subject, own, predictions.ids)
        found = {
            "schema": SCHEMA,
            "split": name,
            "compared_with": OWN,
            "left_out": left_out,
            "quantities": None if images is None else images[0],
            "features": None if images is None else images[1],
            "drop": None if before is None else shift.drop(before, predictions),
        }
        write_json(_path(subject, name), found)
        return found

    return on_first_rank(subject.ranks, report)


def _path(subject: Subject, name: str) -> Path:
    return subject.folder / f"shift-{name.replace('/', '-')}.json"


def _images(subject: Subject, own: Subject, ids: np.ndarray) -> tuple[dict[str, Any], dict[str, Any] | None]:
    theirs = sample(ids, IMAGES)
    ours = sample(split_ids(own.shards, own.split(OWN)), IMAGES)
    quantities = shift.quantities(image_quantities(own.shards, ours), image_quantities(subject.shards, theirs))
    if min(len(ours), len(theirs)) < 2:
        return quantities, None
    before = penultimate(own.inference, subject.model, ours)
    return quantities, shift.feature_distance(before, penultimate(subject.inference, subject.model, theirs))
