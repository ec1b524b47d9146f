"""RUN/report.html and what lies beside it: the files of a run gathered once, and told to people and to programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import PackageLoader

from bloodcell.report.about import class_groups, data_card
from bloodcell.report.card import model_card
from bloodcell.report.curves import curves
from bloodcell.report.examples import Examples, examples
from bloodcell.report.explained import flagged, shown_errors
from bloodcell.report.facts import facts_of, write_facts
from bloodcell.report.files import FILES, RunFiles, read_run, set_of
from bloodcell.report.results import result_of
from shards.atomic import open_atomic
from shards.document import count, duration, environment, flatten, percent, plain, write_page
from shards.format import DatasetInfo

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
    "cpu_seconds": "CPU time of the first rank, all starts",
    "images_per_s": "training images per second",
    "data_wait": "share of training time spent waiting for data",
    "parameters": "parameters of the network",
    "lineage_proven": "every sample was trained on as often as planned",
}
"""Fields of status.json for people, in this order; others follow under their own name."""

HIDDEN_STATUS = ("time", "command", "leaks", "lineage", "left_out")


def write_run_report(run: Path, set_folder: Path | None) -> Path:
    """Write RUN/report.html, report.json, metrics.csv and model_card.md; return the path of the first.

    What is missing (no validation, no test split, no predictions, no set, no explanation) is left out.

    Args:
        run: the run folder.
        set_folder: the shard set that the run was trained on, for pictures and the data card.

    Raises:
        BadInput: no such folder, or a file of the run is damaged.
        EnvironmentFault: the disk is full or fails.
    """
    files = read_run(run)
    info = set_of(files.stored.get("fingerprint"), set_folder)
    facts = facts_of(files, set_folder, info)
    write_facts(run, facts)
    with open_atomic(run / FILES["card"]) as file:
        file.write(model_card(facts).encode("utf-8", "backslashreplace"))
    pages = environment(PackageLoader("bloodcell.report", "templates"))
    return write_page(run / FILES["report"], pages, "run.html", _content(files, facts, set_folder, info))


def _content(files: RunFiles, facts: dict[str, Any], folder: Path | None, info: DatasetInfo | None) -> dict[str, Any]:
    splits = files.splits()
    predictions = files.predictions(splits[0]) if splits else None
    groups = class_groups(predictions) if predictions is not None else None
    results = [result_of(name, files.evaluation[name], None if place else groups) for place, name in enumerate(splits)]
    shown = examples(predictions, folder, info) if predictions is not None else None
    explained = facts["explanation"]
    state = files.status.get("state")
    return {
        **{name: facts[name] for name in ("run", "model", "data", "classes", "leaks", "command", "ranks", "cost")},
        "files": files,
        "facts": facts,
        "unfinished": state if state in UNFINISHED else None,
        "headline": results[0] if results else None,
        "results": results,
        "examples": shown,
        "has_pictures": has_pictures(shown),
        "curves": curves(files.metrics),
        "card": data_card(folder, info, facts["set"]) if folder is not None and info is not None else None,
        "thin": {one["name"] for one in facts["set"]["thin"]} if facts["set"] else set(),
        "explained": explained,
        "shortcuts": flagged(explained) if explained and not explained["outdated"] else [],
        "mapped": shown_errors(files.path) if explained and not explained["outdated"] else [],
        "others": [ready_other(other) for other in facts["others"]],
        "left_out": files.left_out(),
        "status": status_rows(files.status),
        "config": _config_rows(files),
        "environment": flatten(files.environment),
        "wall": duration(files.status["wall_seconds"]) if files.status.get("wall_seconds") else "",
    }


def has_pictures(shown: Examples | None) -> bool:
    """Whether any of the examples has its picture."""
    return shown is not None and any(example.picture for example in (*shown.wrong, *shown.right))


def ready_other(other: dict[str, Any]) -> dict[str, Any]:
    """Return the result of another set, or of other orientations, ready for the page."""
    results = [result_of(name, result) for name, result in other["splits"].items()]
    return {**other, "results": results}


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
        if name in ("wall_seconds", "cpu_seconds") and isinstance(value, int | float):
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
