"""The cluster bootstrap: how often each group is drawn, and weighted sums of samples over many resamples at once.

Groups are drawn with replacement, as many as there are, and take all their samples with them (Field and Welsh, J. R.
Stat. Soc. B 69:369, 2007). A sample without a group is a group of its own, so without groups this is the ordinary
bootstrap. The same groups, number and seed give the same resamples, so two runs on one split can be compared in pairs.

A split of more than LARGE samples would make this slow. There groups are put into BLOCKS blocks at random, of equal
numbers of groups, and the blocks are drawn: the spread of resamples is the same, known to 1 / sqrt(2 BLOCKS) of itself
(the delete-a-group jackknife does the same: Kott, J. Off. Stat. 17:521, 2001).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

LARGE = 20_000
"""Samples up to which every group is drawn by itself, and every score counts in the resamples."""
BLOCKS = 4096
"""Blocks into which the groups of a larger split are put."""
CHUNK_WEIGHTS = 15_000_000
"""Weights (samples times resamples) held at a time; about 600 MB with all that is computed from them."""
CACHED_WEIGHTS, FEW_RESAMPLES = 300_000, 32
"""Weights that stay in the processor's cache: a chunk is not larger, but has some resamples all the same."""
BLOCK = 2048
"""Groups in a block of a matrix product."""
CELLS_PER_SAMPLE = 4
"""Cells of a table are counted in an array up to this many times the samples, beyond that by sorting."""
DENSE = 8
"""A matrix product is taken where the dense table has at most this many times the entries of the sparse one."""


def cluster_index(groups: Sequence[str]) -> np.ndarray:
    """Return the number of each sample's group, int64 [samples], from 0 without gaps; "" is a group of its own."""
    codes = pa.array(groups, pa.string()).dictionary_encode()
    index = codes.indices.to_numpy().astype(np.int64)
    names = codes.dictionary.to_pylist()
    if "" not in names:
        return index
    alone = index == names.index("")
    index[alone] = len(names) + np.arange(np.count_nonzero(alone))
    numbers: np.ndarray = np.unique(index, return_inverse=True)[1]
    return numbers


def blocks_of(cluster: np.ndarray) -> np.ndarray:
    """Return what is drawn in a bootstrap, int64 [samples]: the groups, or blocks of them where the split is large.

    Args:
        cluster: int64 [samples], from `cluster_index`.
    """
    groups = int(cluster.max()) + 1
    if len(cluster) <= LARGE or groups <= BLOCKS:
        return cluster
    block = np.random.default_rng(BLOCKS).permutation(groups) % BLOCKS
    return np.asarray(block[cluster])


class Sums:
    """A table of how much each group adds to each column; from it come the columns' sums in any resample.

    Args:
        cluster: int64 [samples], the group of each sample.
        column: int64 [samples], the column to which each sample adds.
        columns: how many columns there are.
        values: float64 [samples], what each sample adds; 1 if left out.
    """

    def __init__(self, cluster: np.ndarray, column: np.ndarray, columns: int, values: np.ndarray | None = None) -> None:
        self.shape = (columns, int(cluster.max()) + 1)
        cells, entries = _cells(column * self.shape[1] + cluster, columns * self.shape[1], values)
        place, self._cluster = np.divmod(cells, self.shape[1])
        self._entries: np.ndarray | None = entries
        if values is None:
            self._entries = None if (entries == 1).all() else entries.astype(np.int32)
        self._first = np.flatnonzero(np.diff(place, prepend=-1))
        self._filled = place[self._first]
        self._dense: np.ndarray | None = None
        if columns * self.shape[1] <= DENSE * len(cells):
            self._dense = np.zeros(self.shape, dtype=np.float64)
            self._dense[place, self._cluster] = entries

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """Return the sums, float64 [columns, batch], for the groups' weights, uint8 [groups, batch]."""
        if self._dense is not None:
            return _product(self._dense, weights)
        sums = np.zeros((self.shape[0], weights.shape[1]))
        if len(self._cluster):
            drawn = weights.take(self._cluster, axis=0)
            if self._entries is not None:
                drawn = drawn * self._entries[:, None]
            kind = np.float64 if drawn.dtype == np.float64 else np.int32
            sums[self._filled] = np.add.reduceat(drawn, self._first, axis=0, dtype=kind)
        return sums


def _cells(cell: np.ndarray, most: int, values: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells that hold samples, int64 ascending, and the sum of the samples' values (or their number)."""
    if most <= CELLS_PER_SAMPLE * len(cell):
        counts = np.bincount(cell, minlength=most)
        cells = np.flatnonzero(counts)
        return cells, counts[cells] if values is None else np.bincount(cell, weights=values, minlength=most)[cells]
    if values is None:
        return np.unique(cell, return_counts=True)
    cells, place = np.unique(cell, return_inverse=True)
    return cells, np.bincount(place, weights=values, minlength=len(cells))


class Totals:
    """As Sums, for any values: sums of `values`, float64 [samples, columns], over the samples of each group."""

    def __init__(self, cluster: np.ndarray, values: np.ndarray) -> None:
        self._dense = np.stack([np.bincount(cluster, weights=values[:, i]) for i in range(values.shape[1])])

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """Return the sums, float64 [columns, batch], for the groups' weights, uint8 [groups, batch]."""
        return _product(self._dense, weights)


def _product(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return table [columns, groups] @ weights [groups, batch], block by block so that the floats stay in the cache."""
    total = np.zeros((table.shape[0], weights.shape[1]))
    for begin in range(0, table.shape[1], BLOCK):
        total += table[:, begin : begin + BLOCK] @ weights[begin : begin + BLOCK].astype(np.float64)
    return total


@dataclass(frozen=True)
class Statistic:
    """Values that follow from the weights of the groups.

    Attributes:
        draw: takes weights, uint8 [groups, batch], and returns named values, float64 [batch] or [batch, classes].
        resamples: how many resamples it takes part in: the first of them.
    """

    draw: Callable[[np.ndarray], dict[str, np.ndarray]]
    resamples: int


def bootstrap(statistics: Sequence[Statistic], cluster: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return each statistic's values in its resamples, float64 [resamples] or [resamples, classes].

    Args:
        statistics: with names that differ; all of them see the same resamples.
        cluster: int64 [samples], from `cluster_index` or `blocks_of`.
        seed: of the resamples.
    """
    found: dict[str, list[np.ndarray]] = {}
    done = 0
    most = max(statistic.resamples for statistic in statistics)
    for weights in _weights(int(cluster.max()) + 1, min(len(cluster), LARGE), most, seed):
        for statistic in statistics:
            batch = weights[:, : max(statistic.resamples - done, 0)]
            if batch.shape[1]:
                for name, values in statistic.draw(batch).items():
                    found.setdefault(name, []).append(values)
        done += weights.shape[1]
    return {name: np.concatenate(values) for name, values in found.items()}


def _weights(groups: int, samples: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each group is drawn, uint8 [groups, batch]; the batches' size does not change the numbers.

    A byte holds it: with 255 groups or fewer always, with more a count above 255 has a probability below 1e-500.
    """
    random = np.random.default_rng(seed)
    batch = max(1, min(max(CACHED_WEIGHTS // samples, FEW_RESAMPLES), CHUNK_WEIGHTS // samples))
    for begin in range(0, resamples, batch):
        rows = np.empty((min(batch, resamples - begin), groups), dtype=np.uint8)
        for row in rows:
            row[:] = np.bincount(random.integers(0, groups, size=groups), minlength=groups)
        yield np.ascontiguousarray(rows.T)
