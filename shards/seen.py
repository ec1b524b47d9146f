"""Very many examined images: columns in place of an object for each, which is made when it is looked at."""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, overload

import numpy as np

from shards.examine import Image
from shards.mapped import let_go
from shards.sources import Item, Items

RECORD_DTYPE = np.dtype(
    [
        ("item", "<i8"),  # position among the items
        ("kind", "<i4"),  # position among the kinds
        ("sha256", "V32"),
        ("pixels_sha256", "V32"),
        ("crc32", "<u4"),
        ("size", "<i8"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("chunk", "<i4"),
        ("offset", "<i8"),
    ]
)
"""What the columns of `Images` hold; see `shards.examine.Image`."""

Columns = Mapping[str, np.ndarray] | np.ndarray
"""Arrays [images] by the names of RECORD_DTYPE, or an array of it."""

Kind = tuple[str, str, tuple[str, ...]]
"""Mode, format and names of the metadata fields with personal data: what many images have alike."""

_BLOCK = 1024


class Filed:
    """Records of RECORD_DTYPE written part by part into a file, each field for itself: one is read without the others.

    `most` is how many there will be at most.
    """

    def __init__(self, most: int) -> None:
        self._most, self.count = most, 0

    def write(self, file: BinaryIO, part: np.ndarray) -> None:
        """Write records [n] behind those before."""
        for name, (dtype, place, *_) in (RECORD_DTYPE.fields or {}).items():
            file.seek(place * self._most + self.count * dtype.itemsize)
            file.write(np.ascontiguousarray(part[name]).view(np.uint8).data)
        self.count += len(part)

    def columns(self, data: np.ndarray) -> Columns:
        """Return the fields of what was written, from the bytes of the file."""
        return {
            name: data[place * self._most :][: self.count * dtype.itemsize].view(dtype)
            for name, (dtype, place, *_) in (RECORD_DTYPE.fields or {}).items()
        }


class Images(Sequence[Image]):
    """Images in some order, in columns; a slice or a choice shares them.

    Attributes:
        items: all items, of which some may not be among the images.
        kinds: what the column `kind` refers to.
    """

    def __init__(self, items: Items, records: Columns, kinds: Sequence[Kind], rows: np.ndarray | None = None) -> None:
        self.items, self._records, self.kinds = items, records, kinds
        self._rows = np.arange(len(records["item"])) if rows is None else rows

    @classmethod
    def of(cls, images: Sequence[Image]) -> Images:
        """Return the images as columns."""
        if isinstance(images, cls):
            return images
        records, kinds = np.zeros(len(images), RECORD_DTYPE), dict[Kind, int]()
        for place, image in enumerate(images):
            kind = kinds.setdefault((image.mode, image.format, image.personal), len(kinds))
            digests = bytes.fromhex(image.sha256), bytes.fromhex(image.pixels_sha256)
            seen = (image.crc32, image.size, image.width, image.height, image.chunk, image.offset)
            records[place] = (place, kind, *digests, *seen)
        classes = {type(image.item) for image in images}
        items = Items.of((image.item for image in images), Item if len(classes) > 1 else None)
        return cls(items, records, list(kinds))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Image: ...
    @overload
    def __getitem__(self, place: slice) -> Images: ...
    def __getitem__(self, place: int | slice) -> Image | Images:
        if isinstance(place, slice):
            return Images(self.items, self._records, self.kinds, self._rows[place])
        return next(self._made(self._rows[range(len(self))[place]][None]))

    def __iter__(self) -> Iterator[Image]:
        for start in range(0, len(self), _BLOCK):
            yield from self._made(self._rows[start : start + _BLOCK])

    def _made(self, rows: np.ndarray) -> Iterator[Image]:
        records = self._gathered(rows)
        for item, record in zip(self.items.at(records["item"]), records.tolist(), strict=True):
            _, kind, sha256, pixels_sha256, crc32, size, width, height, *place = record
            seen = (sha256.hex(), pixels_sha256.hex(), crc32, size, width, height)
            yield Image(item, *seen, *self.kinds[kind], *place)

    def _gathered(self, rows: np.ndarray) -> np.ndarray:
        records = np.empty(len(rows), RECORD_DTYPE)
        for name in RECORD_DTYPE.names or ():
            records[name] = self._records[name][rows]
            let_go()
        return records

    def taken(self, rows: np.ndarray | Sequence[int]) -> Images:
        """Return the images at these positions, int64 [n], in their order."""
        return Images(self.items, self._records, self.kinds, self._rows[np.asarray(rows, np.int64)])

    def column(self, name: str) -> np.ndarray:
        """Return a field of RECORD_DTYPE of all images."""
        values = self._records[name][self._rows]
        let_go()
        return values

    def digests(self, name: str) -> np.ndarray:
        """Return a digest of all images as bytes of fixed length, `S32` [n]: numpy can sort them."""
        return np.ascontiguousarray(self.column(name)).view("S32")

    def hexadecimal(self, name: str) -> Iterator[str]:
        """Yield a digest of each image."""
        for start in range(0, len(self), _BLOCK):
            text = binascii.hexlify(self[start : start + _BLOCK].column(name).tobytes()).decode()
            yield from (text[place : place + 64] for place in range(0, len(text), 64))

    def sources(self) -> Iterator[str]:
        """Yield the name of each image."""
        for start in range(0, len(self), _BLOCK):
            yield from self.items.texts_at("source", self[start : start + _BLOCK].column("item"))

    def texts(self, name: str) -> list[str]:
        """Return a field of the images' items (label, group, part, origin); texts that are alike are one object."""
        known = self.items.texts(name)
        return [known[place] for place in self.column("item").tolist()]

    def __reduce__(self) -> tuple[Any, ...]:
        """Send these images to another process, not those that share their columns."""
        records = self._gathered(self._rows)
        items = self.items.taken(records["item"])
        records["item"] = np.arange(len(records))
        return Images, (items, records, self.kinds)
