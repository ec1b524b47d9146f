"""Images that stay in memory: decoded or as encoded bytes, once on each node for all its ranks, or on each rank's GPU.

What is kept is what reading or decoding gave (uint8 RGB in the size that training looks at, or the bytes of the file),
so what the network sees is bit by bit what the path without a cache shows it. On the host an image is kept when it is
first wanted, by whichever rank wants it; from the second epoch on nothing is decoded, or nothing read.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import TYPE_CHECKING

import numpy as np

from bloodcell.data.layout import EncodedLayout, Layout, Places

if TYPE_CHECKING:
    import torch


class SharedCache:
    """Memory that the ranks of a node share. Nothing is left behind when they end, however they end.

    Args:
        layout: what is kept.
        descriptor: of the memory, from `create` or another rank's; it is taken over.
    """

    def __init__(self, layout: Places, descriptor: int) -> None:
        self.layout, self.descriptor = layout, descriptor
        size = self.size(layout)
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
        self._memory = np.frombuffer(mmap.mmap(descriptor, size), dtype=np.uint8)
        self._there = self._memory[layout.bytes : layout.bytes + len(layout.ids)]

    @staticmethod
    def size(layout: Places) -> int:
        """Return the bytes that a cache takes: its images, and one byte for each."""
        return layout.bytes + len(layout.ids) + 1

    @staticmethod
    def create() -> int:
        """Return the descriptor of new, empty memory that no file system knows by name."""
        if hasattr(os, "memfd_create"):
            return os.memfd_create("bloodcell-images")
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())

    def get(self, sample: int, side: int = 0) -> np.ndarray | None:
        """Return what is kept of a sample, uint8, not to be written to; None if it is not there (in that size).

        Args:
            sample: its id.
            side: shorter side to which pixels are wanted scaled down (see Layout); 0 is their own size.
        """
        place = self.layout.place(sample, side)
        return self._piece(place) if place is not None and self._there[place] else None

    def put(self, sample: int, image: np.ndarray) -> None:
        """Keep this of a sample, if it is one that is kept, in this size. Two ranks at once write the same bytes."""
        place = self.layout.find(sample)
        if place is None or self._there[place]:
            return
        kept = self._piece(place)
        if kept.shape == image.shape:
            kept[:] = image
            self._there[place] = 1  # after the image

    @property
    def filled(self) -> float:
        """Share of the samples that are there."""
        return float(self._there.mean()) if len(self._there) else 1.0

    def _piece(self, place: int) -> np.ndarray:
        layout = self.layout
        return self._memory[layout.begins[place] : layout.begins[place + 1]].reshape(layout.shape(place))


class HostCache(SharedCache):
    """Decoded images, uint8 [height, width, 3] each."""

    def __init__(self, layout: Layout, descriptor: int) -> None:
        super().__init__(layout, descriptor)


class EncodedCache(SharedCache):
    """The bytes of images, uint8 [size] each."""

    def __init__(self, layout: EncodedLayout, descriptor: int) -> None:
        super().__init__(layout, descriptor)


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

    def has(self, sample: int, side: int = 0) -> bool:
        """Whether the pixels of a sample are there, in that size (see Layout)."""
        place = self.layout.place(sample, side)
        return place is not None and bool(self._there[place])

    def get(self, sample: int) -> torch.Tensor:
        """Return the pixels of a sample that is there, a view of them: uint8 [height, width, 3] on the device."""
        place = self.layout.find(sample)
        if place is None or not self._there[place]:
            raise KeyError(sample)
        return self._pixels(place)

    def put(self, sample: int, pixels: torch.Tensor) -> None:
        """Keep the pixels of a sample, uint8 [height, width, 3] on the device, if they have the expected size."""
        place = self.layout.find(sample)
        if place is not None and self._pixels(place).shape == pixels.shape:
            self._pixels(place).copy_(pixels)
            self._there[place] = True

    def _pixels(self, place: int) -> torch.Tensor:
        layout = self.layout
        flat = self._memory[int(layout.begins[place]) : int(layout.begins[place + 1])]
        return flat.view(layout.shape(place))


Cache = HostCache | EncodedCache | DeviceCache

KEPT = np.empty((0, 0, 3), dtype=np.uint8)
"""Stands in a list of images for one that a GPU has already."""
