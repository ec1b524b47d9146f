"""A shard set for notebooks and scripts: its tables, and its images one by one, each checked when it is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from bloodcell.data.shardset import Reader, ShardSet
from shards.images import decode


class OpenSet:
    """A set that is open for reading; made by bloodcell.open_set().

    Args:
        folder: the set.

    Raises:
        BadInput: no set, or a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        self.shards = ShardSet.open(folder)
        self._reader = Reader(self.shards)

    def __len__(self) -> int:
        return len(self.shards.index)

    @property
    def classes(self) -> list[str]:
        """Class names in index order."""
        return list(self.shards.info.classes)

    @property
    def splits(self) -> dict[str, int]:
        """Split -> samples in it; with folds `fold0/train` and so on."""
        return {name: self.shards.info.count(name) for name in self.shards.info.splits}

    def table(self, split: str | None = None, columns: list[str] | None = None) -> pa.Table:
        """Return a row for each sample: key, split, label, class, group, source, sha256, width, height and more.

        Args:
            split: train, val, test, fold0/train, …; None is all samples, row number = sample id.
            columns: only these.

        Raises:
            BadInput: no such split.
        """
        table = self.shards.table(columns)
        return table if split is None else table.take(pa.array(self.ids(split)))

    def ids(self, split: str) -> np.ndarray:
        """Return the sample ids of a split, int64, ascending; raises BadInput if there is none of this name."""
        ranges = [np.arange(first, last, dtype=np.int64) for first, last in self.shards.ranges(split)]
        return np.concatenate([np.empty(0, dtype=np.int64), *ranges])

    def bytes(self, sample: int) -> bytes:
        """Return the image file of a sample as it was packed; raises Unreadable where it is damaged."""
        return self._reader.read(sample).tobytes()

    def image(self, sample: int) -> np.ndarray:
        """Return the pixels of a sample, uint8 RGB [height, width, 3]; raises Unreadable where it is damaged."""
        return decode(self.bytes(sample))[0]
