"""The n-th sample of a class, for any n: a compact table over the labels, about one byte for each sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bloodcell.data.order import count, nth_ids

BUILT_AT_ONCE = 1 << 20
"""Labels sorted at a time while the table is made, a multiple of every chunk."""

FEW_CLASSES = 64
"""Up to so many classes the table has chunks of 2**8 samples, beyond of 2**16: it grows with classes / chunk."""


@dataclass(frozen=True, eq=False)
class Members:
    """Which samples of a split belong to each class, in the order of their ids.

    The samples of the split are numbered through its ranges and cut into chunks. Of each sample its place inside its
    chunk is kept, class by class, and for each class how many samples lie before each chunk: with up to 64 classes
    1 + classes / 64 bytes a sample (below 10^8 samples and 8 classes 113 MB, a list of ids takes 800), with more
    2 + classes / 16,384. Made in one pass over the labels, asked in O(log chunks).

    Attributes:
        ranges: half-open ranges [first, last) of sample ids, int64 (ranges, 2).
        counts: samples of each class, int64 [classes].
        chunk: samples in a chunk.
        places: place of each sample inside its chunk, class by class, uint8 or uint16 [samples].
        before: samples of the class before each chunk, [classes, chunks].
    """

    ranges: np.ndarray
    counts: np.ndarray
    chunk: int
    places: np.ndarray
    before: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, ranges: np.ndarray, classes: int) -> Members:
        """Make the table.

        Args:
            labels: class index of every sample of the set by id, integers; may be mapped into memory.
            ranges: half-open ranges [first, last) of the ids of the split, int64 (ranges, 2).
            classes: how many classes there are.
        """
        kind = np.uint8 if classes <= FEW_CLASSES else np.uint16
        chunk = int(np.iinfo(kind).max) + 1
        total = count(ranges)
        blocks = [(begin, min(begin + BUILT_AT_ONCE, total)) for begin in range(0, total, BUILT_AT_ONCE)]
        before = np.zeros((classes, -(-total // chunk)), dtype=np.min_scalar_type(total))
        for begin, end in blocks:
            own = labels[nth_ids(ranges, np.arange(begin, end))].astype(np.int64)
            cells = own * -(-BUILT_AT_ONCE // chunk) + np.arange(end - begin) // chunk
            tally = np.bincount(cells, minlength=classes * (BUILT_AT_ONCE // chunk)).reshape(classes, -1)
            chunks = -(-(end - begin) // chunk)
            before[:, begin // chunk : begin // chunk + chunks] = tally[:, :chunks]
        counts = before.sum(axis=1, dtype=np.int64)
        np.cumsum(before[:, :-1], axis=1, out=before[:, 1:])
        before[:, :1] = 0
        places = np.empty(total, dtype=kind)
        ends = np.cumsum(counts) - counts
        for begin, end in blocks:
            own = labels[nth_ids(ranges, np.arange(begin, end))]
            order = np.argsort(own, kind="stable")
            sizes = np.bincount(own, minlength=classes)
            for label, members in enumerate(np.split(order, np.cumsum(sizes)[:-1])):
                places[ends[label] : ends[label] + len(members)] = members % chunk
            ends = ends + sizes
        return cls(ranges, counts, chunk, places, before)

    @property
    def nbytes(self) -> int:
        """Bytes that the table holds."""
        return self.places.nbytes + self.before.nbytes

    def ids(self, labels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Return the ids of the samples with these numbers (0 <= number < counts[label]) of their classes."""
        begins = np.cumsum(self.counts) - self.counts
        places = self.places[begins[labels] + numbers].astype(np.int64)
        chunks = np.empty_like(places)
        for label in np.unique(labels).tolist():
            mine = np.flatnonzero(labels == label)
            sought = numbers[mine].astype(self.before.dtype)
            chunks[mine] = np.searchsorted(self.before[label], sought, side="right") - 1
        return nth_ids(self.ranges, chunks * self.chunk + places)
