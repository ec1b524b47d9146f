"""The report of a scan: one self-contained page with counts, distributions, and sheets of pictures to decide from."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from shards.decisions import DROP
from shards.document import environment, write_page
from shards.images import UnusableImageError
from shards.outliers import FAR, THRESHOLD
from shards.pictures import Picture, thumbnail
from shards.plots import whisker
from shards.quality import FLAGS, Thresholds
from shards.scan import Findings, ScanOptions, near_clusters
from shards.sources import as_text

SIDE = 128
"""Longer side of a thumbnail in pixels."""

THUMBNAIL_BYTES = 5_000
MOST_ON_SHEET = 24
MOST_CLUSTERS = 16
MOST_IN_CLUSTER = 6
MOST_ROWS = 100

SHEETS = {
    "outlier": "Look like nothing else in the set: foreign pictures, artefacts, rare appearances; by class.",
    "outlier (network)": "Look like nothing else to the network whose features were given; by class.",
    **{flag: f"{about[0].upper()}{about[1:]}." for flag, about in FLAGS.items()},
}
"""Flags that get a contact sheet, and what is said above it."""

MEASURES = {
    "brightness": ("Brightness", "mean grey, 0 to 255"),
    "saturation": ("Saturation", "mean of HSV, 0 to 1"),
    "sharpness": ("Sharpness", "variance of the Laplacian, on a logarithmic scale"),
}


def write_scan_report(
    path: Path, source: Path, target: Path, options: ScanOptions, found: Findings, rows: list[tuple[str, str, str]]
) -> Path:
    """Write the page to `path`; `target` is the folder that it will lie in, `rows` are the suggested decisions.

    Raises:
        EnvironmentFault: the disk is full or fails.
    """
    name = as_text(Path(source.resolve().name))
    content: dict[str, Any] = {
        "name": name,
        "files": len(found.images) + len(found.rejected),
        "usable": len(found.images),
        "ignored": found.ignored,
        "bytes": sum(image.size for image in found.images),
        "drops": sum(word == DROP for _, word, _ in rows),
        "looks": sum(word != DROP for _, word, _ in rows),
        "classes": _classes(found),
        "groups": len({image.item.group for image in found.images} - {""}),
        "ungrouped": sum(not image.item.group for image in found.images),
        "shapes": _shapes(found),
        "spread": [_spread(found, measure) for measure in MEASURES],
        "shortcuts": [asdict(one) for one in found.shortcuts],
        "warned": [one.sentence for one in found.shortcuts if one.warned and one.visible],
        "told": [one.sentence for one in found.shortcuts if one.warned and not one.visible],
        "rejected": [(r.item.source, r.item.label, r.reason, r.detail) for r in found.rejected[:MOST_ROWS]],
        "rejects": len(found.rejected),
        "clusters": _clusters(found),
        "sheets": [sheet for flag in SHEETS if (sheet := _sheet(found, flag))],
        "thresholds": _thresholds(),
        "command": _command(source, target, options),
    }
    return write_page(path, environment(), "scan.html", content)


def _classes(found: Findings) -> dict[str, Any]:
    """Return a row per class: files, and how many carry each flag that occurs."""
    flags = [flag for flag, _ in Counter(flag for flags in found.flags for flag in flags).most_common()]
    total: Counter[str] = Counter(image.item.label for image in found.images)
    bad = Counter(reject.item.label for reject in found.rejected)
    cells = Counter((image.item.label, f) for image, fs in zip(found.images, found.flags, strict=True) for f in fs)
    names = sorted(set(total) | set(bad))
    most = max(total.values(), default=1)
    rows = [
        {
            "name": name,
            "count": total[name],
            "share": total[name] / most,
            "cells": [bad[name], *(cells[name, flag] for flag in flags)],
        }
        for name in names[:MOST_ROWS]
    ]
    sums = [sum(bad.values()), *(sum(cells[name, flag] for name in names) for flag in flags)]
    return {"flags": ["not usable", *flags], "rows": rows, "count": sum(total.values()), "sums": sums}


def _shapes(found: Findings) -> dict[str, list[dict[str, Any]]]:
    images = found.images
    return {
        "sizes": _tally(f"{image.width} × {image.height} px" for image in images),
        "modes": _tally(image.mode for image in images),
        "formats": _tally(image.format for image in images),
    }


def _tally(values: Iterable[str], most: int = 8) -> list[dict[str, Any]]:
    """Return the most frequent values with their counts, the others summed up."""
    counted = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))
    listed = counted[:most]
    if len(counted) > most:
        listed.append((f"{len(counted) - most:,} others", sum(n for _, n in counted[most:])))
    largest = max((n for _, n in listed), default=1)
    return [{"name": name, "count": n, "share": n / largest} for name, n in listed]


def _spread(found: Findings, measure: str) -> dict[str, Any]:
    """Return for each class the median of a measure and where 90 % of its images lie, with the mean colour."""
    looks = found.looks
    values = (looks["features"] if measure == "sharpness" else looks)[measure].astype(np.float64)
    labels = np.array([image.item.label for image in found.images])
    drawn = np.log10(values + 1) if measure == "sharpness" else values
    scale = (float(drawn.min(initial=0)), float(drawn.max(initial=0)) or 1.0) if len(drawn) else (0.0, 1.0)
    rows = []
    for name in np.unique(labels).tolist()[:MOST_ROWS]:
        own = labels == name
        low, middle, high = np.quantile(values[own], (0.05, 0.5, 0.95))
        dot, left, right = (float(value) for value in np.quantile(drawn[own], (0.5, 0.05, 0.95)))
        colour = np.median(looks["features"]["mean"][own], axis=0).astype(int).tolist()
        rows.append(
            {
                "name": name,
                "value": _short(middle),
                "range": f"{_short(low)}–{_short(high)}",
                "drawn": whisker(dot, left, right, scale),
                "colour": "#" + "".join(f"{part:02x}" for part in colour),
            }
        )
    title, unit = MEASURES[measure]
    return {"title": title, "unit": unit, "rows": rows, "coloured": measure == "brightness"}


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def _clusters(found: Findings) -> list[dict[str, Any]]:
    """Return contradictions, exact and near duplicates as rows of pictures that lie side by side."""

    def labels(group: list[int]) -> int:
        return len({found.images[i].item.label for i in group})

    contradicting = [group for group in found.same if labels(group) > 1]
    exact = [group for group in found.same if labels(group) == 1]
    near = near_clusters(found)
    kinds = [
        (
            "One picture under several labels",
            contradicting,
            "All of them are to drop, unless you know which label is right: keep that one.",
        ),
        ("Exact duplicates", exact, "Same bytes or same pixels. The first by path is kept."),
        (
            "Near-duplicates under several labels",
            [group for group in near if labels(group) > 1],
            "The same field under different labels, or two cells that lie close together: for you to judge.",
        ),
        (
            "Near-duplicates",
            [group for group in near if labels(group) == 1],
            "The same field turned, mirrored, cropped, encoded again or taken twice. Packing keeps it in one part.",
        ),
    ]
    return [
        {
            "title": title,
            "note": note,
            "total": len(groups),
            "images": sum(map(len, groups)),
            "shown": [[_picture(found, i) for i in group[:MOST_IN_CLUSTER]] for group in groups[:MOST_CLUSTERS]],
            "sizes": [len(group) for group in groups[:MOST_CLUSTERS]],
        }
        for title, groups, note in kinds
        if groups
    ]


def _sheet(found: Findings, flag: str) -> dict[str, Any] | None:
    """Return the contact sheet of a flag: by class, the most unusual first where the flag has a score."""
    chosen = [i for i, flags in enumerate(found.flags) if flag in flags]
    if not chosen:
        return None
    judged = {"outlier": found.outliers, "outlier (network)": found.network}.get(flag)
    if judged:
        chosen.sort(key=lambda i: -judged.score[i])
    shown = sorted(_spaced(chosen) if not judged else chosen[:MOST_ON_SHEET], key=lambda i: found.images[i].item.label)
    notes = [f"{judged.score[i]:.1f}×" if judged else "" for i in shown]
    pictures = [_picture(found, i) for i in shown]
    return {
        "flag": flag,
        "about": SHEETS[flag],
        "total": len(chosen),
        "shown": [{"picture": picture, "note": note} for picture, note in zip(pictures, notes, strict=True)],
    }


def _spaced(chosen: Sequence[int]) -> list[int]:
    places = np.unique(np.linspace(0, len(chosen) - 1, min(len(chosen), MOST_ON_SHEET)).astype(np.int64))
    return [chosen[place] for place in places]


def _picture(found: Findings, i: int) -> Picture:
    image = found.images[i]
    try:
        uri = thumbnail(image.item.path.read_bytes(), SIDE, THUMBNAIL_BYTES)
    except (OSError, UnusableImageError):  # gone or changed since it was examined
        uri = ""
    return Picture(uri, image.item.source, image.item.label, image.item.source, image.width, image.height)


def _thresholds() -> list[tuple[str, str]]:
    t = Thresholds()
    like = f"and a robust z-score beyond {t.z}"
    return [
        ("compared with", f"images of about the same size and the same class, if there are {t.least} of them"),
        ("blurry", f"sharpness below {t.blurry:.0%} of the median, {like}"),
        ("dark", f"mean grey below {t.dark:.0%} of the median, {like}"),
        (
            "bright",
            f"distance to white below {t.bright:.0%} of the median, {like}; or {t.clipped:.0%} more pure white",
        ),
        ("saturated", f"mean saturation {t.saturated} above the median, {like}"),
        ("tiny", f"shorter side below {t.tiny_pixels} pixels or {t.tiny:.0%} of the median"),
        ("odd aspect", f"width to height differs from the median by a factor of {t.aspect}"),
        (
            "outlier",
            f"distance to the k-th neighbour {THRESHOLD} times the 75th percentile; from {FAR} on, to drop",
        ),
    ]


def _command(source: Path, target: Path, options: ScanOptions) -> str:
    """Return the command that packs the folder as decided."""
    words = ["bloodcell", "pack", as_text(source), "SET", "--decisions", as_text(target / "decisions.csv")]
    for name in ("table", "group_column", "group_pattern"):
        if value := getattr(options, name):
            words += [f"--{name.replace('_', '-')}", value]
    return shlex.join(words)
