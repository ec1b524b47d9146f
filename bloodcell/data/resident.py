"""Decoded images that stay in memory: once on each node for all its ranks, or on each rank's GPU.

Images are kept as they were decoded (uint8 RGB, in their own size), so what the network sees is bit by bit what the
path that decodes every time shows it. On the host an image is decoded when it is first wanted, by whichever rank wants
it; from the second epoch on nothing is decoded.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from bloodcell.data.shardset import ShardSet


class Layout:
    """Where the pixels of each sample lie in one piece of memory.

    Args:
        shards: the opened set.
        ids: the samples that are kept, int64 [n], ascending.
    """

    def __init__(self, shards: ShardSet, ids: np.ndarray) -> None:
        self.ids = ids
        rows = shards.index[ids]
        self.heights, self.widths = rows["height"].astype(np.int64), rows["width"].astype(np.int64)
        ends = np.cumsum(3 * self.heights * self.widths)
        self.begins = np.concatenate([[0], ends])
        self.bytes = int(self.begins[-1])
        """Of all pixels."""

    def place(self, sample: int) -> int | None:
        """Return the number of a sample among those that are kept, None if it is not kept."""
        place = int(np.searchsorted(self.ids, sample))
        return place if place < len(self.ids) and self.ids[place] == sample else None


class HostCache:
    """Decoded images in memory that the ranks of a node share. Nothing is left behind when they end, however they end.

    Args:
        layout: what is kept.
        descriptor: of the memory, from `create` or another rank's; it is taken over.
    """

    def __init__(self, layout: Layout, descriptor: int) -> None:
        self.layout, self.descriptor = layout, descriptor
        size = self.size(layout)
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
        self._memory = np.frombuffer(mmap.mmap(descriptor, size), dtype=np.uint8)
        self._there = self._memory[layout.bytes : layout.bytes + len(layout.ids)]

    @staticmethod
    def size(layout: Layout) -> int:
        """Return the bytes that a cache takes: its pixels, and one byte for each sample."""
        return layout.bytes + len(layout.ids) + 1

    @staticmethod
    def create() -> int:
        """Return the descriptor of new, empty memory that no file system knows by name."""
        if hasattr(os, "memfd_create"):
            return os.memfd_create("bloodcell-images")
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())

    def get(self, sample: int) -> np.ndarray | None:
        """Return the pixels of a sample, uint8 [height, width, 3], not to be written to; None if they are not there."""
        place = self.layout.place(sample)
        return self._pixels(place) if place is not None and self._there[place] else None

    def put(self, sample: int, pixels: np.ndarray) -> None:
        """Keep the pixels of a sample, if it is one that is kept. Two ranks at once write the same bytes."""
        place = self.layout.place(sample)
        if place is None or self._there[place]:
            return
        kept = self._pixels(place)
        if kept.shape == pixels.shape:
            kept[:] = pixels
            self._there[place] = 1  # after the pixels

    @property
    def filled(self) -> float:
        """Share of the samples that are there."""
        return float(self._there.mean()) if len(self._there) else 1.0

    def _pixels(self, place: int) -> np.ndarray:
        layout = self.layout
        begin, end = layout.begins[place], layout.begins[place + 1]
        return self._memory[begin:end].reshape(layout.heights[place], layout.widths[place], 3)


class DeviceCache:
    """Decoded images in the memory of a GPU.

    Args:
        layout: what is kept.
        device: a CUDA device.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        import torch

        self.layout, self.device = layout, device
        self._memory = torch.empty(max(layout.bytes, 1), dtype=torch.uint8, device=device)
        self._there = np.zeros(len(layout.ids), dtype=bool)

    def has(self, sample: int) -> bool:
        """Whether the pixels of a sample are there."""
        place = self.layout.place(sample)
        return place is not None and bool(self._there[place])

    def get(self, sample: int) -> torch.Tensor:
        """Return the pixels of a sample that is there, a view of them: uint8 [height, width, 3] on the device."""
        place = self.layout.place(sample)
        if place is None or not self._there[place]:
            raise KeyError(sample)
        return self._pixels(place)

    def put(self, sample: int, pixels: torch.Tensor) -> None:
        """Keep the pixels of a sample, uint8 [height, width, 3] on the device, if they have the expected size."""
        place = self.layout.place(sample)
        if place is not None and self._pixels(place).shape == pixels.shape:
            self._pixels(place).copy_(pixels)
            self._there[place] = True

    def _pixels(self, place: int) -> torch.Tensor:
        layout = self.layout
        flat = self._memory[int(layout.begins[place]) : int(layout.begins[place + 1])]
        return flat.view(int(layout.heights[place]), int(layout.widths[place]), 3)


KEPT = np.empty((0, 0, 3), dtype=np.uint8)
"""Stands in a list of images for one that a GPU has already."""
