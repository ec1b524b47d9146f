"""Which weights made a table of predictions: a note beside it, so that a table is used again only where it still holds.

RUN/predictions/test.parquet   the table
RUN/predictions/test.json      sha256 of the table and of the weights, fingerprint of the set, how it was made
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bloodcell.evaluation.predictions import Predictions, read_predictions, write_predictions
from shards.atomic import write_json
from shards.errors import BadInput

SCHEMA = "bloodcell/predictions-source/1"


@dataclass(frozen=True)
class Source:
    """What a table follows from.

    Attributes:
        weights: sha256 of the weights file.
        fingerprint: of the shard set.
        split: the set's name of the split.
        orientations: in how many of the eight orientations each image was shown.
        labels: digest of the label map, "" without one.
    """

    weights: str
    fingerprint: str
    split: str
    orientations: int = 1
    labels: str = ""


SAID = {
    "weights": "it was made by other weights",
    "fingerprint": "it is of another set",
    "split": "it is of another split",
    "orientations": "the images were shown in other orientations",
    "labels": "it was made with another label map",
}


def write_sourced(path: Path, predictions: Predictions, source: Source, precision: str) -> None:
    """Write a table and the note of its source; a crash between the two leaves a table that is not used again.

    Args:
        path: of the table, NAME.parquet.
        predictions: the table.
        source: what it follows from.
        precision: of the computation, for the reader.

    Raises:
        EnvironmentFault: the disk is full or fails.
    """
    write_predictions(path, predictions)
    note = {"schema": SCHEMA, "table": digest(path), **asdict(source), "precision": precision}
    write_json(path.with_suffix(".json"), note)


def read_sourced(path: Path, wanted: Source) -> Predictions | str:
    """Return the table at `path` if it is whole and follows from `wanted`; else why it does not, as a clause."""
    if not path.exists():
        return "there is none yet"
    note = _note(path.with_suffix(".json"))
    if note is None:
        return "no note says which weights made it"
    for field in fields(Source):
        if note.get(field.name) != getattr(wanted, field.name):
            return SAID[field.name]
    if note.get("table") != digest(path):
        return "the file is not the one that was written"
    try:
        return read_predictions(path)
    except BadInput as error:
        return error.what


def digest(path: Path) -> str:
    """Return the sha256 of a file; raises BadInput if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"the file cannot be read: {error.strerror}", path) from error


def _note(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) and value.get("schema") == SCHEMA else None
