"""The samples of a set: images with their key, class, group and part, in columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa

from shards.examine import Image
from shards.seen import Images

_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its place in the set: key, label, group and part."""

    image: Image
    key: str
    label: int
    group: str
    part: str


class Samples(Sequence[Sample]):
    """Samples in some order, in columns; a slice shares them.

    Attributes:
        images: the image of each.
        keys: Arrow texts [samples].
        labels: class indices, int64 [samples].
        groups, parts: of each sample; texts that are alike are one object.
    """

    def __init__(
        self, images: Images, keys: pa.Array, labels: np.ndarray, groups: Sequence[str], parts: Sequence[str]
    ) -> None:
        self.images, self.keys, self.labels, self.groups, self.parts = images, keys, labels, groups, parts

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Samples:
        """Return the samples as columns."""
        if isinstance(samples, cls):
            return samples
        keys = pa.array([sample.key for sample in samples], pa.large_string())
        labels = np.array([sample.label for sample in samples], np.int64)
        groups, parts = [sample.group for sample in samples], [sample.part for sample in samples]
        return cls(Images.of([sample.image for sample in samples]), keys, labels, groups, parts)

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> Samples: ...
    def __getitem__(self, place: int | slice) -> Sample | Samples:
        if isinstance(place, slice):
            keys, labels = self.keys[place], self.labels[place]
            return Samples(self.images[place], keys, labels, self.groups[place], self.parts[place])
        key, label = self.keys[place].as_py(), int(self.labels[place])
        return Sample(self.images[place], key, label, self.groups[place], self.parts[place])

    def __iter__(self) -> Iterator[Sample]:
        for start in range(0, len(self), _BLOCK):
            block = slice(start, start + _BLOCK)
            keys, labels = self.keys[block].to_pylist(), self.labels[block].tolist()
            columns = (self.images[block], keys, labels, self.groups[block], self.parts[block])
            yield from map(Sample, *columns)

    def __reduce__(self) -> tuple[Any, ...]:
        """Send these samples to another process, not those that share their columns."""
        keys = self.keys.take(pa.array(np.arange(len(self))))
        return Samples, (self.images, keys, self.labels, self.groups, self.parts)
