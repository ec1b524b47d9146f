"""The folder of a combined result: several runs as one (an ensemble, pooled folds), read like the folder of a run.

FOLDER/combined.json        kind, the runs and their weights, the set
FOLDER/predictions/…        tables, as in a run folder
FOLDER/evaluation.json      as in a run folder
FOLDER/together.json        what the combination gains over its members, or the folds one by one, split by split
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bloodcell.evaluation.predictions import Predictions, read_predictions
from shards.atomic import disk_errors, write_json
from shards.errors import BadInput

SCHEMA = "bloodcell/combined/1"
FILE = "combined.json"
TOLD_SCHEMA = "bloodcell/together/1"
TOLD = "together.json"


@dataclass(frozen=True)
class Combined:
    """What a combined result is made of.

    Attributes:
        kind: ensemble, or folds.
        runs: paths of the runs, as given.
        weights: sha256 of each run's weights.
        orientations: in how many of the eight orientations each image was shown.
        data: path of the set that was predicted.
        fingerprint: of that set.
        classes: in index order.
    """

    kind: str
    runs: list[str]
    weights: list[str]
    orientations: int
    data: str
    fingerprint: str
    classes: list[str]


def default_folder(kind: str, runs: Sequence[Path], identity: Sequence[str]) -> Path:
    """Return `<kind>-<hash of identity>` beside the first run: the same command finds its result again."""
    name = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:8]
    return runs[0].resolve().parent / f"{kind}-{name}"


def write_combined(folder: Path, combined: Combined) -> None:
    """Make the folder of a combined result, or go on with one of the same runs.

    Raises:
        BadInput: something else lies there.
        EnvironmentFault: the disk is full or fails.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and read_combined(folder) is None:
        raise BadInput("something else lies where the result shall go", folder, "choose another --output")
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, {"schema": SCHEMA, **asdict(combined)})
    except (PermissionError, NotADirectoryError) as error:
        raise BadInput(f"the result cannot be written: {error.strerror}", folder, "choose another --output") from error


def read_combined(folder: Path) -> Combined | None:
    """Return what lies in the folder of a combined result, None if it is none; raises BadInput if it is damaged."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if value.pop("schema") != SCHEMA:
            raise ValueError("another format")
        return Combined(**value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"not a combined result: {error}", path, "make it again with `bloodcell evaluate RUN RUN`"
        ) from error


def write_told(folder: Path, split: str, value: dict[str, Any]) -> None:
    """Keep what is told of one split of a combined result beside its metrics: gain and members, or the folds."""
    write_json(folder / TOLD, {"schema": TOLD_SCHEMA, "splits": {**read_told(folder), split: value}})


def read_told(folder: Path) -> dict[str, Any]:
    """Return what `write_told` kept, {split: value}; {} where there is nothing.

    Raises:
        BadInput: the file is damaged.
    """
    path = folder / TOLD
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["schema"] != TOLD_SCHEMA:
            raise ValueError("another format")
        return dict(value["splits"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"not what a combination tells: {error}", path, "evaluate the runs together again") from error


def read_table(folder: Path, split: str) -> Predictions:
    """Return the table of predictions of a combined result.

    Raises:
        BadInput: there is none for this split, or it is damaged.
    """
    path = folder / "predictions" / f"{split}.parquet"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.parquet"))) or "none"
        raise BadInput(f"no predictions for split {split!r}", folder, f"choose one of: {known}")
    return read_predictions(path)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each path: its last parts, as many as tell all of them apart.

    Raises:
        BadInput: a path is given twice.
    """
    resolved = [path.resolve() for path in paths]
    for path, place in zip(paths, resolved, strict=True):
        if resolved.count(place) > 1:
            raise BadInput("a run is given twice", path, "give each run once")
    for count in range(1, max(len(place.parts) for place in resolved) + 1):
        names = ["/".join(place.parts[-count:]) for place in resolved]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in resolved]
