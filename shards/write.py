"""Cut the samples of a set into shards and write them: one plan made up front, each shard written by one process."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from shards.clean import Image
from shards.errors import BadInput
from shards.format import SAMPLES_SCHEMA
from shards.images import EXTENSIONS
from shards.tar import ShardSummary, ShardWriter


@dataclass(frozen=True)
class Sample:
    """One image with its place in the set: key, label, group and part."""

    image: Image
    key: str
    label: int
    group: str
    part: str


@dataclass(frozen=True)
class ShardPlan:
    """What one shard will hold."""

    path: Path
    part: str
    classes: list[str]
    samples: list[Sample]


def plan_shards(
    samples: list[Sample], classes: list[str], shard_bytes: int, shard_samples: int, folder: Path
) -> list[ShardPlan]:
    """Cut each part into shards by size and count, without looking at anything but the samples."""
    plans: list[ShardPlan] = []
    current: list[Sample] = []
    size = 0
    numbers: Counter[str] = Counter()

    def close() -> None:
        nonlocal current, size
        if current:
            part = current[0].part
            plans.append(ShardPlan(folder / f"{part}-{numbers[part]:06d}.tar", part, classes, current))
            numbers[part] += 1
        current, size = [], 0

    for sample in samples:
        grown = size + sample.image.size
        full = grown > shard_bytes or len(current) >= shard_samples
        if current and (full or sample.part != current[0].part):
            close()
        current.append(sample)
        size += sample.image.size
    close()
    return plans


def write_shard(plan: ShardPlan) -> tuple[ShardSummary, list[int]]:
    """Write one tar with its index; return its summary and the offset of each sample's image bytes.

    Raises:
        BadInput: a file changed or vanished since it was examined.
    """
    offsets = []
    with ShardWriter(plan.path) as writer:
        for sample in plan.samples:
            try:
                data = sample.image.item.path.read_bytes()
            except OSError as error:
                raise BadInput(f"an image vanished while packing: {error.strerror}", sample.image.item.path) from error
            if hashlib.sha256(data).hexdigest() != sample.image.sha256:
                raise BadInput(
                    "an image changed while packing", sample.image.item.path, "pack a folder that is at rest"
                )
            row = _row(sample, plan.classes)
            members = [
                (EXTENSIONS[sample.image.format], data),
                ("cls", str(sample.label).encode()),
                ("json", json.dumps(row, ensure_ascii=False).encode()),
            ]
            offsets.append(writer.add(sample.key, members)[0].offset)
    return writer.close(), offsets


def _row(sample: Sample, classes: list[str]) -> dict[str, Any]:
    image = sample.image
    return {
        "key": sample.key,
        "split": sample.part,
        "label": sample.label,
        "class": classes[sample.label],
        "group": sample.group,
        "source": image.item.source,
        "sha256": image.sha256,
        "width": image.width,
        "height": image.height,
        "mode": image.mode,
        "format": image.format,
    }


def sample_table(samples: list[Sample], classes: list[str], numbers: list[int], offsets: list[int]) -> pa.Table:
    rows = [_row(sample, classes) for sample in samples]
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    columns["crc32"] = [sample.image.crc32 for sample in samples]
    columns["shard"] = numbers
    columns["offset"] = offsets
    columns["size"] = [sample.image.size for sample in samples]
    return pa.table({name: columns[name] for name in SAMPLES_SCHEMA.names}, schema=SAMPLES_SCHEMA)
