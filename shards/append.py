"""Add images to a set as new shards: old tars stay as they are, the table grows, and dataset.json is replaced last."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from shards.assemble import result
from shards.atomic import disk_errors, open_atomic
from shards.chunks import Chunk, cut, load
from shards.compose import counts, identity, personal_fields, rejected_text, warn_of_personal, write_shards
from shards.console import say
from shards.decisions import read_decisions
from shards.divide import judge
from shards.errors import BadInput, nearest
from shards.examine import KEPT, Packed, Reject
from shards.extend import Joined, Standing, extend
from shards.format import DatasetInfo, read_batches, read_dataset, read_samples, write_dataset, write_samples
from shards.pack import Packing, PackOptions, examine_chunks, identified, request
from shards.report import write_set_report
from shards.samples import Samples
from shards.shown import NEAR
from shards.sources import Items, Listing, as_text
from shards.sources.gather import gathered
from shards.treat import Treatment
from shards.ways import named_splits, shares_record
from shards.work import Work, alone, going_on
from shards.write import ShardPlan, plan_shards, sample_batches

OF_THE_SET = ("split", "folds", "seed", "keep_splits", "near", *(leaf.name for leaf in fields(Treatment)))
"""Options that a set keeps: what joins it is treated and divided like what is in it."""

SHARD = re.compile(r"(?P<part>.+)-(?P<number>\d{6})\.(tar|idx|tar\.partial)")

_ROWS = 1024
"""Rows of the sample table that are turned into items at a time."""

UNFINISHED = re.compile(r"\.(.+\.idx|samples\.(parquet|npy)|rejected\.csv|report\.html|dataset\.json)\.partial\.\d+")
"""Files that were being written when a process was killed."""


@dataclass(frozen=True)
class Growth:
    """A set that images are appended to.

    Attributes:
        folder: where it lies.
        info: what it is now.
        packing: the new images; its options are those of the set where the set has a say.
        items: the images of the set.
        old: the chunks in which the images of the set are looked at again.
    """

    folder: Path
    info: DatasetInfo
    packing: Packing
    items: Items
    old: list[Chunk]


def append(source: Path, target: Path, options: PackOptions) -> dict[str, Any]:
    """Add the images below `source` to the set `target`; until the end it reads as it was.

    Returns:
        What `pack` returns about the whole set, and "appended": {"source", "images_in", "packed", "rejected", "first"}.

    Raises:
        BadInput: there is no such set, a class is unknown to it, options differ from its own, nothing is left to be
            added, an image of the set is damaged, or old and new together leak.
        EnvironmentFault: the disk is full or fails, or another process works on this set.
    """
    read_dataset(target)  # before anything is made beside it
    if not os.access(target, os.W_OK | os.X_OK):
        raise BadInput("nothing can be appended here", target, "mend its permissions")
    with alone(target.resolve(), new=False) as work, _prepared(source, work.target, options, work) as growth:
        begun, appended = work.identity(), growth.info.extra.get("appended", [])
        same = begun is not None and begun.listing == growth.packing.identity.listing
        if same and begun and appended and begun.options.get("set") == appended[-1]["before"]:
            say("these images were appended before; only the traces of it were left")
            work.discard()
            return {**result(growth.info, target), "appended": appended[-1]}
        with going_on(work), _without_strays(growth):
            work.begin(growth.packing.identity)
            (work.folder / "set").mkdir(exist_ok=True)
            examine_chunks(growth.old, growth.packing.workers, "looking at the set")
            examine_chunks(growth.packing.chunks, growth.packing.workers)
            info = _grown(growth, work)
        work.discard()
    return {**result(info, target), "appended": info.extra["appended"][-1]}


@contextmanager
def _prepared(source: Path, target: Path, options: PackOptions, work: Work) -> Iterator[Growth]:
    info = read_dataset(target)
    options = _options(info, options)
    if set(info.split["fractions"]) - set(info.samples):
        raise BadInput("the set is not divided by shares", target, "pack all images into a new set")
    with gathered(replace(request(source, target, options), one_class=True)) as listing:
        unknown = sorted(set(listing.items.distinct("label")) - set(info.classes))
        if unknown:
            fix = nearest(unknown[0], info.classes) or f"its classes are {', '.join(info.classes)}; --labels maps names"
            raise BadInput(f"the set has no class {unknown[0]!r}", source, fix)
        _check_patients(info, target, listing, source)
        if options.decisions:
            read_decisions(Path(options.decisions), set(listing.items.each("source")))
        say(f"{len(listing.items):,} images below {', '.join([str(source), *options.also])}, {info.total:,} in the set")
        chunks = cut(work.folder, listing.items, options.treatment)
        identity = identified(source, options, chunks)
        identity = replace(identity, options={**identity.options, "set": info.fingerprint})
        items = _packed(target, info)
        old = cut(work.folder / "set", items, KEPT)
        yield Growth(target, info, Packing(listing, source, options, identity, chunks), items, old)


def _options(info: DatasetInfo, options: PackOptions) -> PackOptions:
    """Return the options with those of the set in place; raises BadInput where others were given."""
    if options.keep_splits:
        fix = "leave it out; --merge-splits takes images that lie in the folders of a split"
        raise BadInput("what is appended is divided like the set", "--keep-splits", fix)
    if options.test_from or options.leave_source_out:
        fix = "pack all images into a new set"
        raise BadInput("what is appended is divided like the set", "--test-from, --leave-source-out", fix)
    plain, own = PackOptions(), {}
    for name in OF_THE_SET:
        default, given = getattr(plain, name), getattr(options, name)
        kept = info.options.get(name, default)
        if given not in (default, kept):
            fix = f"leave it out, or pack all images into a new set; the set has {kept!r}"
            raise BadInput("the set was packed otherwise", f"--{name.replace('_', '-')}", fix)
        own[name] = kept
    if not (options.group_pattern or options.table or options.dataset):
        own["group_pattern"] = info.options.get("group_pattern", "")
    for name in ("shard_bytes", "shard_samples"):
        if getattr(options, name) == getattr(plain, name):
            own[name] = info.options.get(name, getattr(plain, name))
    return replace(options, **{**own, "keep_splits": False})


def _check_patients(info: DatasetInfo, target: Path, listing: Listing, source: Path) -> None:
    """Raise BadInput where the set knows patients and none of the new images names its own: they could be anybody's."""
    if any(listing.items.distinct("group")):
        return
    known = read_samples(target, ["group"], info)["group"].unique().to_pylist()
    named = next((group for group in known if group and not group.startswith(NEAR)), None)
    if named:
        raise BadInput(
            f"the set has patients or slides (such as {named}), and none of the new images names one",
            source,
            "name them as when the set was packed, with --group-pattern, --table or --dataset; where each image is of "
            "another patient, --group-pattern '.+' says so",
        )


