"""What a run folder holds, as far as it is there: the JSON files, the curves, the tables of predictions."""

from __future__ import annotations

import contextlib
import csv
import json
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from bloodcell.config import decode, identity
from bloodcell.evaluation.predictions import Predictions, read_predictions
from bloodcell.evaluation.source import digest
from bloodcell.report.curves import read_metrics
from shards.errors import BadInput
from shards.format import DatasetInfo, read_dataset

FILES = {"report": "report.html", "facts": "report.json", "metrics": "metrics.csv", "card": "model_card.md"}
"""What a report consists of."""

LEFT_OUT = "skipped.csv"
NAMED = 20
"""Samples left out of training that the page lists; skipped.csv has every time."""

WEIGHTS = "model.safetensors"
ORDER = ("test", "val", "train")
"""Which split is told first."""


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds: missing files are empty.

    Attributes:
        path: the folder.
        stored: config.json.
        environment: environment.json.
        status: status.json.
        metrics: the records of metrics.jsonl.
        evaluation: split -> its judgement.
    """

    path: Path
    stored: dict[str, Any]
    environment: dict[str, Any]
    status: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluation: dict[str, dict[str, Any]]

    @property
    def config(self) -> dict[str, Any]:
        """The config tree: config.json itself, or its `config` where more is stored beside it."""
        inner = self.stored.get("config")
        return inner if isinstance(inner, dict) else self.stored

    def left_out(self) -> dict[str, Any] | None:
        """Return {samples, times, rows} of what training could not read and left out, None if that was nothing.

        `rows` are the first NAMED samples as {key, shard, step, problem, times}; empty if skipped.csv is not there.
        """
        told = self.status.get("left_out")
        if not isinstance(told, dict) or not told.get("samples"):
            return None
        rows: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(FileNotFoundError), open(self.path / LEFT_OUT, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                found = rows.setdefault(row["key"], {name: row[name] for name in ("key", "shard", "step", "problem")})
                found["times"] = int(found.get("times", 0)) + 1
        return {"samples": int(told["samples"]), "times": int(told["times"]), "rows": list(rows.values())[:NAMED]}

    @property
    def model(self) -> str:
        """Name of the network."""
        return str((self.config.get("model") or {}).get("name") or "model")

    @property
    def ranks(self) -> int:
        """How many processes trained it."""
        return int(self.status.get("world") or self.environment.get("world") or 1)

    @property
    def command(self) -> str:
        """The command that started the run, as far as it was noted."""
        told = self.status.get("command") or self.stored.get("command") or ""
        return shlex.join(map(str, told)) if isinstance(told, list) else str(told)

    @cached_property
    def weights(self) -> str:
        """sha256 of the run's weights, "" without any."""
        path = self.path / WEIGHTS
        return digest(path) if path.exists() else ""

    @cached_property
    def preprocessing(self) -> dict[str, str]:
        """What the weights file says of its input: size, mean and std; {} without a readable one."""
        try:
            with safe_open(self.path / WEIGHTS, framework="numpy") as file:
                told = file.metadata() or {}
        except (OSError, SafetensorError):
            return {}
        return {name: told[name] for name in ("size", "mean", "std") if name in told}

    @cached_property
    def config_hash(self) -> str:
        """Identity of config and set, as in the name of a run; "" where config.json is not a whole config."""
        try:
            return identity(decode(self.stored["config"]), str(self.stored["fingerprint"]))
        except (BadInput, KeyError, AttributeError):
            return ""

    def splits(self) -> list[str]:
        """Return the splits that are judged, the most telling first."""
        return ordered(self.evaluation)

    def predictions(self, split: str) -> Predictions | None:
        """Return the table of predictions of a split, None without one; raises BadInput if it is damaged."""
        path = self.path / "predictions" / f"{split}.parquet"
        return read_predictions(path) if path.exists() else None


def ordered(names: Any) -> list[str]:
    """Return names of splits, the most telling first."""
    return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def read_run(run: Path) -> RunFiles:
    """Read what a run folder holds; raises BadInput if there is no such folder or a JSON file is damaged."""
    if not run.is_dir():
        raise BadInput("no run here", run, "give the folder of a run")
    stored, machine, status, evaluation = (
        read_json(run / f"{name}.json") for name in ("config", "environment", "status", "evaluation")
    )
    return RunFiles(
        run, stored, machine, status, read_metrics(run / "metrics.jsonl"), dict(evaluation.get("splits") or {})
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds, {} without the file; raises BadInput if it is damaged or no table."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadInput(f"a file of the run cannot be read: {error}", path, "restore it or remove it") from error
    if not isinstance(value, dict):
        raise BadInput("a file of the run holds no table", path, "restore it or remove it")
    return value


def set_of(fingerprint: str | None, folder: Path | None) -> DatasetInfo | None:
    """Return dataset.json of a set; None if it is not at hand or has another fingerprint than the wanted one."""
    if folder is None or not (folder / "dataset.json").exists():
        return None
    info = read_dataset(folder)
    return info if fingerprint in (None, info.fingerprint) else None
