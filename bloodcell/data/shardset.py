"""Random access to the images of a shard set: bytes by sample id, each checked against the checksum in the index."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from shards.errors import BadInput, Unreadable
from shards.format import DatasetInfo, open_index, read_dataset, read_samples
from shards.sources.items import FIXED

OPEN_FILES = 128
"""Tars kept open at once by each process."""


@dataclass(frozen=True)
class ShardSet:
    """An opened shard set. Cheap to open: the index is mapped into memory and shared by all processes of a node.

    Attributes:
        folder: where it lies.
        info: dataset.json.
        index: INDEX_DTYPE [samples], read-only, memory-mapped.
    """

    folder: Path
    info: DatasetInfo
    index: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> ShardSet:
        """Open a set and check that its shards are there and have the right size.

        Raises:
            BadInput: no set, a newer format, a damaged table, or missing or truncated shards.
        """
        info = read_dataset(folder)
        for shard in info.shards:
            path = folder / shard.file
            try:
                size = path.stat().st_size
            except OSError as error:
                raise BadInput(
                    f"a shard is missing: {error.strerror}", path, "restore it or pack the set again"
                ) from None
            if size != shard.bytes:
                raise BadInput(
                    f"a shard has {size:,} bytes, dataset.json says {shard.bytes:,}", path, "restore it or pack again"
                )
        return cls(folder, info, open_index(folder, info))

    def ranges(self, split: str) -> np.ndarray:
        """Return the sample ids of `split` as half-open ranges, int64 [ranges, 2]."""
        return self.info.ranges(split)

    def pieces(self, split: str) -> np.ndarray:
        """Return the sample ids of each shard of `split` as half-open ranges, int64 [shards, 2]."""
        found = [(shard.first, shard.first + shard.samples) for shard in self.info.shards_of(split)]
        return np.array(found, dtype=np.int64).reshape(-1, 2)

    def split_name(self, name: str, fold: int) -> str:
        """Return the full name of 'train', 'val' or 'test' in this set: itself, or 'fold3/train'.

        A fixed test set beside folds, `fixed_test`, belongs to all of them.

        Raises:
            BadInput: a fold is asked for where there are none, or none where there are folds.
        """
        if name == FIXED and name in self.info.splits:
            return name
        folds = sorted({split.split("/")[0] for split in self.info.splits if "/" in split})
        if not folds:
            if fold >= 0:
                raise BadInput("the set has no folds", "data.fold", "leave data.fold out, or pack with --folds")
            return name
        if not 0 <= fold < len(folds):
            raise BadInput(f"the set has {len(folds)} folds", "data.fold", f"choose 0 to {len(folds) - 1}")
        return f"fold{fold}/{name}"

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """Return (columns of) the sample table, row number = sample id."""
        return read_samples(self.folder, columns)

    @cached_property
    def keys(self) -> list[str]:
        """The key of every sample, by id."""
        return self.table(["key"]).column("key").to_pylist()

    @cached_property
    def largest(self) -> tuple[int, int]:
        """Height of the tallest and width of the widest image, pixels."""
        height, width = (int(self.index[name].max(initial=1)) for name in ("height", "width"))
        return height, width

    def shard_of(self, sample: int) -> str:
        """Return the file name of the shard that holds a sample."""
        return self.info.shards[int(self.index["shard"][sample])].file

    def describe(self, sample: int) -> str:
        """Return 'key in shard' for messages."""
        return f"{self.keys[sample]} in {self.folder / self.shard_of(sample)}"


class Reader:
    """Reads image bytes by sample id with positioned reads: no shared file position, no mapped page that can fault.

    Args:
        shards: the opened set.
        check: compare every image with its checksum.
    """

    def __init__(self, shards: ShardSet, check: bool = True) -> None:
        self.shards, self.check = shards, check
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, sample: int) -> np.ndarray:
        """Return the bytes of one image, uint8 [size].

        Raises:
            Unreadable: the disk fails, the shard is gone or too short, or the bytes are not those that were
                packed; names the sample's key and shard.
        """
        row = self.shards.index[sample]
        data = np.empty(int(row["size"]), dtype=np.uint8)
        try:
            got = os.preadv(self._descriptor(int(row["shard"])), [data.data], int(row["offset"]))
        except OSError as error:
            raise self._fault(sample, error.strerror or str(error)) from error
        if got != len(data):
            raise self._fault(sample, f"{got} of {len(data)} bytes")
        if not self.matches(sample, data):
            raise self._fault(sample, "the bytes are not those that were packed")
        return data

    def matches(self, sample: int, data: np.ndarray) -> bool:
        """Whether these bytes are the image's that was packed; True if checksums are not compared."""
        return not self.check or zlib.crc32(data.data) == int(self.shards.index["crc32"][sample])

    def close(self) -> None:
        """Close all files."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _fault(self, sample: int, problem: str) -> Unreadable:
        fix = (
            f"restore the shard (`bloodcell verify {self.shards.folder}` lists all bad ones), then start again; "
            "or train without such samples: --data.on_error skip"
        )
        return unreadable(self.shards, sample, problem, fix)

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        path = self.shards.folder / self.shards.info.shards[shard].file
        self._open[shard] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        return self._open[shard]


def unreadable(shards: ShardSet, sample: int, problem: str, fix: str) -> Unreadable:
    """Return the error that names a sample, its shard and where in it."""
    where = f"{shards.describe(sample)}, byte {int(shards.index['offset'][sample]):,}"
    return Unreadable(f"a sample cannot be read: {problem}", where, fix)
