"""The shard set on disk, format version 1: dataset.json, the sample table and the index that readers map into memory.

SET/dataset.json      what is in the set: classes, shards with sha256, splits, audit
SET/samples.parquet   a row per sample; the row number is the sample id
SET/samples.npy       the same rows as a fixed-width index (INDEX_DTYPE), memory-mappable
SET/rejected.csv      a row per image left out, with the reason
SET/PART-000000.tar   plain WebDataset; beside it the DALI index PART-000000.idx
SET/report.html       the set for people
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.atomic import open_atomic, write_json
from shards.errors import BadInput

FORMAT = "bloodcell-shards"
VERSION = 1

INDEX_DTYPE = np.dtype(
    [
        ("offset", "<u8"),  # of the image bytes inside their tar
        ("size", "<u4"),  # bytes of the image
        ("crc32", "<u4"),  # of those bytes, checked at every read
        ("shard", "<u4"),  # position in DatasetInfo.shards
        ("label", "<i4"),  # class index
        ("width", "<u4"),  # pixels, after EXIF orientation is applied
        ("height", "<u4"),
    ]
)

SAMPLES_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # name inside the tar, unique in the set: [a-z0-9_]+
        ("split", pa.string()),  # the part: train, val, test, fold0, ..., source0-train, ... or fixed_test
        ("label", pa.int32()),
        ("class", pa.string()),
        ("group", pa.string()),  # patient, slide or duplicate cluster; never crosses parts
        ("source", pa.string()),  # path below the folder that was packed
        ("sha256", pa.string()),  # of the image bytes
        ("crc32", pa.uint32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),  # as PIL names it: RGB, L, CMYK, I;16, P, ...
        ("format", pa.string()),  # as PIL names it: JPEG, PNG, BMP, ...
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)

REPEATED = ["split", "label", "class", "group", "mode", "format", "shard"]
"""Columns whose values come again and again; a dictionary of the others would be as large as they are."""

ROW_GROUP = 1 << 13
"""Rows of the sample table that are written, and can be read, at a time."""

REJECTED_COLUMNS = ("source", "class", "reason", "detail")


@dataclass(frozen=True)
class ShardInfo:
    """One tar: its file name, its part, its samples, bytes and sha256, and the id of its first sample."""

    file: str
    part: str
    samples: int
    bytes: int
    sha256: str
    first: int


@dataclass(frozen=True)
class DatasetInfo:
    """What dataset.json says. `splits` maps a split (`train`, or `fold3/train`) to the file names of its shards."""

    classes: list[str]
    shards: list[ShardInfo]
    splits: dict[str, list[str]]
    samples: dict[str, dict[str, int]]  # part -> class -> count
    split: dict[str, Any]  # method, fractions, seed, deviation(s), warnings, thin_classes, sources, fixed_test
    audit: dict[str, Any]
    options: dict[str, Any]  # how it was packed
    images_in: int
    rejected: int
    fingerprint: str  # of classes, parts and image bytes: two sets that agree on it are the same data
    format: str = FORMAT
    version: int = VERSION
    extra: dict[str, Any] = field(default_factory=dict)

    def shards_of(self, split: str) -> list[ShardInfo]:
        """Return the shards of `split`; raises BadInput that names the splits there are."""
        if split not in self.splits:
            raise BadInput(f"the set has no split {split!r}", "dataset.json", f"choose one of {', '.join(self.splits)}")
        files = set(self.splits[split])
        return [shard for shard in self.shards if shard.file in files]

    def ranges(self, split: str) -> np.ndarray:
        """Return the sample ids of `split` as rows of half-open ranges [first, last), int64, shape (ranges, 2)."""
        found = [(shard.first, shard.first + shard.samples) for shard in self.shards_of(split)]
        merged: list[list[int]] = []
        for first, last in sorted(found):
            if merged and merged[-1][1] == first:
                merged[-1][1] = last
            else:
                merged.append([first, last])
        return np.array(merged, dtype=np.int64).reshape(-1, 2)

    def count(self, split: str) -> int:
        """Return the number of samples in `split`."""
        ranges = self.ranges(split)
        return int((ranges[:, 1] - ranges[:, 0]).sum())

    @property
    def total(self) -> int:
        """The number of samples in the set."""
        return sum(shard.samples for shard in self.shards)

    @property
    def leaks(self) -> bool:
        """Whether the set was packed although its audit found leaks."""
        return bool(self.audit.get("leaks"))


def fingerprint(classes: list[str], rows: Iterable[tuple[str, int, str]]) -> str:
    """Return the identity of a set: sha256 over its classes and each sample's (part, label, sha256), in id order."""
    digest = hashlib.sha256("\0".join(classes).encode())
    for part, label, sha256 in rows:
        digest.update(f"\n{part}\t{label}\t{sha256}".encode())
    return digest.hexdigest()


def write_dataset(folder: Path, info: DatasetInfo) -> None:
    """Write dataset.json atomically; it is the last file of a set, so a set with one is whole."""
    write_json(folder / "dataset.json", {"format": info.format, "version": info.version, **_without(asdict(info))})


def _without(value: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in value.items() if k not in ("format", "version")}


