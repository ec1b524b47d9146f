"""The facts of a report for programs: report.json, and metrics.csv with a row for every figure that has an interval."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bloodcell.report.about import about_set
from bloodcell.report.cost import cost
from bloodcell.report.explained import explanation
from bloodcell.report.files import FILES, RunFiles
from bloodcell.report.others import others
from shards.atomic import open_atomic, write_json
from shards.format import DatasetInfo

SCHEMA = "bloodcell/report/1"
COLUMNS = ("split", "metric", "class", "value", "low", "high")
BY_CLASS = ("per_class", "fractions")
"""Tables of a judgement whose keys are classes."""


def facts_of(files: RunFiles, folder: Path | None, info: DatasetInfo | None) -> dict[str, Any]:
    """Return everything that is known of a run as JSON-native values; what is not known is None.

    Args:
        files: of the run.
        folder: its set, None where it is not at hand.
        info: dataset.json of that set.

    Raises:
        BadInput: a file of the run or of the set is damaged.
    """
    about = about_set(folder, info) if folder is not None and info is not None else None
    return {
        "schema": SCHEMA,
        "kind": "run",
        "run": files.path.resolve().name,
        "model": files.model,
        "recipe": files.stored.get("recipe"),
        "data": about["name"] if about else data_name(files),
        "classes": info.classes if info else stored_classes(files),
        "leaks": leaks(files, info),
        "state": files.status.get("state"),
        "left_out": files.status.get("left_out"),
        "command": files.command or None,
        "ranks": files.ranks,
        "config_hash": files.config_hash or None,
        "parameters": files.status.get("parameters"),
        "preprocessing": files.preprocessing,
        "weights": {"sha256": files.weights or None, "initial": files.environment.get("weights")},
        "set": about,
        "evaluation": files.evaluation,
        "others": others(files.path, files.weights),
        "explanation": explanation(files.path, files.weights),
        "cost": cost(files.status, files.environment),
        "environment": files.environment or None,
        "config": files.config or None,
    }


def data_name(files: RunFiles) -> str:
    """Return what the set of a run is called, as far as its files tell."""
    told = [str(result.get("data") or "") for result in files.evaluation.values()]
    path = next((name for name in told if name), str((files.config.get("data") or {}).get("set") or ""))
    return path.rstrip("/").rsplit("/", 1)[-1]


def stored_classes(files: RunFiles) -> list[str]:
    """Return the classes of a run, as far as its files tell."""
    return next(
        (list(r["classes"]) for r in files.evaluation.values() if r.get("classes")),
        list(files.stored.get("classes") or []),
    )


def leaks(files: RunFiles, info: DatasetInfo | None) -> bool:
    """Whether anything that is known of the run says that its set leaks."""
    told = (files.status.get("leaks"), files.stored.get("leaks"), (files.config.get("data") or {}).get("leaks"))
    return any(told) or (info is not None and info.leaks)


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write `folder`/report.json and `folder`/metrics.csv atomically; raises EnvironmentFault if the disk fails."""
    write_json(folder / FILES["facts"], facts)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in metric_rows(facts):
        writer.writerow(["" if value is None else value for value in row])
    with open_atomic(folder / FILES["metrics"]) as file:
        # Names that are no valid UTF-8 arrive as lone surrogates, which cannot be encoded otherwise.
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))


Row = tuple[str, str, str, float | None, float | None, float | None]


def metric_rows(facts: dict[str, Any]) -> Iterator[Row]:
    """Yield (split, metric, class, value, low, high) of every entry {value, low, high} of a report's facts.

    The names of the metrics are their places in evaluation.json; metrics of the whole split stand without `metrics.`.
    Results of another set or other orientations have their folder before the split: external/clinic/test.
    """
    for split, result in facts["evaluation"].items():
        yield from _entries(split, result)
    for other in facts.get("others") or []:
        for split, result in other["splits"].items():
            yield from _entries(f"{other['place']}/{split}", result)
        for kind in ("shift", "gain"):
            for split, value in other[kind].items():
                yield from _entries(f"{other['place']}/{split}", value, kind)
    for split, told in (facts.get("together") or {}).items():
        yield from _entries(split, told, "together")


def _entries(split: str, value: Any, path: str = "", label: str = "") -> Iterator[Row]:
    if isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                yield from _entries(split, item, _join(path, _title(item)), label)
        return
    if not isinstance(value, dict):
        return
    if {"value", "low", "high"} <= value.keys():
        yield split, path, label, value["value"], value["low"], value["high"]
        return
    for name, inner in value.items():
        if isinstance(inner, dict) and name in BY_CLASS:
            for of, entry in inner.items():
                yield from _entries(split, entry, path if name == "per_class" else _join(path, name), str(of))
        elif isinstance(inner, dict | list):
            yield from _entries(split, inner, path if name == "metrics" else _join(path, str(name)), label)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _title(item: dict[str, Any]) -> str:
    """Return what tells an entry of a list from the others."""
    if "goal" in item:
        return f"{item['goal']} {item['at']:g}"
    if "method" in item:
        return f"{item['method']} {item['level']:g}"
    if "from" in item:
        return f"{item['from']:.3f}-{item['to']:.3f}"
    for name in ("coverage", "name", "fold"):
        if isinstance(item.get(name), str | int | float):
            return f"{name}{item[name]}" if name == "fold" else f"{item[name]}"
    return ""
