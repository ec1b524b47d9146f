"""What a run shows in the views when it has ended, gathered from its folder: at the end of training, and by `sync`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bloodcell.config import Config
from bloodcell.data.openset import OpenSet
from bloodcell.engine.evaluate import MODEL_FILE
from bloodcell.evaluation.curves import precision_recall_points, roc_points
from bloodcell.evaluation.predictions import Predictions, read_predictions
from bloodcell.models.weights import sha256
from bloodcell.runfolder import RunFolder
from bloodcell.tracking.results import Artifact, Chart, Curves, Results, Shown
from shards.errors import BadInput, Unreadable
from shards.format import read_dataset

MOST = 1000
"""Images of a table, whatever is asked for."""

LARGEST_SIDE = 256
"""Side of the pictures in a table, pixels."""


def gather(run: RunFolder, config: Config) -> Results:
    """Return what the folder of a finished run has to show, as `tracking.artifacts` and `tracking.images` say."""
    splits = (run.read("evaluation.json") or {}).get("splits", {})
    status = run.read("status.json") or {}
    summary = {
        f"{name}/{metric}": value["value"]
        for name, result in splits.items()
        for metric, value in result["metrics"].items()
        if value["value"] is not None
    }
    paths = {name: run.path / "predictions" / f"{name}.parquet" for name in splits}
    tables = {name: read_predictions(path) for name, path in paths.items() if path.exists()}
    images = {}
    if config.tracking.images and "test" in tables:
        images["test"] = _images(config, tables["test"], config.tracking.images)
    return Results(
        summary={"step": status.get("step", 0), **summary},
        charts=[Chart(name, result["classes"], result["confusion"]) for name, result in splits.items()],
        curves=[curve for name, table in tables.items() for curve in _curves(name, table)],
        artifacts=_artifacts(run, config, summary),
        images={name: rows for name, rows in images.items() if rows},
        pages=[page for page in (run.path / "report.html",) if page.exists()],
    )


def _curves(split: str, predictions: Predictions) -> list[Curves]:
    roc = Curves(split, "roc", ("false positive rate", "recall"), roc_points(predictions))
    return [roc, Curves(split, "pr", ("recall", "precision"), precision_recall_points(predictions))]


def _artifacts(run: RunFolder, config: Config, summary: dict[str, Any]) -> list[Artifact]:
    if config.tracking.artifacts == "off":
        return []
    fingerprint = str(run.stored()["fingerprint"])
    found = [_set(Path(config.data.set), fingerprint)]
    weights = run.path / MODEL_FILE
    if weights.exists():
        about = {
            "model": config.model.name,
            "size": config.data.size,
            "weights_sha256": sha256(weights),
            "bytes": weights.stat().st_size,
            "set": fingerprint,
        }
        files = {MODEL_FILE: weights} if config.tracking.artifacts == "weights" else {}
        name = _plain(f"model-{run.path.resolve().name}")
        found.append(Artifact(name, "model", {**about, **summary}, _text(about), files, aliases=("best",)))
    return found


def _set(folder: Path, fingerprint: str) -> Artifact:
    """Return the set by its names and hashes alone: no image and no source path leaves the machine."""
    about: dict[str, Any] = {"fingerprint": fingerprint}
    try:
        info = read_dataset(folder)
        about["dataset_json_sha256"] = hashlib.sha256((folder / "dataset.json").read_bytes()).hexdigest()
    except (BadInput, OSError):
        return Artifact(_plain(folder.name), "dataset", about, _text(about), used=True)
    about |= {"classes": list(info.classes), "samples": {name: info.count(name) for name in info.splits}}
    return Artifact(_plain(folder.name), "dataset", about, _text(about), used=True)


def _images(config: Config, predictions: Predictions, most: int) -> Sequence[Shown]:
    """Return the images that a person should see: the surest errors first, then what is right but least sure."""
    try:
        opened = OpenSet(Path(config.data.set))
    except BadInput:
        return []
    sure, predicted = predictions.probabilities().max(axis=1), predictions.predicted()
    right = predicted == predictions.labels
    order = np.lexsort((np.where(right, sure, -sure), right))[: min(most, MOST)]
    names, found = predictions.classes, []
    for row in order.tolist():
        try:
            pixels = _small(opened.image(int(predictions.ids[row])))
        except Unreadable:
            continue
        truth, said = names[int(predictions.labels[row])], names[int(predicted[row])]
        found.append(Shown(predictions.keys[row], truth, said, float(sure[row]), pixels))
    return found


def _small(pixels: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(pixels)
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return np.asarray(picture)


def _plain(name: str) -> str:
    """Return a name that W&B takes for an artifact."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:120]


def _text(about: dict[str, Any]) -> str:
    return json.dumps(about, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