def _packed(folder: Path, info: DatasetInfo) -> Items:
    """Return the images of a set as items, by id."""
    kept = {"source": "source", "class": "label", "group": "group", "split": "part"}
    kept |= {name: name for name in ("key", "offset", "size", "sha256")}
    table = read_samples(folder, ["shard", *kept], info).rename_columns(["shard", *kept.values()])
    paths = [folder / shard.file for shard in info.shards]
    rows = (row for batch in table.to_batches(_ROWS) for row in batch.to_pylist())
    return Items.of(Packed(path=paths[row.pop("shard")], **row) for row in rows)


@contextmanager
def _without_strays(growth: Growth) -> Iterator[None]:
    """Where the new images cannot join the set, take away the shards that were written for them."""
    try:
        yield
    except BadInput:
        _clear(growth, [])
        raise


def _clear(growth: Growth, plans: list[ShardPlan]) -> None:
    """Remove what an append that was killed or given up left: unfinished files, shards that `plans` do not have."""
    keep = {shard.file for shard in growth.info.shards} | {plan.path.name for plan in plans}
    for path in growth.folder.iterdir():
        match = SHARD.fullmatch(path.name)
        stray = match and match["part"] in growth.info.samples and f"{path.name[: match.end('number')]}.tar" not in keep
        if stray or UNFINISHED.fullmatch(path.name):
            path.unlink()


