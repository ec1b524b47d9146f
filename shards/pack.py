"""From images to a shard set: list, clean, split, audit, write. The same input gives the same bytes on any machine."""

from __future__ import annotations

import csv
import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shards.atomic import new_folder
from shards.clean import Cleaned, clean
from shards.console import progress, say
from shards.decisions import digest, read_decisions
from shards.divide import divide, judge
from shards.errors import BadInput, EnvironmentFault, Fault
from shards.format import (
    REJECTED_COLUMNS,
    DatasetInfo,
    ShardInfo,
    fingerprint,
    write_dataset,
    write_samples,
)
from shards.kept import shares_of
from shards.parallel import available_cores, map_ordered
from shards.report import write_set_report
from shards.sources import Listing, as_text
from shards.sources.gather import Request, gathered
from shards.split import Split, parse_fractions
from shards.write import Sample, plan_shards, sample_table, write_shard


@dataclass(frozen=True)
class PackOptions:
    """How to pack. Every field but `workers` decides what the set contains and is stored in dataset.json."""

    split: str = field(default="80/10/10", metadata={"help": "shares of train, val and test in percent"})
    folds: int = field(default=0, metadata={"help": "cross-validation folds instead of --split; 0 is none"})
    seed: int = field(default=0, metadata={"help": "of the split and of the order inside the shards"})
    dataset: str = field(default="", metadata={"help": "definition of a known data set: its name, or a .toml file"})
    also: tuple[str, ...] = field(default=(), metadata={"help": "a further folder or .npz; may be given several times"})
    labels: str = field(
        default="", metadata={"help": "table of label (as found) and class (as wanted) for all folders"}
    )
    trees: str = field(default="", metadata={"help": "with --dataset: which versions of its pictures, A,B or all"})
    keep_splits: bool = field(default=False, metadata={"help": "keep the split whose folders the images lie in"})
    merge_splits: bool = field(
        default=False, metadata={"help": "divide anew images that lie in the folders of a split"}
    )
    table: str = field(default="", metadata={"help": "CSV, TSV or parquet with path, label and group columns"})
    group_column: str = field(default="", metadata={"help": "column of --table that names patient or slide"})
    group_pattern: str = field(default="", metadata={"help": "regular expression that finds the group in a path"})
    decisions: str = field(default="", metadata={"help": "CSV of path, keep or drop, reason, as scan suggests it"})
    near: bool = field(default=True, metadata={"help": "search near-duplicates and keep them in one part"})
    shard_bytes: int = field(default=256 << 20, metadata={"help": "largest size of a shard in bytes"})
    shard_samples: int = field(default=10_000, metadata={"help": "largest number of samples in a shard"})
    allow_leaks: bool = field(default=False, metadata={"help": "write the set although its audit finds leaks"})
    workers: int = field(default=0, metadata={"help": "processes; 0 is one for each core"})


def pack(source: Path, target: Path, options: PackOptions) -> dict[str, Any]:
    """Pack the images below `source` into the shard set `target`.

    Returns:
        {"packed", "rejected", "splits": {part: {class: n}}, "shards": [{file, samples, bytes, sha256}], ...}

    Raises:
        BadInput: nothing usable below `source`, `target` exists, a class is too small, or the split leaks.
        EnvironmentFault: the disk is full or fails.
    """
    _check_target(target)
    if options.workers < 0:
        raise BadInput(f"{options.workers} processes", "--workers", "give 1 or more, or 0 for one on each core")
    if options.keep_splits and options.folds:
        raise BadInput("a split is kept or folds are made, not both", "--keep-splits, --folds", "choose one")
    fractions = _fractions(options)
    with gathered(_request(source, target, options)) as listing:
        others = f", {listing.ignored:,} other files" if listing.ignored else ""
        say(f"{len(listing.items):,} images below {', '.join([str(source), *options.also])}{others}")
        return _pack(listing, source, target, options, fractions)


def _request(source: Path, target: Path, options: PackOptions) -> Request:
    return Request(
        (source, *map(Path, options.also)),
        _existing_parent(target),
        table=options.table,
        group_column=options.group_column,
        group_pattern=options.group_pattern,
        dataset=options.dataset,
        trees=options.trees,
        labels=options.labels,
        keep_splits=options.keep_splits,
        merge_splits=options.merge_splits,
    )


def _pack(
    listing: Listing, source: Path, target: Path, options: PackOptions, fractions: dict[str, float]
) -> dict[str, Any]:
    workers = options.workers or available_cores()
    sources = {item.source for item in listing.items}
    dropped = read_decisions(Path(options.decisions), sources) if options.decisions else {}
    cleaned = clean(listing.items, workers, options.near, dropped)
    classes = sorted({item.label for item in listing.items})
    _check_classes_left(classes, cleaned, source)
    samples, division, cleaned, found = divide(
        cleaned,
        classes,
        fractions,
        options.seed,
        keep_splits=options.keep_splits,
        mend=options.near and not options.allow_leaks,
    )
    audited = judge(samples, found, options.allow_leaks, options.keep_splits)
    if len(samples) + len(cleaned.rejected) != len(listing.items):
        raise Fault(f"{len(listing.items)} images in, {len(samples)} to pack, {len(cleaned.rejected)} rejected", source)
    _check_space(target, sum(sample.image.size for sample in samples))
    with new_folder(target) as folder:
        info = _write(folder, samples, classes, division, audited, cleaned, options, workers, source, listing.encoder)
        write_set_report(folder)
    return _result(info, target)


