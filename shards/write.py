"""Cut the samples of a set into shards and write them: one plan made up front, each shard written by one process."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from shards.atomic import open_atomic
from shards.chunks import spool_path
from shards.errors import BadInput, EnvironmentFault
from shards.examine import Image
from shards.format import SAMPLES_SCHEMA
from shards.images import EXTENSIONS
from shards.samples import Sample, Samples
from shards.tar import ShardSummary, ShardWriter, index_path

PLAN_VERSION = 1
"""Of what is written; to be raised when the same plan would give other bytes."""

_ROWS = 4096
"""Rows of the sample table made at a time."""

_ENCODER = json.JSONEncoder(ensure_ascii=False)  # json.dumps would make one for each sample


@dataclass(frozen=True)
class ShardPlan:
    """What one shard will hold.

    `work` is the folder with the spools of treated images; beside them lies the record of a finished shard.
    """

    path: Path
    part: str
    classes: list[str]
    samples: Samples
    work: Path | None = None

    @property
    def record(self) -> Path | None:
        """The file that says that the shard is written, and how."""
        return self.work / f"{self.path.stem}.json" if self.work else None

    def digest(self) -> str:
        """Return the digest of everything that the bytes of the shard depend on."""
        digest = new_digest()
        for sample in self.samples:
            digest.update(encoded(row(sample, self.classes)))
        return digest.hexdigest()


def new_digest() -> hashlib._Hash:
    """Return what a plan's digest begins with; the .json of each sample follows."""
    return hashlib.sha256(f"{PLAN_VERSION}".encode())


class Written(NamedTuple):
    """A written shard: what it is as a file, where in it each image begins, and the digest of its plan."""

    summary: ShardSummary
    offsets: list[int]
    plan: str


def plan_shards(
    samples: Samples,
    classes: list[str],
    shard_bytes: int,
    shard_samples: int,
    folder: Path,
    work: Path | None = None,
    taken: Mapping[str, int] | None = None,
) -> list[ShardPlan]:
    """Cut each part into shards by size and count, without looking at anything but the samples.

    `taken` says how many shards of each part there are already.
    """
    edges, filled = [0], 0
    for place, (size, part) in enumerate(zip(samples.images.column("size").tolist(), samples.parts, strict=True)):
        full = filled + size > shard_bytes or place - edges[-1] >= shard_samples
        if place > edges[-1] and (full or part != samples.parts[place - 1]):
            edges.append(place)
            filled = 0
        filled += size
    plans: list[ShardPlan] = []
    numbers = Counter(taken or {})
    for first, last in pairwise([*edges, len(samples)]):
        if first < last:
            part = samples.parts[first]
            path = folder / f"{part}-{numbers[part]:06d}.tar"
            plans.append(ShardPlan(path, part, classes, samples[first:last], work))
            numbers[part] += 1
    return plans


def write_planned(plan: ShardPlan) -> Written:
    """Write one shard and its record, so that it need not be written again after a kill; errors as in `write_shard`."""
    written = write_shard(plan)
    if plan.record:
        value = {"plan": written.plan, "summary": asdict(written.summary), "offsets": written.offsets}
        with open_atomic(plan.record, "w", durable=False) as file:
            json.dump(value, file)
    return written


def finished(plan: ShardPlan) -> Written | None:
    """Return a shard that an earlier start wrote by the same plan; None if there is none."""
    if plan.record is None:
        return None
    try:
        value = json.loads(plan.record.read_text(encoding="utf-8"))
        summary = ShardSummary(**value["summary"])
        size = plan.path.stat().st_size
    except (OSError, ValueError, TypeError, KeyError):
        return None
    same = size == summary.bytes and index_path(plan.path).exists() and value["plan"] == plan.digest()
    return Written(summary, value["offsets"], value["plan"]) if same else None


def write_shard(plan: ShardPlan) -> Written:
    """Write one tar with its index; return its summary and the offset of each sample's image bytes.

    Raises:
        BadInput: a file changed or vanished since it was examined.
        EnvironmentFault: the disk is full or fails, or a spool is damaged.
    """
    offsets, digest = [], new_digest()
    with ShardWriter(plan.path) as writer:
        for sample in plan.samples:
            said = encoded(row(sample, plan.classes))
            digest.update(said)
            members = [
                (EXTENSIONS[sample.image.format], _bytes(sample.image, plan.work)),
                ("cls", str(sample.label).encode()),
                ("json", said),
            ]
            offsets.append(writer.add(sample.key, members)[0].offset)
    return Written(writer.close(), offsets, digest.hexdigest())


def _bytes(image: Image, work: Path | None) -> bytes:
    """Return the bytes to pack, which are those that were examined."""
    if image.chunk >= 0 and work:
        return _spooled(image, spool_path(work, image.chunk))
    path = image.item.path
    try:
        data = read_file(path, image.size)
    except OSError as error:
        raise BadInput(f"an image vanished while packing: {error.strerror}", path) from error
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise BadInput("an image changed while packing", path, "pack a folder that is at rest")
    return data


def read_file(path: Path, size: int) -> bytes:
    """Return the bytes of a file that should have `size` of them: in one call, at half the cost of a file object."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(descriptor, size + 1, 0)
    finally:
        os.close(descriptor)
    return data if len(data) == size else path.read_bytes()  # the file changed, or its system gives less at a time


def encoded(said: dict[str, Any]) -> bytes:
    """Return the .json of a sample."""
    return _ENCODER.encode(said).encode()


def _spooled(image: Image, spool: Path) -> bytes:
    try:
        with open(spool, "rb") as file:
            data = os.pread(file.fileno(), image.size, image.offset)
    except OSError:
        data = b""
    if hashlib.sha256(data).hexdigest() != image.sha256:
        spool.unlink(missing_ok=True)  # so that the next start makes it again
        raise EnvironmentFault("the bytes of treated images are damaged", spool, "start again to go on")
    return data


def row(sample: Sample, classes: list[str]) -> dict[str, Any]:
    """Return what the .json of a sample says."""
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


def sample_batches(
    samples: Samples, classes: list[str], numbers: np.ndarray, offsets: np.ndarray
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of the sample table, some thousand at a time.

    `numbers` are the shards of the samples, `offsets` where their image bytes begin.
    """
    for start in range(0, len(samples), _ROWS):
        block = slice(start, start + _ROWS)
        yield _batch(samples[block], classes, numbers[block], offsets[block])


def _batch(samples: Samples, classes: list[str], numbers: np.ndarray, offsets: np.ndarray) -> pa.RecordBatch:
    images = samples.images
    kinds = [images.kinds[kind] for kind in images.column("kind").tolist()]
    columns: dict[str, Any] = {
        "key": samples.keys,
        "split": samples.parts,
        "label": samples.labels,
        "class": (classes[label] for label in samples.labels.tolist()),
        "group": samples.groups,
        "source": images.sources(),
        "sha256": images.hexadecimal("sha256"),
        "mode": (kind[0] for kind in kinds),
        "format": (kind[1] for kind in kinds),
        "shard": numbers,
        "offset": offsets,
    }
    columns |= {name: images.column(name) for name in ("crc32", "width", "height", "size")}
    return pa.record_batch([_column(columns[leaf.name], leaf.type) for leaf in SAMPLES_SCHEMA], SAMPLES_SCHEMA)


def _column(values: Iterable[Any], kind: pa.DataType) -> pa.Array:
    """Return an Arrow array of a type."""
    if isinstance(values, np.ndarray | pa.Array):
        return pa.array(values).cast(kind)
    return pa.array(list(values), kind)
