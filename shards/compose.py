"""Write the files of a set: its shards, the tables of samples and rejected images, and dataset.json."""

from __future__ import annotations

import csv
import io
import shutil
import threading
from collections import Counter
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from shards.clean import Cleaned
from shards.console import progress, say, warn
from shards.errors import EnvironmentFault
from shards.examine import Reject
from shards.format import (
    REJECTED_COLUMNS,
    DatasetInfo,
    ShardInfo,
    fingerprint,
    write_dataset,
    write_samples,
)
from shards.heap import give_back
from shards.parallel import map_ordered
from shards.samples import Samples
from shards.seen import Images
from shards.tar import index_path
from shards.ways import named_splits
from shards.write import ShardPlan, Written, finished, sample_batches, write_planned


@dataclass(frozen=True)
class Contents:
    """What a set is made of.

    Attributes:
        samples: in the order in which they are packed.
        classes: names by label.
        parts: names of the parts.
        cleaned: what was left out, and what was found.
        split, audit, options, extra: what dataset.json says under these names.
    """

    samples: Samples
    classes: list[str]
    parts: list[str]
    cleaned: Cleaned
    split: dict[str, Any]
    audit: dict[str, Any]
    options: dict[str, Any]
    extra: dict[str, Any]


def compose(folder: Path, shards: list[ShardInfo], offsets: np.ndarray, contents: Contents) -> DatasetInfo:
    """Write everything but the shards, which are there, and the report into `folder`, dataset.json last.

    Return what it says. `offsets` are where in their shards the images begin, int64 [samples].

    Raises:
        EnvironmentFault: the disk is full or fails.
    """
    give_back()
    samples, classes = contents.samples, contents.classes
    numbers = np.repeat(np.arange(len(shards)), [shard.samples for shard in shards])
    write_samples(folder, sample_batches(samples, classes, numbers, offsets), len(samples))
    with open(folder / "rejected.csv", "w", newline="", encoding="utf-8") as file:
        file.write(rejected_text(contents.cleaned.rejected))
    info = DatasetInfo(
        classes=classes,
        shards=shards,
        splits=named_splits(contents.parts, shards),
        samples=counts(samples, contents.parts, classes),
        split=contents.split,
        audit=contents.audit,
        options=contents.options,
        images_in=len(samples) + len(contents.cleaned.rejected),
        rejected=len(contents.cleaned.rejected),
        fingerprint=identity(samples, classes),
        extra={"duplicates": contents.cleaned.findings, **contents.extra},
    )
    write_dataset(folder, info)
    return info


def identity(samples: Samples, classes: list[str]) -> str:
    """Return the fingerprint of a set of these samples."""
    digests = samples.images.hexadecimal("sha256")
    return fingerprint(classes, zip(samples.parts, samples.labels.tolist(), digests, strict=True))


def write_shards(
    plans: list[ShardPlan], workers: int, first: int = 0, stop: threading.Event | None = None
) -> tuple[list[ShardInfo], np.ndarray]:
    """Write the shards that are not there yet; return what they are and where in them each image begins.

    Args:
        plans: of all shards.
        workers: processes.
        first: id of the first sample.
        stop: once it is set no further shard is begun, and what is returned is worth nothing.

    Raises:
        BadInput: a file changed or vanished since it was examined.
        EnvironmentFault: the disk is full or fails.
    """
    done = [finished(plan) for plan in plans]
    _clear(plans, done)
    left = [plan for plan, there in zip(plans, done, strict=True) if there is None]
    before = len(plans) - len(left)
    if before:
        say(f"{before:,} of {len(plans):,} shards were written before: taken up")
    _check_space(left)
    wanted = takewhile(lambda _: stop is None or not stop.is_set(), left)
    new = progress(map_ordered(write_planned, wanted, workers), "writing shards", len(plans), before)
    written = [one for there in done if (one := there or next(new, None))]
    list(new)  # lets the progress bar say its last word
    shards, offsets = [], [np.zeros(0, np.int64)]
    for plan, (summary, places, _) in zip(plans, written, strict=stop is None or not stop.is_set()):
        shards.append(ShardInfo(plan.path.name, plan.part, summary.samples, summary.bytes, summary.sha256, first))
        first += summary.samples
        offsets.append(np.array(places, np.int64))
    return shards, np.concatenate(offsets)


def _clear(plans: list[ShardPlan], done: list[Written | None]) -> None:
    """Remove shards in the work's folder that another plan wrote, and what was not finished."""
    if not plans or plans[0].work is None:
        return
    keep = {plan.path for plan, there in zip(plans, done, strict=True) if there}
    keep |= {index_path(path) for path in keep}
    for path in plans[0].work.parent.iterdir():
        if path.is_file() and path not in keep:
            path.unlink()


def _check_space(plans: list[ShardPlan]) -> None:
    size = sum(int(plan.samples.images.column("size").sum()) for plan in plans)
    free = shutil.disk_usage(plans[0].path.parent).free if plans else size
    if free < size:
        raise EnvironmentFault(
            f"not enough room: {size / 1e6:,.0f} MB to write, {free / 1e6:,.0f} MB free",
            plans[0].path.parent,
            "free some space or choose another disk",
        )


def counts(samples: Samples, parts: list[str], classes: list[str]) -> dict[str, dict[str, int]]:
    """Return part -> class -> number of samples."""
    found = Counter(zip(samples.parts, samples.labels.tolist(), strict=True))
    return {part: {name: found[part, label] for label, name in enumerate(classes)} for part in parts}


def personal_fields(images: Images) -> dict[str, Any]:
    """Return what dataset.json says of personal data in the metadata of the images."""
    fields, carriers = _personal(images)
    return {"personal_metadata": dict(sorted(fields.items())), "personal_metadata_images": len(carriers)}


def warn_of_personal(images: Images) -> None:
    """Say in one line which images carry personal data, and what removes it."""
    fields, carriers = _personal(images)
    if len(carriers):
        listed = ", ".join(name for name, _ in sorted(fields.items(), key=lambda entry: (-entry[1], entry[0]))[:5])
        more = ", …" if len(fields) > 5 else ""
        carry = "1 image carries" if len(carriers) == 1 else f"{len(carriers):,} images carry"
        first = min(images.taken(carriers).sources())
        warn(f"{carry} personal data in their metadata ({listed}{more}), first {first}: --strip removes it")


def _personal(images: Images) -> tuple[Counter[str], np.ndarray]:
    """Return how many images carry each field of personal data, and the positions of all that carry any."""
    kinds, fields = images.column("kind"), Counter[str]()
    for kind, count in enumerate(np.bincount(kinds, minlength=len(images.kinds)).tolist()):
        fields.update(dict.fromkeys(images.kinds[kind][2], count))
    carrying = np.array([bool(personal) for _, _, personal in images.kinds], bool)
    return +fields, np.flatnonzero(carrying[kinds]) if len(kinds) else kinds


def rejected_text(rejected: list[Reject], head: bool = True) -> str:
    """Return the lines of rejected.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if head:
        writer.writerow(REJECTED_COLUMNS)
    for reject in rejected:
        writer.writerow([reject.item.source, reject.item.label, reject.reason, reject.detail])
    return text.getvalue()
