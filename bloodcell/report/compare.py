"""The page of a comparison: models side by side, their differences, and the images on which they disagree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from jinja2 import PackageLoader

from bloodcell.evaluation.paired import OVERALL, SMALLER_IS_BETTER
from shards.document import decimal, environment, write_page
from shards.format import DatasetInfo, read_samples
from shards.pictures import COLUMNS, pictures

SIDE = 160
"""Longer side of a thumbnail in pixels."""
THUMBNAIL_BYTES = 8_000
"""JPEG bytes aimed at for each thumbnail: with MOST the page stays below 2 MB."""
MOST = 96
"""Images that are shown; the tables hold all."""


def write_comparison(
    path: Path,
    result: dict[str, Any],
    differing: pa.Table,
    notes: list[str],
    folder: Path | None,
    info: DatasetInfo | None,
) -> Path:
    """Write the page of a comparison; return its path.

    Args:
        path: of the page.
        result: what evaluation.compare.compare returned.
        differing: what evaluation.compare.disagreements returned.
        notes: sentences that a reader should know.
        folder: the set, for pictures; None if it is not at hand.
        info: its dataset.json.

    Raises:
        BadInput: the set's sample table cannot be read.
        EnvironmentFault: the disk is full or fails.
    """
    names = list(result["runs"])
    content = {
        "names": names,
        "result": result,
        "rows": [
            (metric, [_cell(result["runs"][name]["metrics"].get(metric)) for name in names]) for metric in OVERALL
        ],
        "pairs": [_pair(pair) for pair in result["pairs"]],
        "smaller": [name for name in OVERALL if name in SMALLER_IS_BETTER],
        "images": _images(differing, names, folder, info),
        "notes": notes,
    }
    pages = environment(PackageLoader("bloodcell.report", "templates"))
    return write_page(path, pages, "compare.html", content)


def _pair(pair: dict[str, Any]) -> dict[str, Any]:
    difference = pair["difference"]
    classes = [
        (label, [_cell(entry[name], "+") for name in ("recall", "precision", "f1")])
        for label, entry in difference["per_class"].items()
    ]
    overall = [(metric, _cell(difference["overall"][metric], "+")) for metric in OVERALL]
    return {**pair, "overall": overall, "classes": classes}


def _cell(entry: dict[str, float | None] | None, sign: str = "") -> dict[str, Any]:
    """Return {text, interval, clear} of an entry; clear: its interval does not hold 0."""
    if entry is None or entry["value"] is None:
        return {"text": decimal(None), "interval": "", "clear": False}
    low, high = entry["low"], entry["high"]
    if low is None or high is None:
        return {"text": f"{entry['value']:{sign}.3f}", "interval": "", "clear": False}
    interval = f"{low:{sign}.3f} to {high:{sign}.3f}"
    return {"text": f"{entry['value']:{sign}.3f}", "interval": interval, "clear": bool(sign) and not low <= 0 <= high}


def _images(
    differing: pa.Table, names: list[str], folder: Path | None, info: DatasetInfo | None
) -> list[dict[str, Any]]:
    rows = differing.slice(0, MOST).to_pylist()
    shown: list[Any] = [None] * len(rows)
    if folder is not None and info is not None:
        table = read_samples(folder, COLUMNS)
        shown = list(pictures(folder, info, [row["id"] for row in rows], SIDE, THUMBNAIL_BYTES, table))
    return [
        {
            "picture": picture,
            "key": row["key"],
            "label": row["label"],
            "calls": [(name, row[name], row[f"{name} probability"]) for name in names],
        }
        for row, picture in zip(rows, shown, strict=True)
    ]
