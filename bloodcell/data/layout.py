"""Where what is kept of each sample lies in one piece of memory: pixels, in their own or a smaller size, or bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bloodcell.data.smaller import smaller

if TYPE_CHECKING:
    from bloodcell.data.shardset import ShardSet


class Places:
    """Pieces of memory, one behind the other.

    Args:
        ids: the samples that are kept, int64 [n], ascending.
        lengths: bytes of each, int64 [n].
    """

    def __init__(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        self.ids = ids
        self.begins = np.concatenate([[0], np.cumsum(lengths)])
        self.bytes = int(self.begins[-1])
        """Of all pieces."""

    def find(self, sample: int) -> int | None:
        """Return the number of a sample among those that are kept, None if it is not kept."""
        place = int(np.searchsorted(self.ids, sample))
        return place if place < len(self.ids) and self.ids[place] == sample else None

    def place(self, sample: int, side: int = 0) -> int | None:
        """Return the number of a sample, as find() does, if it is kept as it is wanted.

        `side` is the shorter side to which pixels are wanted scaled down, 0 for their own size.
        """
        return self.find(sample)

    def shape(self, place: int) -> tuple[int, ...]:
        """Return the shape of what is kept there, of uint8."""
        return (int(self.begins[place + 1] - self.begins[place]),)


class Layout(Places):
    """Decoded images.

    Args:
        shards: the opened set.
        ids: the samples that are kept, int64 [n], ascending.
        sides: the shorter side of each, int64 [n] or one for all: larger images are kept scaled down to it; 0 keeps
            them in their own size.
    """

    def __init__(self, shards: ShardSet, ids: np.ndarray, sides: np.ndarray | int = 0) -> None:
        rows = shards.index[ids]
        own = rows["height"].astype(np.int64), rows["width"].astype(np.int64)
        self.sides = np.broadcast_to(np.asarray(sides, dtype=np.int64), ids.shape)
        self.heights, self.widths = smaller(*own, self.sides)
        self.scaled = self.heights != own[0]
        """Which images are kept smaller than they are, bool [n]."""
        super().__init__(ids, 3 * self.heights * self.widths)

    def place(self, sample: int, side: int = 0) -> int | None:
        """Return the number of a sample, None if it is not kept or in another size than is wanted."""
        place = self.find(sample)
        if place is None:
            return None
        if self.scaled[place]:
            same = side == self.sides[place]
        else:
            same = side == 0 or side >= min(self.heights[place], self.widths[place])
        return place if same else None

    def shape(self, place: int) -> tuple[int, ...]:
        """Return (height, width, 3)."""
        return int(self.heights[place]), int(self.widths[place]), 3


class EncodedLayout(Places):
    """Encoded images: the bytes of their files.

    Args:
        shards: the opened set.
        ids: the samples that are kept, int64 [n], ascending.
    """

    def __init__(self, shards: ShardSet, ids: np.ndarray) -> None:
        super().__init__(ids, shards.index["size"][ids].astype(np.int64))
