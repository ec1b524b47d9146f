"""FOLDER/report.html of a combined result: the gain of an ensemble over its members, or the folds one by one."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from jinja2 import PackageLoader

from bloodcell.evaluation.combined import Combined, read_combined, read_table, read_told
from bloodcell.evaluation.ensemble import COMPARED
from bloodcell.evaluation.paired import SMALLER_IS_BETTER
from bloodcell.report.about import about_set, class_groups, data_card
from bloodcell.report.examples import examples
from bloodcell.report.facts import SCHEMA, write_facts
from bloodcell.report.files import FILES, ordered, read_json, set_of
from bloodcell.report.page import has_pictures
from bloodcell.report.results import METRICS, result_of, value_of
from shards.document import environment, write_page
from shards.errors import BadInput
from shards.format import DatasetInfo

HIDDEN = ("test-calibrated",)
"""Splits that are no result of their own: they are told as a difference."""
SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "mcc", "nll")
"""Metrics of members and folds."""


def write_combined_report(folder: Path, set_folder: Path | None) -> Path:
    """Write FOLDER/report.html, report.json and metrics.csv; return the path of the first.

    Args:
        folder: of a combined result.
        set_folder: the set that was predicted, for pictures and the data card; None where it is not at hand.

    Raises:
        BadInput: the folder is no combined result, or a file of it is damaged.
        EnvironmentFault: the disk is full or fails.
    """
    combined = read_combined(folder)
    if combined is None:
        raise BadInput("no combined result here", folder, "make one with `bloodcell evaluate RUN RUN`")
    info = set_of(combined.fingerprint, set_folder)
    facts = _facts(folder, combined, set_folder, info)
    write_facts(folder, facts)
    pages = environment(PackageLoader("bloodcell.report", "templates"))
    return write_page(folder / FILES["report"], pages, "combined.html", _content(folder, facts, set_folder, info))


def _facts(folder: Path, combined: Combined, set_folder: Path | None, info: DatasetInfo | None) -> dict[str, Any]:
    about = about_set(set_folder, info) if set_folder is not None and info is not None else None
    return {
        "schema": SCHEMA,
        "kind": combined.kind,
        "run": folder.resolve().name,
        "members": [
            {"run": run, "weights": weights, "model": _model(Path(run))}
            for run, weights in zip(combined.runs, combined.weights, strict=True)
        ],
        "orientations": combined.orientations,
        "data": about["name"] if about else Path(combined.data).name,
        "classes": combined.classes,
        "leaks": bool(info and info.leaks) or any(_stored(Path(run)).get("leaks") for run in combined.runs),
        "command": _command(folder, combined),
        "set": about,
        "evaluation": dict(read_json(folder / "evaluation.json").get("splits") or {}),
        "together": read_told(folder),
    }


def _stored(run: Path) -> dict[str, Any]:
    """Return config.json of a member, {} where it is gone."""
    try:
        value = json.loads((run / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _model(run: Path) -> str | None:
    return ((_stored(run).get("config") or {}).get("model") or {}).get("name")


def _command(folder: Path, combined: Combined) -> str:
    words = ["bloodcell", "evaluate", *combined.runs, "--output", str(folder.resolve())]
    return shlex.join([*words, *(["--tta", str(combined.orientations)] if combined.orientations > 1 else [])])


def _content(folder: Path, facts: dict[str, Any], set_folder: Path | None, info: DatasetInfo | None) -> dict[str, Any]:
    splits = [name for name in ordered(facts["evaluation"]) if name not in HIDDEN]
    # The validation split of an ensemble goes along for its calibration only.
    splits = [name for name in splits if name != "val" or name in facts["together"] or splits == ["val"]]
    table = read_table(folder, splits[0]) if splits else None
    groups = class_groups(table) if table is not None else None
    results = [
        result_of(name, facts["evaluation"][name], None if place else groups) for place, name in enumerate(splits)
    ]
    shown = examples(table, set_folder, info) if table is not None else None
    return {
        "facts": facts,
        **{name: facts[name] for name in ("run", "kind", "data", "classes", "leaks", "command")},
        "ranks": 1,
        "headline": results[0] if results else None,
        "results": results,
        "members": _members(facts),
        "gains": {name: _gains(told["gain"]) for name, told in facts["together"].items() if "gain" in told},
        "folds": _folds(facts["together"].get("test") or {}),
        "examples": shown,
        "has_pictures": has_pictures(shown),
        "card": data_card(set_folder, info, facts["set"]) if set_folder is not None and info is not None else None,
        "thin": {one["name"] for one in facts["set"]["thin"]} if facts["set"] else set(),
        "columns": [METRICS[name] for name in SHOWN],
    }


def _members(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the members with their own metrics on the first split that tells them."""
    names = [name for name in ordered(facts["together"]) if "members" in facts["together"][name]]
    told = facts["together"][names[0]] if names else {}
    rows = []
    for place, member in enumerate(facts["members"]):
        name = told["runs"][place] if place < len(told.get("runs") or []) else Path(member["run"]).name
        alone = (told.get("members") or {}).get(name) or {}
        cells = [value_of(metric, {"value": alone.get(metric)}) for metric in SHOWN] if alone else []
        rows.append({"name": name, "model": member["model"], "weights": member["weights"], "cells": cells})
    return rows


def _gains(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the gain for each metric; `better` says whether its interval lies on the good side of 0."""
    rows = []
    for name in COMPARED:
        entry = found[name]
        less = name in SMALLER_IS_BETTER
        rows.append(
            {
                "name": METRICS[name] + (" (less is better)" if less else ""),
                "best": entry["best"],
                **{over: _difference(entry[over], less) for over in ("over_best", "over_mean")},
            }
        )
    return rows


def _difference(entry: dict[str, float | None], less: bool) -> dict[str, Any]:
    """Return a difference as text, its interval, and whether it is clear: better, worse, or neither ("")."""
    value, low, high = entry["value"], entry["low"], entry["high"]
    if value is None:
        return {"text": "–", "interval": "", "clear": ""}
    if low is None or high is None:
        return {"text": f"{value:+.4f}", "interval": "", "clear": ""}
    clear = "" if low <= 0 <= high else ("better" if (value < 0) == less else "worse")
    return {"text": f"{value:+.4f}", "interval": f"{low:+.4f} to {high:+.4f}", "clear": clear}


def _folds(told: dict[str, Any]) -> dict[str, Any] | None:
    """Return the folds one by one and what calibrating each of them changes; None where there are none."""
    if "folds" not in told:
        return None
    rows = [{**fold, "cells": [value_of(name, fold["metrics"].get(name)) for name in SHOWN]} for fold in told["folds"]]
    change = told["calibrated"]["difference"]
    return {
        "rows": rows,
        "calibrated": [
            {"name": METRICS[name], **_difference(change[name], name in SMALLER_IS_BETTER)}
            for name in ("nll", "macro_auroc")
        ],
    }