def read_dataset(folder: Path) -> DatasetInfo:
    """Read dataset.json.

    Raises:
        BadInput: there is none, it is not ours, it is damaged, or it was written by a newer version.
    """
    path = folder / "dataset.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(
            "no shard set here (no dataset.json)", folder, f"make one with `bloodcell pack IMAGES {folder}`"
        ) from None
    except NotADirectoryError:
        raise BadInput("not a folder", folder, "give the folder that `bloodcell pack` wrote") from None
    except (ValueError, OSError) as error:
        raise BadInput(
            f"dataset.json cannot be read: {error}", path, "pack the set again or restore the file"
        ) from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise BadInput("dataset.json is not a bloodcell shard set", path, "pack the images with `bloodcell pack`")
    version = value.get("version")
    if not isinstance(version, int) or version > VERSION:
        what = f"the set has format version {version}, this program reads up to {VERSION}"
        raise BadInput(what, path, "update bloodcell")
    try:
        shards = [ShardInfo(**shard) for shard in value["shards"]]
        return DatasetInfo(**{**value, "shards": shards})
    except (KeyError, TypeError) as error:
        raise BadInput(
            f"dataset.json is incomplete: {error}", path, "pack the set again or restore the file"
        ) from error


def write_samples(folder: Path, batches: Iterable[pa.RecordBatch], rows: int) -> None:
    """Write samples.parquet and samples.npy from so many rows of SAMPLES_SCHEMA in sample-id order, each atomically.

    Never more than ROW_GROUP rows are held; the files do not depend on how the rows are cut into batches.
    """
    header = {"descr": np.lib.format.dtype_to_descr(INDEX_DTYPE), "fortran_order": False, "shape": (rows,)}
    with open_atomic(folder / "samples.npy") as index, open_atomic(folder / "samples.parquet") as file:
        # Not np.save: on a full disk it raises an OSError that does not say so.
        np.lib.format.write_array_header_1_0(index, header)
        with pq.ParquetWriter(file, SAMPLES_SCHEMA, compression="zstd", use_dictionary=REPEATED) as writer:
            for table in _grouped(batches):
                writer.write_table(table, row_group_size=ROW_GROUP)
                part = np.empty(table.num_rows, dtype=INDEX_DTYPE)
                for name in INDEX_DTYPE.names or ():
                    part[name] = table.column(name).to_numpy()
                index.write(part.view(np.uint8).data)


def _grouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield the rows as tables of ROW_GROUP rows; the last may have fewer."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        while (room := ROW_GROUP - sum(map(len, held))) <= len(batch):
            yield pa.Table.from_batches([*held, batch.slice(0, room)], SAMPLES_SCHEMA).combine_chunks()
            held, batch = [], batch.slice(room)
        held += [batch] if len(batch) else []
    if held:
        yield pa.Table.from_batches(held, SAMPLES_SCHEMA).combine_chunks()


def read_samples(folder: Path, columns: list[str] | None = None, info: DatasetInfo | None = None) -> pa.Table:
    """Read (some columns of) samples.parquet: as many rows as dataset.json says, for an append writes them first.

    `info` saves reading dataset.json.

    Raises:
        BadInput: it is missing or damaged, or there is no dataset.json.
    """
    samples = (info or read_dataset(folder)).total
    with _readable(folder / "samples.parquet") as path:
        return pq.read_table(path, columns=columns).slice(0, samples)


def read_rows(folder: Path, ids: Sequence[int] | np.ndarray, columns: list[str]) -> pa.Table:
    """Read some columns of these rows of samples.parquet, in their order, holding ROW_GROUP other rows at most.

    Raises:
        BadInput: it is missing or damaged, or has no such row.
    """
    wanted, places = np.unique(np.asarray(ids, np.int64), return_inverse=True)
    with _readable(folder / "samples.parquet") as path, pq.ParquetFile(path) as file:
        edges = np.cumsum([0, *(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))])
        groups, found = np.searchsorted(edges, wanted, side="right") - 1, []
        for group in np.unique(groups).tolist():
            rows = pa.array(wanted[groups == group] - edges[group])
            found.append(file.read_row_group(group, columns=columns).take(rows))
        return pa.concat_tables([SAMPLES_SCHEMA.empty_table().select(columns), *found]).take(pa.array(places))


def read_batches(folder: Path, info: DatasetInfo) -> Iterator[pa.RecordBatch]:
    """Yield the rows of samples.parquet that dataset.json knows, ROW_GROUP at a time; errors as in `read_samples`."""
    left = info.total
    with _readable(folder / "samples.parquet") as path, pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROW_GROUP):
            yield batch.slice(0, left)
            left -= min(left, len(batch))


@contextmanager
def _readable(path: Path) -> Iterator[Path]:
    """Raise BadInput where the sample table turns out to be unreadable."""
    try:
        yield path
    except (OSError, pa.ArrowException) as error:
        raise BadInput(
            f"the sample table cannot be read: {error}", path, "restore the file or pack the set again"
        ) from error


def open_index(folder: Path, info: DatasetInfo) -> np.ndarray:
    """Map samples.npy into memory, read-only, dtype INDEX_DTYPE, one row per sample id.

    Rows behind those of dataset.json are left out: an append writes them first.

    Raises:
        BadInput: the file is missing, damaged or does not belong to dataset.json.
    """
    path = folder / "samples.npy"
    try:
        index: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(
            f"the sample index cannot be read: {error}", path, "restore the file or pack the set again"
        ) from error
    if index.dtype != INDEX_DTYPE or index.ndim != 1 or len(index) < info.total:
        raise BadInput(
            f"the sample index has {index.shape} rows of another layout, expected {info.total}",
            path,
            "restore the file or pack the set again",
        )
    return index[: info.total]
