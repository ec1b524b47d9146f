"""The set's report: SET/report.html, one self-contained page that shows what is in a shard set and how it was made."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.document import environment, flatten, percent, plural, size, write_page
from shards.errors import BadInput
from shards.format import REJECTED_COLUMNS, DatasetInfo, read_dataset, read_samples
from shards.shown import NEAR, clusters, examples, pictures_of

MOST_ROWS = 200
"""Rows of a table that are shown; a page lists no more classes or shards than a person would read."""

FINDINGS = {
    "exact_duplicates": "exact duplicates left out (the first by path is kept)",
    "contradictions": "images left out because the same picture carries several labels",
    "near_pairs": "pairs of near-duplicates (kept, in one part)",
    "near_pairs_known": "pairs in crowds of alike pictures, not compared since their images are in one cluster anyway",
    "near_pairs_bounded": "pairs compared where too many pictures are alike",
    "near_clusters": "clusters of near-duplicates",
    "largest_cluster": "images in the largest such cluster",
    "near_contradictions": "pairs of near-duplicates with different labels",
    "joined_groups": "groups joined because they share an image",
    "joined_by_audit": "pairs that only the audit found, joined before the final split",
}

SILENT_OPTIONS = {
    "folds": 0,
    "allow_thin": False,
    "allow_leaks": False,
    "leave_source_out": False,
    "encode": "keep",
    "max_side": 0,
    "exif": "apply",
    "strip": False,
}
"""Options that say nothing in a command when they have this value."""


def write_set_report(folder: Path, becoming: DatasetInfo | None = None) -> Path:
    """Write `folder`/report.html from dataset.json, samples.parquet, rejected.csv and the shards; return its path.

    `becoming` is what dataset.json is about to say of a set that grows. The page depends on the set alone: not on the
    time, the machine or the name of the folder.

    Raises:
        BadInput: the set has no readable dataset.json, sample table or list of rejected images.
        EnvironmentFault: the disk is full or fails.
    """
    info = becoming or read_dataset(folder)
    table = read_samples(folder, ["label", "group", "width", "height", "size", "mode", "format"], info)
    known, chosen, near = groups(table), examples(info, table), clusters(table)
    shown = pictures_of(folder, info, [*chosen, *near])
    rejects = read_rejects(folder / "rejected.csv")
    content: dict[str, Any] = {
        "info": info,
        "name": set_name(info),
        "samples": table.num_rows,
        "bytes": sum(shard.bytes for shard in info.shards),
        "counts": counts_table(info),
        "groups": known,
        "patients": patients(known, info),
        "units": _units(known, info),
        "examples": [
            {"name": name, "count": sum(counts.get(name, 0) for counts in info.samples.values()), "pictures": own}
            for name, own in zip(info.classes, shown[: len(chosen)], strict=False)
        ],
        "clusters": shown[len(chosen) :],
        "findings": _findings(info),
        "rejects": rejects,
        "shapes": _shapes(table),
        "audit": audit_rows(info),
        "split": _split_rows(info),
        "missed": _missed(info),
        "warnings": info.split.get("warnings") or [],
        "options": flatten(info.options),
        "command": command(info),
        "shards": info.shards[:MOST_ROWS],
    }
    return write_page(folder / "report.html", environment(), "set.html", content)


def set_name(info: DatasetInfo) -> str:
    """Return what the set is called: the folder or table that it was packed from."""
    return str(info.options.get("source") or "shard set").rstrip("/").rsplit("/", 1)[-1]


def leak_count(info: DatasetInfo) -> int:
    """Return how often the audit found something shared across parts."""
    leaks = info.audit.get("leaks")
    return len(leaks) if isinstance(leaks, list | tuple | dict) else int(leaks or 0)


def counts_table(info: DatasetInfo) -> dict[str, Any]:
    """Return images for each class and part, with the share of its class that each part got and was to get."""
    parts = list(info.samples)
    asked = info.split.get("fractions") or {}
    if not set(parts) <= set(asked):  # beside a fixed test set and inside each source, they are not of the whole class
        asked = {}
    by_class = {name: [info.samples[part].get(name, 0) for part in parts] for name in info.classes}
    totals = {name: sum(counts) for name, counts in by_class.items()}
    whole, most = sum(totals.values()), max(totals.values(), default=0)

    def cells(counts: Iterable[int], of: int) -> list[dict[str, float]]:
        return [{"count": n, "share": n / max(of, 1)} for n in counts]

    rows = [
        {
            "name": name,
            "count": totals[name],
            "share": totals[name] / max(most, 1),
            "of_set": totals[name] / max(whole, 1),
            "cells": cells(by_class[name], totals[name]),
        }
        for name in info.classes[:MOST_ROWS]
    ]
    caption = "Images for each class and part; under each number the share of its class."
    if len(info.classes) > MOST_ROWS:
        caption += f" The first {MOST_ROWS} of {plural(len(info.classes), 'class', 'classes')}."
    return {
        "caption": caption,
        "parts": [{"name": part, "asked": asked.get(part)} for part in parts],
        "rows": rows,
        "total": cells([sum(info.samples[part].values()) for part in parts], whole),
        "count": whole,
    }


def groups(table: pa.Table) -> dict[str, Any]:
    """Return what is known about groups: {"known": images with a patient or slide, "units": independent units,
    "rows": the largest groups}; a group that is only a cluster of near-duplicates names no patient.
    """
    counted = table.select(["group"]).group_by("group").aggregate([([], "count_all")]).to_pylist()
    named = [(row["group"], row["count_all"]) for row in counted if row["group"]]
    alone = table.num_rows - sum(n for _, n in named)
    known = [(name, n) for name, n in named if not name.startswith(NEAR)]
    largest = sorted(known, key=lambda item: (-item[1], item[0]))
    return {
        "known": sum(n for _, n in known),
        "named": len(known),
        "clusters": len(named) - len(known),
        "alone": alone,
        "units": len(named) + alone,
        "rows": _tally(largest[:10]),
    }


def patients(known: dict[str, Any], info: DatasetInfo) -> str:
    """Return one sentence on what keeping patients apart means in a set whose `groups` are `known`."""
    samples = sum(shard.samples for shard in info.shards)
    if known["known"] == samples:
        named = plural(known["named"], "patient or slide", "patients or slides")
        apart = "" if info.leaks else "; none of them crosses parts"
        return f"The patient or slide of every image is known ({named}){apart}."
    if known["known"]:
        return (
            f"The patient or slide is known for {known['known']:,} of {plural(samples, 'image')}; "
            "cells of the other patients may lie in several parts."
        )
    return "The set names no patients or slides: cells of one patient may lie in several parts."


def _units(known: dict[str, Any], info: DatasetInfo) -> str:
    """Return what the set consists of: named groups, clusters of near-duplicates, images of no group."""
    parts = [
        plural(known["named"], "patient or slide", "patients or slides") if known["named"] else "",
        f"{plural(known['clusters'], 'cluster')} of near-duplicates" if known["clusters"] else "",
        f"{plural(known['alone'], 'image')} of no group" if known["alone"] else "",
    ]
    told = ", ".join(part for part in parts if part)
    return f"The set holds {told}." + ("" if info.leaks else " A group never crosses parts.")


def _tally(items: list[tuple[str, int]]) -> list[dict[str, Any]]:
    most = max((n for _, n in items), default=0)
    return [{"name": name, "count": n, "share": n / max(most, 1)} for name, n in items]


def _shapes(table: pa.Table) -> dict[str, Any]:
    """Return how often each size in pixels, PIL mode and file format occurs, and the spread of file sizes."""
    sizes = table.group_by(["width", "height"]).aggregate([([], "count_all")]).to_pylist()
    counted = sorted(((row["count_all"], row["width"], row["height"]) for row in sizes), key=lambda r: (-r[0], r[1:]))
    listed = [(f"{width} × {height} px", n) for n, width, height in counted[:8]]
    if len(counted) > 8:
        listed.append((f"{len(counted) - 8:,} other sizes", sum(n for n, _, _ in counted[8:])))
    lengths = table.column("size").to_numpy()
    low, middle, high = (size(float(value)) for value in np.quantile(lengths, (0, 0.5, 1)))
    modes, formats = (_values(table, name) for name in ("mode", "format"))
    return {"sizes": _tally(listed), "modes": modes, "formats": formats, "files": (low, middle, high)}


def _values(table: pa.Table, column: str) -> list[dict[str, Any]]:
    counted = pc.value_counts(table.column(column)).to_pylist()
    return _tally(sorted(((str(row["values"]), row["counts"]) for row in counted), key=lambda item: (-item[1], item)))


def _findings(info: DatasetInfo) -> list[tuple[str, Any]]:
    found = info.extra.get("duplicates") or {}
    return [(FINDINGS.get(name, name.replace("_", " ")), value) for name, value in found.items()]


def read_rejects(path: Path) -> list[dict[str, Any]]:
    """Return the rejected images by reason, the most frequent first: {"reason", "count", "examples": rows of the file}.

    Raises:
        BadInput: the file exists and cannot be read.
    """
    if not path.exists():
        return []
    by_reason: dict[str, dict[str, Any]] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                said = {name: row.get(name) or "" for name in REJECTED_COLUMNS}
                entry = by_reason.setdefault(said["reason"], {"reason": said["reason"], "count": 0, "examples": []})
                entry["count"] += 1
                if len(entry["examples"]) < 5:
                    entry["examples"].append(said)
    except (OSError, ValueError, csv.Error) as error:
        raise BadInput(f"the list of rejected images cannot be read: {error}", path, "pack the set again") from error
    return sorted(by_reason.values(), key=lambda entry: (-entry["count"], entry["reason"]))


def audit_rows(info: DatasetInfo) -> list[tuple[str, Any]]:
    """Return what the audit says as (name, value), the number of leaks first."""
    rest = {name: value for name, value in info.audit.items() if name != "leaks"}
    return [("leaks", leak_count(info)), *((name.replace("_", " "), value) for name, value in flatten(rest))]


def _split_rows(info: DatasetInfo) -> list[tuple[str, Any]]:
    rows = []
    for name, value in info.split.items():
        if name in ("deviations", "thin_classes", "warnings"):
            continue
        if name == "sources" and isinstance(value, dict):
            name, value = "sources left out", ", ".join(f"{fold} {source}" for fold, source in value.items())
        if name == "fractions" and isinstance(value, dict):
            value = ", ".join(f"{part} {percent(share, 0)}" for part, share in value.items())
        if name == "deviation" and isinstance(value, int | float):
            name, value = "largest difference from an asked share", f"{value * 100:.2f} percentage points"
        rows.append((name.replace("_", " "), value))
    return rows


def _missed(info: DatasetInfo) -> dict[str, Any]:
    """Return by how much each class missed its asked share in each part, in percentage points."""
    table = info.split.get("deviations") or {}
    classes = info.classes[:MOST_ROWS]
    rows = [(name, [100 * row[name] if name in row else None for row in table.values()]) for name in classes]
    return {"parts": list(table), "rows": rows}


def command(info: DatasetInfo) -> str:
    """Return the command that packs the same set from a folder of the same name, and those that append to it."""
    words = ["bloodcell", "pack", str(info.options.get("source") or "IMAGES"), "SET"]
    for name, value in info.options.items():
        if name in ("source", "decisions_sha256") or value in ("", None, []) or SILENT_OPTIONS.get(name, ...) == value:
            continue
        if name == "split" and info.options.get("folds"):
            continue
        flag = name.replace("_", "-")
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    more = [["bloodcell", "pack", entry["source"], "SET", "--append"] for entry in info.extra.get("appended", [])]
    return " && ".join(map(shlex.join, [words, *more]))