def _grown(growth: Growth, work: Work) -> DatasetInfo:
    """Join, audit, and write: shards, tables and report first, dataset.json last."""
    info, packing, folder = growth.info, growth.packing, growth.folder
    options, items = packing.options, packing.listing.items
    dropped = read_decisions(Path(options.decisions), set(items.each("source"))) if options.decisions else {}
    standing = _standing(growth)
    seen = load(packing.chunks, items)
    joined = extend(
        standing,
        items,
        seen,
        near=options.near,
        mend=options.near and not options.allow_leaks,
        dropped=dropped,
        workers=packing.workers,
    )
    _check_something(joined, packing)
    everything = Samples.of([*standing.samples, *joined.samples])
    audited = judge(everything, joined.audit, options.allow_leaks, keep_splits=False)
    warn_of_personal(joined.samples.images)
    with disk_errors(folder):
        taken = {part: _next_number(info, part) for part in info.samples}
        plans = plan_shards(
            joined.samples, info.classes, options.shard_bytes, options.shard_samples, folder, work.folder, taken
        )
        _clear(growth, plans)
        shards, offsets = write_shards(plans, packing.workers, info.total)
        numbers = len(info.shards) + np.repeat(np.arange(len(plans)), [len(plan.samples) for plan in plans])
        new = sample_batches(joined.samples, info.classes, numbers, offsets)
        write_samples(folder, chain(read_batches(folder, info), new), len(everything))
        _write_rejected(folder / "rejected.csv", info.rejected, joined.rejected)
        entry = {
            "source": as_text(Path(packing.source.resolve().name)),
            "images_in": len(items),
            "packed": len(joined.samples),
            "rejected": len(joined.rejected),
            "first": info.total,
            "before": info.fingerprint,
            **({"encoder": packing.listing.encoder} if packing.listing.encoder else {}),
        }
        extra = {
            **info.extra,
            **personal_fields(everything.images),
            "duplicates": _findings(info, joined),
            "appended": [*info.extra.get("appended", []), entry],
        }
        parts, shares = list(info.samples), _shares(info)
        grown = replace(
            info,
            shards=[*info.shards, *shards],
            splits=named_splits(parts, [*info.shards, *shards]),
            samples=counts(everything, parts, info.classes),
            split={**info.split, "fractions": shares, **shares_record(everything, parts, shares, info.classes)},
            audit=audited,
            images_in=info.images_in + len(items),
            rejected=info.rejected + len(joined.rejected),
            fingerprint=identity(everything, info.classes),
            extra=extra,
        )
        write_set_report(folder, grown)
        write_dataset(folder, grown)
    return grown


def _standing(growth: Growth) -> Standing:
    info, items = growth.info, growth.items
    seen = load(growth.old, items)
    if seen.rejected:
        item = seen.rejected[0].item
        raise BadInput(f"{item.source} of the set does not decode any more", item.path, "pack all images anew")
    place = {name: i for i, name in enumerate(info.classes)}
    labels = np.array([place[name] for name in items.texts("label")], np.int64)
    samples = Samples(seen.images, items.column("key"), labels, items.texts("group"), items.texts("part"))
    appended, seed = len(info.extra.get("appended", [])), growth.packing.options.seed
    return Standing(samples, seen.features, info.classes, list(info.samples), _shares(info), seed, appended)


def _shares(info: DatasetInfo) -> dict[str, float]:
    """Return the share of each part that images may join: the test part of an official split stays as published."""
    shares = dict(info.split["fractions"])
    if info.options.get("keep_splits") and len(shares) > 1 and shares.pop("test", 0.0):
        total = sum(shares.values())
        return {part: share / total for part, share in shares.items()}
    return shares


def _check_something(joined: Joined, packing: Packing) -> None:
    if not joined.samples:
        reasons = sorted({reject.reason for reject in joined.rejected})
        said = ", ".join(f"{sum(r.reason == reason for r in joined.rejected):,} {reason}" for reason in reasons)
        raise BadInput(
            f"nothing to append: {len(joined.rejected):,} images in, all rejected ({said})",
            packing.source,
            "give images that the set does not have",
        )


def _next_number(info: DatasetInfo, part: str) -> int:
    """Return how the next shard of a part is numbered."""
    matches = [SHARD.fullmatch(shard.file) for shard in info.shards if shard.part == part]
    return max((int(match["number"]) + 1 for match in matches if match), default=0)


def _findings(info: DatasetInfo, joined: Joined) -> dict[str, Any]:
    """Return the counts of the whole set: what was rejected adds up, near-duplicates were searched among all."""
    before = info.extra.get("duplicates", {})
    adding = ("exact_duplicates", "contradictions", "joined_groups", "joined_by_audit")
    sums = {name: before.get(name, 0) + joined.findings.get(name, 0) for name in adding}
    return {**before, **joined.findings, **{name: n for name, n in sums.items() if n or name in before}}


def _write_rejected(path: Path, before: int, rejected: list[Reject]) -> None:
    """Write the first `before` rows that are there, and the new ones."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[: before + 1]
    except (OSError, ValueError, csv.Error) as error:
        raise BadInput(f"the list of rejected images cannot be read: {error}", path, "restore the file") from error
    with open_atomic(path, "w") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
        file.write(rejected_text(rejected, head=False))
