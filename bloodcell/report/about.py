"""What is known of the set behind a result: counts, split audit, thin classes, and whom to cite."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bloodcell.evaluation.predictions import Predictions
from shards.bysource import source_of
from shards.definitions import names, read_definition
from shards.format import DatasetInfo, read_samples
from shards.honesty import ThinClass, sentence, thin_classes
from shards.report import audit_rows, counts_table, groups, leak_count, patients, set_name


def about_set(folder: Path, info: DatasetInfo) -> dict[str, Any]:
    """Return the facts of a set as JSON-native values: name, counts, audit, thin classes, definition.

    Raises:
        BadInput: the sample table cannot be read.
    """
    table = read_samples(folder, ["group", "label", "split"])
    return {
        "name": set_name(info),
        "fingerprint": info.fingerprint,
        "images": sum(shard.samples for shard in info.shards),
        "images_in": info.images_in,
        "rejected": info.rejected,
        "classes": info.classes,
        "samples": info.samples,
        "split": {name: info.split[name] for name in ("method", "fractions", "seed", "sources") if name in info.split},
        "audit": {**info.audit, "leaks": leak_count(info)},
        "leaks": info.leaks,
        "patients": patients(groups(table), info),
        "thin": _thin(info, table),
        "definition": _definition(info),
    }


def _thin(info: DatasetInfo, table: Any) -> list[dict[str, Any]]:
    """Return the thin classes, each with a sentence; counted here where an older dataset.json does not name them."""
    if "thin_classes" in info.split:
        thin = [ThinClass(**row) for row in info.split["thin_classes"]]
    else:
        parts = [source_of(part) or part for part in table.column("split").to_pylist()]
        labels, named = (table.column(name).to_pylist() for name in ("label", "group"))
        thin = thin_classes(labels, named, parts, info.classes)
    return [{**asdict(one), "sentence": sentence(one)} for one in thin]


def _definition(info: DatasetInfo) -> dict[str, Any] | None:
    """Return what the definition that the set was packed with says; None without one that comes with the program."""
    name = str(info.options.get("dataset") or "")
    if name not in names():
        return None
    known = read_definition(name)
    told = {key: getattr(known, key) for key in ("title", "page", "citation", "licence", "notes")}
    return {"name": name, **told}


def data_card(folder: Path, info: DatasetInfo, about: dict[str, Any]) -> dict[str, Any]:
    """Return the data card ready for the page."""
    return {
        "info": info,
        "counts": counts_table(info),
        "patients": about["patients"],
        "audit": audit_rows(info),
        "thin": about["thin"],
        "definition": about["definition"],
    }


def class_groups(predictions: Predictions) -> dict[str, int]:
    """Return how many independent groups each class has in a table; a sample of no group is one."""
    named: dict[int, set[str]] = defaultdict(set)
    alone: dict[int, int] = defaultdict(int)
    for label, group in zip(predictions.labels.tolist(), predictions.groups, strict=True):
        if group:
            named[label].add(group)
        else:
            alone[label] += 1
    return {name: len(named[index]) + alone[index] for index, name in enumerate(predictions.classes)}
