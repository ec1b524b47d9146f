"""Explore images before anything is packed: what is there, what is wrong with it, what to decide.

Nothing that is scanned is changed. What is found goes into a new folder: scan.parquet (a row per image),
decisions.csv (suggestions, to be edited by hand and given to `pack --decisions`) and report.html.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from shards.appearance import look
from shards.atomic import check_place, existing_parent, new_folder
from shards.console import say, warn
from shards.decisions import DROP, KEEP, write_decisions
from shards.duplicates import LeftOut, connected, exact_groups, near_pairs
from shards.errors import BadInput
from shards.examine import Image, examine_all
from shards.network_features import read_features
from shards.outliers import by_appearance, by_features
from shards.parallel import available_cores
from shards.personal_fields import kind_of
from shards.scan_findings import Findings, flag, near_clusters, suggestions
from shards.scan_table import scan_table
from shards.shortcuts import shortcuts
from shards.source_options import SourceOptions
from shards.sources import Listing, as_text
from shards.sources.gather import gathered


@dataclass(frozen=True)
class ScanOptions(SourceOptions):
    """What to scan and how; the help of every field is in its metadata."""

    features: str = field(
        default="", metadata={"help": "parquet of path and network features, to find outliers in instead of in colours"}
    )
    near: bool = field(default=True, metadata={"help": "search near-duplicates"})
    workers: int = field(default=0, metadata={"help": "processes; 0 is one for each core"})


def scan(source: Path, target: Path, options: ScanOptions) -> dict[str, Any]:
    """Scan the images of `source` and write what was found into the new folder `target`.

    Returns:
        {"folder", "images", "usable", "sources": {source: images}, "rejected": {reason: n}, "flags": {flag: n},
        "near_clusters", "near_left_out": what was not compared, {} if nothing, "crowds": [images],
        "personal": {field: images}, "shortcuts": [sentence], "suggested": {"keep", "drop"},
        "report", "decisions", "table"}

    Raises:
        BadInput: no images or none that decodes, a table or features that cannot be used, or `target` exists or cannot
            be made.
        EnvironmentFault: the disk is full or fails.
    """
    from shards.scan_report import write_scan_report

    if os.path.lexists(target):
        raise BadInput("the folder exists already", target, "choose another --out: decisions made there are kept")
    if options.workers < 0:
        raise BadInput(f"{options.workers} processes", "--workers", "give 1 or more, or 0 for one on each core")
    check_place(target)
    # Pictures that are unpacked from an archive are there only for as long as they are listed.
    with gathered(options.request(source, existing_parent(target), any_splits=True)) as listing:
        found = explore(listing, source, options)
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
        "sources": dict(Counter(found.source(image.item.source) for image in found.images)),
        "rejected": dict(Counter(reject.reason for reject in found.rejected)),
        "flags": dict(Counter(name for flags in found.flags for name in flags)),
        "near_clusters": len(near_clusters(found)),
        "near_left_out": found.left_out.findings(),
        "crowds": [len(group) for group in found.outliers.crowds.groups],
        "personal": dict(Counter(name for fields in found.personal for name in sorted(fields))),
        "shortcuts": [one.sentence for one in found.shortcuts if one.warned],
        "suggested": {KEEP: words[KEEP], DROP: words[DROP]},
        "report": str(target / "report.html"),
        "decisions": str(target / "decisions.csv"),
        "table": str(target / "scan.parquet"),
    }


def explore_folder(source: Path, options: ScanOptions) -> Findings:
    """List and explore without writing anything; what is unpacked from an archive is gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="bloodcell-scan-") as scratch,
        gathered(options.request(source, Path(scratch), any_splits=True)) as listing,
    ):
        return explore(listing, source, options)


def explore(listing: Listing, source: Path, options: ScanOptions) -> Findings:
    """Read every image and run all detectors."""
    folder = as_text(Path(source.resolve().name))
    names = zip(listing.items.each("source"), listing.items.texts("origin"), strict=True)
    origins = {source: origin or folder for source, origin in names}
    say(f"{len(listing.items):,} images below {', '.join([str(source), *options.also])}")
    workers = options.workers or available_cores()
    if options.features:
        read_features(Path(options.features), [])  # a table that cannot be used is told before all images are read
    images, looks, rejected = examine_all(listing.items, workers, look)
    if not images:
        first = rejected[0]
        what = f"none of the {len(rejected):,} images can be decoded, first {first.item.source}: {first.detail}"
        raise BadInput(what, source, "mend the files, or give the folder of the images themselves")
    labels = [image.item.label for image in images]
    if options.features:
        values = read_features(Path(options.features), [image.item.source for image in images])
        outliers = by_features(values, labels)
    else:
        outliers = by_appearance(looks, labels)
    same = exact_groups([image.pixels_sha256 for image in images])
    left_out = LeftOut()
    pairs = _near(looks, same, workers, left_out) if options.near else near_pairs(looks["features"][:0])
    if left_out.sentence():
        warn(f"{left_out.sentence()}; the report says so too")
    clusters = connected(len(images), _links(same, pairs))
    units = units_of(images, same, pairs)
    sources = [origins[image.item.source] for image in images]
    measured = shortcuts(images, looks, sources, units, clusters)
    personal = [{name: kind_of(name) for name in image.personal} for image in images]
    found = Findings(
        images,
        looks,
        rejected,
        same,
        pairs,
        clusters,
        units,
        outliers,
        measured,
        personal,
        listing.ignored,
        left_out,
        origins,
    )
    return flag(found)


def _near(looks: NDArray[np.void], same: list[list[int]], workers: int, left_out: LeftOut) -> NDArray[np.void]:
    """Return the pairs of near-duplicates among images with different pixels."""
    again = {other for group in same for other in group[1:]}
    first = np.array([i for i in range(len(looks)) if i not in again], np.int64)
    pairs = near_pairs(looks["features"][first], workers=workers, left_out=left_out)
    for end in ("a", "b"):
        pairs[end] = first[pairs[end]]
    return pairs


def units_of(images: Sequence[Image], same: list[list[int]], pairs: NDArray[np.void]) -> NDArray[np.int64]:
    """Return the smallest position that each image must stay together with: patients joined with copies [images]."""
    last: dict[str, int] = {}
    chain = [(last.setdefault(image.item.group, i), i) for i, image in enumerate(images) if image.item.group]
    return connected(len(images), np.concatenate([_links(same, pairs), np.array(chain, np.int64).reshape(-1, 2)]))


def _links(same: list[list[int]], pairs: NDArray[np.void]) -> NDArray[np.int64]:
    """Return pairs of positions that connect what shows the same, int64 [pairs, 2]."""
    chains = np.array([(group[0], other) for group in same for other in group[1:]], np.int64).reshape(-1, 2)
    return np.concatenate([chains, np.stack([pairs["a"], pairs["b"]], axis=1)])
