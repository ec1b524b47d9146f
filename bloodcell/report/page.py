"""RUN/report.html: what a run folder holds, gathered and handed to the template."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import PackageLoader

from bloodcell.evaluation.predictions import Predictions, read_predictions
from bloodcell.report.curves import curves, read_metrics
from bloodcell.report.examples import Examples, examples
from bloodcell.report.results import result_of
from shards.document import count, duration, environment, flatten, percent, plain, write_page
from shards.errors import BadInput
from shards.format import DatasetInfo, read_dataset, read_samples
from shards.report import audit_rows, counts_table, groups, patients, set_name

ORDER = ("test", "val", "train")
"""Which split is told first."""

UNFINISHED = ("starting", "training", "stopped", "failed")
"""States of a run whose result is not final."""

STATUS = {
    "state": "state",
    "outcome": "outcome",
    "step": "steps done",
    "steps": "steps planned",
    "epoch": "epochs done",
    "world": "ranks",
    "attempt": "starts (1 without interruption)",
    "wall_seconds": "wall time, all starts",
    "images_per_s": "training images per second",
    "data_wait": "share of training time spent waiting for data",
    "parameters": "parameters of the network",
    "lineage_proven": "every sample was trained on as often as planned",
}
"""Fields of status.json for people, in this order; others follow under their own name."""

HIDDEN_STATUS = ("time", "command", "leaks", "lineage")


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds, as far as it is there: missing files are empty."""

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

    def predictions(self, split: str) -> Predictions | None:
        """Return the table of predictions of a split, None without one; raises BadInput if it is damaged."""
        path = self.path / "predictions" / f"{split}.parquet"
        return read_predictions(path) if path.exists() else None


def write_run_report(run: Path, set_folder: Path | None) -> Path:
    """Write RUN/report.html from the files of a run, and from its set where that is at hand; return its path.

    What is missing (no validation, no test split, no predictions, no set) is left out of the page.

    Args:
        run: the run folder.
        set_folder: the shard set that the run was trained on, for pictures and the data card.

    Raises:
        BadInput: no such folder, or a file of the run is damaged.
        EnvironmentFault: the disk is full or fails.
    """
    files = read_run(run)
    info = _set_of(files, set_folder)
    splits = sorted(files.evaluation, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    results = [result_of(name, files.evaluation[name]) for name in splits]
    first = results[0] if results else None
    shown = _examples(files, first, set_folder, info)
    content = {
        "run": run.resolve().name,
        "model": str((files.config.get("model") or {}).get("name") or "model"),
        "data": _data_name(files, info),
        "classes": _classes(files, info),
        "leaks": _leaks(files, info),
        "files": files,
        "unfinished": files.status.get("state") if files.status.get("state") in UNFINISHED else None,
        "headline": first,
        "others": results[1:],
        "results": results,
        "examples": shown,
        "has_pictures": shown is not None and any(e.picture for e in (*shown.wrong, *shown.right)),
        "curves": curves(files.metrics),
        "card": _data_card(set_folder, info),
        "status": status_rows(files.status),
        "command": _command(files),
        "ranks": int(files.status.get("world") or files.environment.get("world") or 1),
        "config": _config_rows(files),
        "environment": flatten(files.environment),
        "wall": duration(files.status["wall_seconds"]) if files.status.get("wall_seconds") else "",
    }
    pages = environment(PackageLoader("bloodcell.report", "templates"))
    return write_page(run / "report.html", pages, "run.html", content)


def read_run(run: Path) -> RunFiles:
    """Read what a run folder holds; raises BadInput if there is no such folder or a JSON file is damaged."""
    if not run.is_dir():
        raise BadInput("no run here", run, "give the folder of a run")
    stored, machine, status, evaluation = (
        _read_json(run / f"{name}.json") for name in ("config", "environment", "status", "evaluation")
    )
    return RunFiles(
        run, stored, machine, status, read_metrics(run / "metrics.jsonl"), dict(evaluation.get("splits") or {})
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadInput(f"a file of the run cannot be read: {error}", path, "restore it or remove it") from error
    if not isinstance(value, dict):
        raise BadInput("a file of the run holds no table", path, "restore it or remove it")
    return value


def _set_of(files: RunFiles, set_folder: Path | None) -> DatasetInfo | None:
    """Return dataset.json of the run's set; None if it is not at hand or is another set than the run's."""
    if set_folder is None or not (set_folder / "dataset.json").exists():
        return None
    info = read_dataset(set_folder)
    return info if files.stored.get("fingerprint", info.fingerprint) == info.fingerprint else None


def _data_name(files: RunFiles, info: DatasetInfo | None) -> str:
    if info is not None:
        return set_name(info)
    told = [str(result.get("data") or "") for result in files.evaluation.values()]
    path = next((name for name in told if name), str((files.config.get("data") or {}).get("set") or ""))
    return path.rstrip("/").rsplit("/", 1)[-1]


def _classes(files: RunFiles, info: DatasetInfo | None) -> list[str]:
    if info is not None:
        return info.classes
    return next((list(result["classes"]) for result in files.evaluation.values()), [])


def _leaks(files: RunFiles, info: DatasetInfo | None) -> bool:
    """Whether anything that is known of the run says that its set leaks."""
    told = (files.status.get("leaks"), files.stored.get("leaks"), (files.config.get("data") or {}).get("leaks"))
    return any(told) or (info is not None and info.leaks)


def _examples(
    files: RunFiles, first: dict[str, Any] | None, folder: Path | None, info: DatasetInfo | None
) -> Examples | None:
    predictions = files.predictions(first["split"]) if first else None
    return examples(predictions, folder, info) if predictions is not None else None


def _data_card(folder: Path | None, info: DatasetInfo | None) -> dict[str, Any] | None:
    if folder is None or info is None:
        return None
    table = read_samples(folder, ["group"])
    return {
        "info": info,
        "counts": counts_table(info),
        "patients": patients(groups(table), info),
        "audit": audit_rows(info),
    }


def status_rows(status: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return what status.json says as (name, value) for people."""
    known = [name for name in STATUS if name in status]
    rest = [name for name in status if name not in STATUS and name not in HIDDEN_STATUS]
    rows: list[tuple[str, Any]] = []
    for name in (*known, *rest):
        value = status[name]
        if name == "outcome" and isinstance(value, dict) and "what" in value:
            value = value["what"] + (f" (exit code {value['code']})" if value.get("code") else "")
        if isinstance(value, dict):
            rows += [(f"{STATUS.get(name, name)}: {key}", item) for key, item in flatten(value)]
            continue
        if name == "wall_seconds" and isinstance(value, int | float):
            value = duration(value)
        elif name == "data_wait" and isinstance(value, int | float):
            value = percent(value)
        elif name in ("parameters", "step", "steps", "images_per_s") and isinstance(value, int | float):
            value = count(value)
        rows.append((STATUS.get(name, name.replace("_", " ")), plain(value)))
    return rows


def _config_rows(files: RunFiles) -> list[tuple[str, Any]]:
    """Return the settings in force; what else config.json holds is not a setting."""
    recipe = [("recipe", files.stored["recipe"])] if files.stored.get("recipe") else []
    return recipe + flatten(files.config) if files.config is not files.stored else flatten(files.stored)


def _command(files: RunFiles) -> str:
    """Return the command that started the run, as far as it was noted."""
    told = files.status.get("command") or files.stored.get("command") or ""
    return shlex.join(map(str, told)) if isinstance(told, list) else str(told)
