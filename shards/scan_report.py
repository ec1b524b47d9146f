"""The report of a scan: one self-contained page with counts, distributions, and sheets of pictures to decide from."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from shards.crowds import APART, SHARE, SMALLEST
from shards.decisions import DROP
from shards.document import environment, write_page
from shards.misfits import NEARER, UNLIKE
from shards.outliers import FAR, THRESHOLD
from shards.plots import whisker
from shards.quality import Thresholds
from shards.scan import ScanOptions
from shards.scan_findings import Findings
from shards.scan_sheets import SHEETS, crowd_sheets, duplicate_rows, sheet
from shards.source_options import SOURCE_FLAGS
from shards.sources import as_text

MOST_ROWS = 100
MOST_TOLD = 8
MOST_DECIDED = 20_000

SCRIPT = Path(__file__).parent / "templates" / "decide.js"

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
    content: dict[str, Any] = {
        "name": ", ".join(found.roots),
        "decisions": shlex.quote(as_text(target / "decisions.csv")),
        "files": len(found.images) + len(found.rejected),
        "usable": len(found.images),
        "ignored": found.ignored,
        "bytes": sum(image.size for image in found.images),
        "drops": sum(word == DROP for _, word, _ in rows),
        "looks": sum(word != DROP for _, word, _ in rows),
        "classes": _classes(found),
        "groups": len({image.item.group for image in found.images} - {""}),
        "ungrouped": sum(not image.item.group for image in found.images),
        "sources": _sources(found),
        "shapes": _shapes(found),
        "kinds": _kinds(found),
        "spread": [_spread(found, measure) for measure in MEASURES],
        "shortcuts": [asdict(one) for one in found.shortcuts],
        "warned": [one.sentence for one in found.shortcuts if one.warned and one.visible],
        "told": [one.sentence for one in found.shortcuts if one.warned and not one.visible],
        "rejected": [(r.item.source, r.item.label, r.reason, r.detail) for r in found.rejected[:MOST_ROWS]],
        "rejects": len(found.rejected),
        "personal": _personal(found),
        "clusters": duplicate_rows(found),
        "left_out": found.left_out.sentence(),
        "crossing": sum("crosses the split" in flags for flags in found.flags),
        "crowds": crowd_sheets(found),
        "crowded": len(found.outliers.crowds.groups),
        "network": found.outliers.network,
        "sheets": [shown for flag in SHEETS if (shown := sheet(found, flag))],
        "thresholds": _thresholds(),
        "command": _command(source, target, options),
        **_decisions(rows),
    }
    return write_page(path, environment(), "scan.html", content)


def _decisions(rows: list[tuple[str, str, str]]) -> dict[str, Any]:
    """Return what the page needs to decide in it: the rows, and the one script that its browser may run, by its hash.

    A page with more rows than MOST_DECIDED has no script: it would be as large as the table.
    """
    script = SCRIPT.read_text(encoding="utf-8") if len(rows) <= MOST_DECIDED else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    dropped = {source for source, word, _ in rows if word == DROP}
    return {"rows": rows, "dropped": dropped, "script": script, "script_hash": f"sha256-{digest}"}


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


def _sources(found: Findings) -> list[dict[str, Any]]:
    """Return a row per source: images, files that are not usable, its classes, and what was found in it."""
    rows = []
    for name in found.roots if len(found.roots) > 1 else ():
        own = [i for i, image in enumerate(found.images) if found.source(image.item.source) == name]
        classes = Counter(found.images[i].item.label for i in own).most_common(MOST_TOLD)
        flags = Counter(flag for i in own for flag in found.flags[i]).most_common(MOST_TOLD)
        rows.append(
            {
                "name": name,
                "count": len(own),
                "rejected": sum(found.source(reject.item.source) == name for reject in found.rejected),
                "classes": ", ".join(f"{label} {n:,}" for label, n in classes),
                "flags": ", ".join(f"{flag} {n:,}" for flag, n in flags),
            }
        )
    return rows


def _kinds(found: Findings) -> list[dict[str, str]]:
    """Return a row per class: its most frequent sizes, modes and formats with their shares."""
    own: dict[str, list[int]] = {}
    for i, image in enumerate(found.images):
        own.setdefault(image.item.label, []).append(i)
    rows = []
    for name in sorted(own)[:MOST_ROWS]:
        images = [found.images[i] for i in own[name]]
        rows.append(
            {
                "name": name,
                "sizes": _most(f"{image.width} × {image.height}" for image in images),
                "modes": _most(image.mode for image in images),
                "formats": _most(image.format for image in images),
            }
        )
    return rows


def _most(values: Iterable[str]) -> str:
    """Return the most frequent value with its share, and how many others there are."""
    counted = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))
    value, n = counted[0]
    if len(counted) == 1:
        return value
    return f"{value} ({n / sum(times for _, times in counted):.0%}), {len(counted) - 1} other"


def _personal(found: Findings) -> dict[str, Any]:
    """Return how many images carry personal data, a row per field, and the first such images of each."""
    having = [i for i, fields in enumerate(found.personal) if fields]
    kinds = {name: kind for i in having for name, kind in found.personal[i].items()}
    counts = Counter(name for i in having for name in found.personal[i])
    first: dict[str, str] = {}
    for i in having:
        for name in found.personal[i]:
            first.setdefault(name, found.images[i].item.source)
    rows = [
        {"field": name, "kind": kinds[name], "count": n, "first": first[name]}
        for name, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_ROWS]
    ]
    return {"images": len(having), "rows": rows}


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


def _thresholds() -> list[tuple[str, str]]:
    t = Thresholds()
    like = f"and a robust z-score beyond {t.z}"
    return [
        ("compared with", f"images of about the same size and the same class, if there are {t.least} of them"),
        ("blurry", f"sharpness for its contrast below {t.blurry:.0%} of the median, {like}"),
        ("dark", f"mean of the lightest channel below {t.dark:.0%} of the median, {like}"),
        (
            "bright",
            f"distance to white below {t.bright:.0%} of the median, {like}; or {t.clipped:.0%} more pure white",
        ),
        ("saturated", f"mean saturation {t.saturated} above the median, {like}"),
        ("tiny", f"shorter side below {t.tiny_pixels} pixels where that is unusual, or {t.tiny:.0%} of the median"),
        ("odd aspect", f"width to height differs from the median by a factor of {t.aspect}"),
        (
            "outlier",
            f"distance to the k-th neighbour {THRESHOLD} times the 75th percentile, or to the nearest quarter of the "
            f"set and of its class {THRESHOLD} times the median; from {FAR} on, to drop",
        ),
        (
            "crowd",
            f"distance to both quarters {APART} times the median, and {SMALLEST} or {SHARE:.1%} of the images alike; a "
            f"kind that is more than a quarter of its class is not found",
        ),
        ("unlike its class", f"distance to the k-th neighbour in the class {UNLIKE} times its 75th percentile"),
        ("like another class", f"{NEARER} times as near to another class, {like.replace('and', 'with')} in its class"),
    ]


def _command(source: Path, target: Path, options: ScanOptions) -> str:
    """Return the command that packs the folder as decided."""
    words = ["bloodcell", "pack", as_text(source), "SET", "--decisions", as_text(target / "decisions.csv")]
    for other in options.also:
        words += ["--also", other]
    for name in SOURCE_FLAGS:
        if value := getattr(options, name):
            words += [f"--{name.replace('_', '-')}", value]
    return shlex.join(words)
