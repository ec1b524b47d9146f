"""Judge a run again from its tables of predictions alone: no network, no images, no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bloodcell.evaluation.judge import judge
from bloodcell.evaluation.predictions import Predictions, read_predictions
from shards.errors import BadInput

TABLES = "predictions"
VALIDATION = "val"


def recompute(
    run: Path, folder: Path | None = None, sources: Mapping[int, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the judgement of every table of predictions of a run, by plain name of the split (train, val, test).

    Args:
        run: the run folder.
        folder: the folder below it with the tables of another set (RUN/external/SET); left out for the run's own set.
        sources: as in judge.judge.

    Raises:
        BadInput: there are no tables, or one is damaged.
    """
    paths = sorted(((folder or run) / TABLES).glob("*.parquet"))
    if not paths:
        raise BadInput("no tables of predictions", (folder or run) / TABLES, "make them with `bloodcell evaluate RUN`")
    return {path.stem: judge_split(run, read_predictions(path), path.stem, sources) for path in paths}


def judge_split(
    run: Path, predictions: Predictions, name: str, sources: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """Return the judgement of one split, with the run's own validation predictions where they may be used.

    Args:
        run: the run folder.
        predictions: of the split.
        name: its plain name: train, val or test.
        sources: as in judge.judge.
    """
    validation, reason = _validation(run, predictions, name)
    return judge(predictions, validation, sources, untuned=reason)


def _validation(run: Path, predictions: Predictions, name: str) -> tuple[Predictions | None, str]:
    """Return the run's validation predictions, or None and why they cannot be used."""
    path = run / TABLES / f"{VALIDATION}.parquet"
    if not path.exists():
        return None, f"the run has no {TABLES}/{VALIDATION}.parquet: evaluate its validation split first"
    validation = read_predictions(path)
    if name == VALIDATION and validation.fingerprint == predictions.fingerprint:
        return None, "the validation split itself is judged"
    if validation.run != predictions.run or validation.classes != predictions.classes:
        return None, f"{TABLES}/{VALIDATION}.parquet is of another run ({validation.run})"
    if not len(validation.ids):
        return None, "the validation split is empty"
    return validation, ""
