"""Stretches of tars that one long read takes: made of the samples that a window wants, in the order of the files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LONG = 8 << 20
"""Bytes that are asked for at once, if so many lie side by side: network file systems want at least 1 MiB."""

GAP = 64 << 10
"""Bytes that nobody wants and that are read along all the same, rather than asked around: a request costs as much."""


@dataclass(frozen=True, eq=False)
class Run:
    """A stretch of one tar.

    Attributes:
        shard: position in DatasetInfo.shards.
        begin: where the first image begins, in bytes.
        end: where the last image ends.
        ids: the samples in it that are wanted, int64, ascending, as they stand in the tar.
    """

    shard: int
    begin: int
    end: int
    ids: np.ndarray


def make_runs(index: np.ndarray, ids: np.ndarray) -> list[Run]:
    """Return the runs that hold some samples, in the order of ids.

    Args:
        index: of the set, INDEX_DTYPE.
        ids: samples, integers in any order, also several times.
    """
    ids = np.unique(np.asarray(ids, dtype=np.int64))
    if not len(ids):
        return []
    rows = index[ids]
    begins = rows["offset"].astype(np.int64)
    ends = begins + rows["size"]
    apart = (rows["shard"][1:] != rows["shard"][:-1]) | (begins[1:] - ends[:-1] > GAP)
    starts, first = [0], 0
    for place in range(1, len(ids)):
        if apart[place - 1] or ends[place] - begins[first] > LONG:
            starts.append(first := place)
    return [
        Run(int(rows["shard"][a]), int(begins[a]), int(ends[b - 1]), ids[a:b])
        for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)
    ]