def _check_target(target: Path) -> None:
    """Check, before hours of work, that the set can be written where it shall lie."""
    if os.path.lexists(target):
        raise BadInput("the set exists already", target, "choose another name or remove it first")
    parent = _existing_parent(target)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise BadInput("no set can be written here", parent, "choose a folder that you may write to")


def _existing_parent(path: Path) -> Path:
    path = path.absolute().parent
    while not os.path.lexists(path):
        path = path.parent
    return path


def _fractions(options: PackOptions) -> dict[str, float]:
    if options.folds:
        if options.folds < 3:
            raise BadInput(
                f"{options.folds} folds leave no part for validation", "--folds", "give 3 or more, 5 is usual"
            )
        return {f"fold{k}": 1 / options.folds for k in range(options.folds)}
    return parse_fractions(options.split)


def _check_classes_left(classes: list[str], cleaned: Cleaned, source: Path) -> None:
    left = {image.item.label for image in cleaned.images}
    for name in classes:
        if name not in left:
            reasons = Counter(reject.reason for reject in cleaned.rejected if reject.item.label == name)
            said = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
            raise BadInput(
                f"class {name!r} has no usable image ({said})", source, "mend its files or remove the folder"
            )


def _check_space(target: Path, size: int) -> None:
    parent = _existing_parent(target)
    free = shutil.disk_usage(parent).free
    if free < size:
        raise EnvironmentFault(
            f"not enough room: {size / 1e6:,.0f} MB to write, {free / 1e6:,.0f} MB free", parent, "choose another disk"
        )


def _write(
    folder: Path,
    samples: list[Sample],
    classes: list[str],
    division: Split,
    audited: dict[str, Any],
    cleaned: Cleaned,
    options: PackOptions,
    workers: int,
    source: Path,
    encoder: str,
) -> DatasetInfo:
    plans = plan_shards(samples, classes, options.shard_bytes, options.shard_samples, folder)
    written = list(progress(map_ordered(write_shard, plans, workers), "writing shards", len(plans)))
    shards, first = [], 0
    for plan, (summary_, _) in zip(plans, written, strict=True):
        shards.append(ShardInfo(plan.path.name, plan.part, summary_.samples, summary_.bytes, summary_.sha256, first))
        first += summary_.samples
    offsets = [offset for _, shard_offsets in written for offset in shard_offsets]
    numbers = [number for number, plan in enumerate(plans) for _ in plan.samples]
    write_samples(folder, sample_table(samples, classes, numbers, offsets))
    _write_rejected(folder / "rejected.csv", cleaned)
    counts = {part: dict.fromkeys(classes, 0) for part in division.parts}
    for sample in samples:
        counts[sample.part][classes[sample.label]] += 1
    stored = {name: value for name, value in asdict(options).items() if name != "workers"}
    for name in ("table", "dataset", "labels", "decisions"):
        stored[name] = as_text(Path(Path(stored[name]).name)) if stored[name] else ""
    stored["also"] = [as_text(Path(Path(root).resolve().name)) for root in options.also]
    if options.decisions:
        stored["decisions_sha256"] = digest(Path(options.decisions))
    info = DatasetInfo(
        classes=classes,
        shards=shards,
        splits=_splits(division.parts, shards),
        samples=counts,
        split={
            "method": "kept as it was found" if options.keep_splits else "stratified, grouped",
            "fractions": shares_of(division) if options.keep_splits else _fractions(options),
            "seed": options.seed,
            "deviation": round(division.deviation, 6),
        },
        audit=audited,
        options={"source": as_text(Path(source.resolve().name)), **stored},
        images_in=len(samples) + len(cleaned.rejected),
        rejected=len(cleaned.rejected),
        fingerprint=fingerprint(classes, [(s.part, s.label, s.image.sha256) for s in samples]),
        extra={"duplicates": cleaned.findings, **({"encoder": encoder} if encoder else {})},
    )
    write_dataset(folder, info)
    return info


def _splits(parts: list[str], shards: list[ShardInfo]) -> dict[str, list[str]]:
    """Name the splits: each part is one, but each fold gives a train, a val and a test split."""
    files = {part: [shard.file for shard in shards if shard.part == part] for part in parts}
    folds = [part for part in parts if part.startswith("fold")]
    splits = {part: files[part] for part in parts if part not in folds}
    for k, part in enumerate(folds):
        val = folds[(k + 1) % len(folds)]
        rest = [name for name in folds if name not in (part, val)]
        splits[f"fold{k}/train"] = [file for name in rest for file in files[name]]
        splits[f"fold{k}/val"] = files[val]
        splits[f"fold{k}/test"] = files[part]
    return splits


def _write_rejected(path: Path, cleaned: Cleaned) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(REJECTED_COLUMNS)
        for reject in cleaned.rejected:
            writer.writerow([reject.item.source, reject.item.label, reject.reason, reject.detail])


def _result(info: DatasetInfo, target: Path) -> dict[str, Any]:
    packed = sum(shard.samples for shard in info.shards)
    return {
        "set": str(target),
        "images": info.images_in,
        "packed": packed,
        "rejected": info.rejected,
        "splits": info.samples,
        "shards": [{"file": s.file, "samples": s.samples, "bytes": s.bytes, "sha256": s.sha256} for s in info.shards],
        "duplicates": info.extra["duplicates"],
        "leaks": info.audit["leaks"],
        "fingerprint": info.fingerprint,
        "report": str(target / "report.html"),
    }
