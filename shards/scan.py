"""Explore a folder or table of images before anything is packed: what is there, what is wrong with it, what to decide.

Nothing below the folder is changed. What is found goes into a new folder: scan.parquet (a row per image),
decisions.csv (suggestions, to be edited by hand and given to `pack --decisions`) and report.html.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from shards.appearance import look
from shards.atomic import new_folder
from shards.clean import Image, Reject, examine_all
from shards.console import say
from shards.decisions import DROP, KEEP, write_decisions
from shards.duplicates import connected, exact_groups, near_pairs
from shards.errors import BadInput
from shards.outliers import FAR, Outliers, by_appearance, by_features, read_features
from shards.parallel import available_cores
from shards.quality import FLAGS, quality_flags
from shards.shortcuts import Shortcut, shortcuts
from shards.sources import list_folder, list_table

CERTAIN = ("exact duplicate", "contradicting label")
"""Flags of images that packing leaves out by itself."""


@dataclass(frozen=True)
class ScanOptions:
    """What to scan and how; the help of every field is in its metadata."""

    table: str = field(default="", metadata={"help": "CSV, TSV or parquet with path, label and group columns"})
    group_column: str = field(default="", metadata={"help": "column of --table that names patient or slide"})
    group_pattern: str = field(default="", metadata={"help": "regular expression that finds the group in a path"})
    features: str = field(default="", metadata={"help": "parquet of path and network features, to find outliers in"})
    near: bool = field(default=True, metadata={"help": "search near-duplicates"})
    workers: int = field(default=0, metadata={"help": "processes; 0 is one for each core"})


@dataclass(frozen=True)
class Findings:
    """Everything that was found.

    Attributes:
        images: the images that decode, by path.
        looks: their records of `shards.appearance.LOOK_DTYPE`.
        rejected: the files that do not decode.
        same: groups of positions of images with the same pixels, the first by path first.
        pairs: pairs of near-duplicates (`shards.duplicates.PAIR_DTYPE`), one image for each group of `same`.
        clusters: the smallest position that shows the same field as each image, int64 [images].
        flags: what was found about each image: CERTAIN, "near duplicate", "near contradiction", "outlier",
            "outlier (network)" and the flags of `shards.quality`.
        reasons: the same for a person, flag by flag.
        outliers: by appearance.
        network: by the features handed down; None without them.
        shortcuts: how well trivial features tell class and patient.
        ignored: other files below the folder.
    """

    images: list[Image]
    looks: NDArray[np.void]
    rejected: list[Reject]
    same: list[list[int]]
    pairs: NDArray[np.void]
    clusters: NDArray[np.int64]
    flags: list[list[str]]
    reasons: list[list[str]]
    outliers: Outliers
    network: Outliers | None
    shortcuts: list[Shortcut]
    ignored: int


def scan(source: Path, target: Path, options: ScanOptions) -> dict[str, Any]:
    """Scan the images below `source` and write what was found into the new folder `target`.

    Returns:
        {"folder", "images", "usable", "rejected": {reason: n}, "flags": {flag: n}, "near_clusters", "shortcuts":
        [sentence], "suggested": {"keep", "drop"}, "report", "decisions", "table"}

    Raises:
        BadInput: no images, a table or features that cannot be used, or `target` exists.
        EnvironmentFault: the disk is full or fails.
    """
    from shards.scan_report import write_scan_report

    if os.path.lexists(target):
        raise BadInput("the folder exists already", target, "choose another --out: decisions made there are kept")
    if options.workers < 0:
        raise BadInput(f"{options.workers} processes", "--workers", "give 1 or more, or 0 for one on each core")
    found = explore(source, options)
    rows = suggestions(found)
    with new_folder(target) as folder:
        pyarrow.parquet.write_table(scan_table(found, rows), folder / "scan.parquet", compression="zstd")
        write_decisions(folder / "decisions.csv", rows)
        write_scan_report(folder / "report.html", source, target, options, found, rows)
    words = Counter(word for _, word, _ in rows)
    return {
        "folder": str(target),
        "images": len(found.images) + len(found.rejected),
        "usable": len(found.images),
        "rejected": dict(Counter(reject.reason for reject in found.rejected)),
        "flags": dict(Counter(flag for flags in found.flags for flag in flags)),
        "near_clusters": len(near_clusters(found)),
        "shortcuts": [one.sentence for one in found.shortcuts if one.warned],
        "suggested": {KEEP: words[KEEP], DROP: words[DROP]},
        "report": str(target / "report.html"),
        "decisions": str(target / "decisions.csv"),
        "table": str(target / "scan.parquet"),
    }


def explore(source: Path, options: ScanOptions) -> Findings:
    """Read every image and run all detectors."""
    listing = (
        list_table(source, Path(options.table), options.group_column or None)
        if options.table
        else list_folder(source, options.group_pattern or None)
    )
    say(f"{len(listing.items):,} images below {source}")
    images, looks, rejected = examine_all(listing.items, options.workers or available_cores(), look)
    names = [image.item.source for image in images]
    network = by_features(read_features(Path(options.features), names)) if options.features else None
    same = exact_groups([image.pixels_sha256 for image in images])
    pairs = _near(looks, same) if options.near else near_pairs(looks["features"][:0])
    chains = np.array([(group[0], other) for group in same for other in group[1:]], np.int64).reshape(-1, 2)
    ends = np.concatenate([chains, np.stack([pairs["a"], pairs["b"]], axis=1)])
    clusters = connected(len(images), ends)
    outliers = by_appearance(looks)
    flags, reasons = _flags(images, looks, same, pairs, outliers, network)
    measured = shortcuts(images, looks, _units(images, ends))
    return Findings(
        images, looks, rejected, same, pairs, clusters, flags, reasons, outliers, network, measured, listing.ignored
    )


def _near(looks: NDArray[np.void], same: list[list[int]]) -> NDArray[np.void]:
    """Return the pairs of near-duplicates among images with different pixels."""
    again = {other for group in same for other in group[1:]}
    first = np.array([i for i in range(len(looks)) if i not in again], np.int64)
    pairs = near_pairs(looks["features"][first])
    for end in ("a", "b"):
        pairs[end] = first[pairs[end]]
    return pairs


def _units(images: list[Image], ends: NDArray[np.int64]) -> list[str]:
    """Return what each image must stay together with: its patient joined with its copies; never empty."""
    last: dict[str, int] = {}
    chain = [(last.setdefault(image.item.group, i), i) for i, image in enumerate(images) if image.item.group]
    joined = connected(len(images), np.concatenate([ends, np.array(chain, np.int64).reshape(-1, 2)]))
    return [str(unit) for unit in joined]


def _flags(
    images: list[Image],
    looks: NDArray[np.void],
    same: list[list[int]],
    pairs: NDArray[np.void],
    outliers: Outliers,
    network: Outliers | None,
) -> tuple[list[list[str]], list[list[str]]]:
    """Return flags and reasons of each image."""
    flags: list[list[str]] = [[] for _ in images]
    reasons: list[list[str]] = [[] for _ in images]

    def add(i: int, flag: str, reason: str) -> None:
        if flag not in flags[i]:
            flags[i].append(flag)
            reasons[i].append(f"{flag}: {reason}")

    for group in same:
        members = ", ".join(images[i].item.source for i in group)
        contradicting = len({images[i].item.label for i in group}) > 1
        for i in group if contradicting else group[1:]:
            first = images[group[0]]
            kind = "bytes" if images[i].sha256 == first.sha256 else "pixels"
            said = f"one picture: {members}" if contradicting else f"same {kind} as {first.item.source}"
            add(i, CERTAIN[contradicting], said)
    for a, b in zip(pairs["a"].tolist(), pairs["b"].tolist(), strict=True):
        flag = "near duplicate" if images[a].item.label == images[b].item.label else "near contradiction"
        for one, other in ((a, b), (b, a)):
            add(one, flag, f"shows the same as {images[other].item.source}")
    sizes = np.array([(image.width, image.height) for image in images], np.int64).reshape(-1, 2)
    for i, names in enumerate(quality_flags(looks, sizes, [image.item.label for image in images])):
        for name in names:
            add(i, name, FLAGS[name])
    for flag, judged in (("outlier", outliers), ("outlier (network)", network)):
        for i in np.flatnonzero(judged.flagged).tolist() if judged else ():
            add(i, flag, f"looks like nothing else, {judged.score[i]:.1f} times as far as usual" if judged else "")
    return flags, reasons


def near_clusters(found: Findings) -> list[list[int]]:
    """Return the clusters of images that show the same field with different pixels, the largest first."""
    chosen = {int(found.clusters[i]) for i in found.pairs["a"]}
    members: dict[int, list[int]] = {root: [] for root in sorted(chosen)}
    for i, root in enumerate(found.clusters.tolist()):
        if root in members:
            members[root].append(i)
    return sorted(members.values(), key=lambda cluster: (-len(cluster), cluster[0]))


def suggestions(found: Findings) -> list[tuple[str, str, str]]:
    """Return (path, keep or drop, reason) of every image that something was found about, by path.

    To drop are the images that packing leaves out by itself, and those that look like nothing else by far. All other
    findings are a person's to judge: they say keep, with the reason. Near-duplicates of one class are no reason to
    leave anything out; packing keeps them together.
    """
    rows = [(reject.item.source, DROP, f"{reject.reason}: {reject.detail}") for reject in found.rejected]
    for i, (flags, reasons) in enumerate(zip(found.flags, found.reasons, strict=True)):
        told = [reason for flag, reason in zip(flags, reasons, strict=True) if flag != "near duplicate"]
        far = max(judged.score[i] for judged in (found.outliers, found.network) if judged) >= FAR
        if told:
            word = DROP if far or set(flags) & set(CERTAIN) else KEEP
            rows.append((found.images[i].item.source, word, "; ".join(told)))
    return sorted(rows)


def scan_table(found: Findings, rows: list[tuple[str, str, str]]) -> pa.Table:
    """Return scan.parquet: a row per file, by path; measures are null where a file does not decode."""
    decided = {source: (word, reason) for source, word, reason in rows}
    files = [(image.item, i) for i, image in enumerate(found.images)]
    files += [(reject.item, -1 - k) for k, reject in enumerate(found.rejected)]
    files.sort(key=lambda entry: entry[0].source)
    members = Counter(found.clusters.tolist())
    return pa.Table.from_pylist([_row(found, place, decided, members) for _, place in files], _SCHEMA)


_NUMBERS = ("mean_r", "mean_g", "mean_b", "std_r", "std_g", "std_b", "border_r", "border_g", "border_b")
_MEASURES = (*_NUMBERS, "sharpness", "brightness", "saturation", "clipped", "outlier_score", "network_outlier_score")
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("path", "class", "group", "status", "detail")),
        *((name, pa.int64()) for name in ("bytes", "width", "height")),
        *((name, pa.string()) for name in ("mode", "format", "sha256", "pixels_sha256", "cluster")),
        *((name, pa.float32()) for name in _MEASURES),
        ("flags", pa.list_(pa.string())),
        ("decision", pa.string()),
        ("reason", pa.string()),
    ]
)


def _row(found: Findings, place: int, decided: dict[str, tuple[str, str]], members: Counter[int]) -> dict[str, Any]:
    """Return the row of the image at `place`, or of the rejected file at -1 - `place`."""
    measures: dict[str, Any]
    if place < 0:
        reject = found.rejected[-1 - place]
        item, measures = reject.item, {"status": reject.reason, "detail": reject.detail, "flags": []}
    else:
        image, seen = found.images[place], found.looks[place]
        fine, item = seen["features"], image.item
        numbers = np.concatenate([fine["mean"], fine["std"], seen["border"][:3]]).tolist()
        root = int(found.clusters[place])
        measures = {
            "status": "ok",
            "bytes": image.size,
            **{name: getattr(image, name) for name in ("width", "height", "mode", "format", "sha256", "pixels_sha256")},
            "cluster": found.images[root].item.source if members[root] > 1 else "",
            **dict(zip(_NUMBERS, numbers, strict=True)),
            "sharpness": float(fine["sharpness"]),
            **{name: float(seen[name]) for name in ("brightness", "saturation", "clipped")},
            "outlier_score": float(found.outliers.score[place]),
            "network_outlier_score": float(found.network.score[place]) if found.network else None,
            "flags": found.flags[place],
        }
    word, reason = decided.get(item.source, (KEEP, ""))
    named = {"path": item.source, "class": item.label, "group": item.group, "decision": word, "reason": reason}
    return {**named, **measures}
