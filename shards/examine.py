"""Look at every image once: read, decode, hash and measure it, and treat it where that is asked for."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from shards.console import progress
from shards.errors import BadInput
from shards.features import compute
from shards.images import UnusableImageError, examine
from shards.metadata import personal
from shards.parallel import chunked, map_ordered
from shards.sources import Item
from shards.treat import Treatment, treat

T = TypeVar("T")

CHUNK = 64
"""Images that a worker examines for each task."""

MAX_BYTES = 1 << 30
"""Files larger than this are rejected unread."""

KEPT = Treatment()
"""No treatment: every byte stays as it is."""

Measure = Callable[[np.ndarray], np.ndarray]
"""From RGB pixels uint8 [height, width, 3] to one record of features."""


@dataclass(frozen=True, slots=True)
class Packed(Item):
    """An image of a set: its bytes lie in the tar `path`."""

    key: str = ""
    offset: int = 0
    size: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """One image that decodes: the item and what was seen of the bytes that are packed.

    Attributes:
        size: in bytes.
        width, height: in pixels.
        personal: names of the metadata fields with personal data.
        chunk, offset: where treated bytes wait to be packed: in which spool, from which byte; -1: they are the file's.
    """

    item: Item
    sha256: str
    pixels_sha256: str
    crc32: int
    size: int
    width: int
    height: int
    mode: str
    format: str
    personal: tuple[str, ...] = ()
    chunk: int = -1
    offset: int = -1


@dataclass(frozen=True, slots=True)
class Reject:
    """One image left out, and why: `reason` is a fixed word, `detail` says more."""

    item: Item
    reason: str
    detail: str


class Seen(NamedTuple):
    """What examination found: the images that decode, a record of features for each of them, and the others."""

    images: list[Image]
    features: np.ndarray
    rejected: list[Reject]


def examine_all(items: Sequence[Item], workers: int, measure: Measure = compute) -> Seen:
    """Read, decode and hash every item; return the images, their features and the ones that cannot be used.

    `measure` makes one record of the features from the RGB pixels uint8 [height, width, 3].
    """
    images: list[Image] = []
    rejected: list[Reject] = []
    features: list[np.ndarray] = []
    results = map_ordered(partial(_examine_chunk, measure), chunked(items, CHUNK), workers)
    counted = ((chunk, len(chunk.images) + len(chunk.rejected)) for chunk in results)
    for chunk in ticking(counted, "examining", len(items)):
        images += chunk.images
        rejected += chunk.rejected
        features.append(chunk.features)
    return Seen(images, np.concatenate([no_rows(measure), *features]), rejected)


def no_rows(measure: Measure) -> np.ndarray:
    """Return an empty array of what `measure` gives."""
    return np.empty(0, measure(np.zeros((1, 1, 3), np.uint8)).dtype)


def ticking(results: Iterable[tuple[T, int]], what: str, total: int, done: int = 0) -> Iterator[T]:
    """Pass results on while the progress bar counts the images (at least one) that each stands for."""

    def images() -> Iterator[tuple[T] | None]:
        for result, count in results:
            yield (result,)
            for _ in range(count - 1):
                yield None

    return (entry[0] for entry in progress(images(), what, total, done) if entry is not None)


def _examine_chunk(measure: Measure, items: list[Item]) -> Seen:
    images: list[Image] = []
    rejected: list[Reject] = []
    features = np.empty(len(items), no_rows(measure).dtype)
    for item in items:
        found = look(item, measure)
        if isinstance(found, Reject):
            rejected.append(found)
            continue
        features[len(images)] = found[1]
        images.append(found[0])
    return Seen(images, features[: len(images)], rejected)


def look(item: Item, measure: Measure, how: Treatment = KEPT) -> tuple[Image, np.ndarray, bytes] | Reject:
    """Examine one item; return what was seen, its features and the bytes to pack, or why it cannot be used."""
    try:
        data = _unpacked(item) if isinstance(item, Packed) else _read(item.path)
        seen = examine(data)
        if how.changes:
            data, seen = treat(data, seen, how)
    except UnusableImageError as error:
        return Reject(item, error.reason, error.detail)
    except OSError as error:
        return Reject(item, "unreadable", error.strerror or str(error))
    fields = tuple(map(sys.intern, sorted(personal(data))))
    found = (seen.sha256, seen.pixels_sha256, seen.crc32, len(data), seen.width, seen.height, seen.mode, seen.format)
    return Image(item, *found, fields), measure(seen.rgb), data


def _read(path: Path) -> bytes:
    """Return the bytes of a plain file: a pipe would keep us waiting, a device would never end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnusableImageError("unreadable", "not a plain file")
    if status.st_size > MAX_BYTES:
        raise UnusableImageError("too large", f"{status.st_size:,} bytes, limit {MAX_BYTES:,}")
    return path.read_bytes()


def _unpacked(item: Packed) -> bytes:
    """Return the bytes of an image of a set; raises BadInput if they are not those that were packed."""
    try:
        with open(item.path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), item.size, item.offset)
    except OSError as error:
        raise BadInput(f"a shard cannot be read: {error.strerror}", item.path, "restore it from a copy") from error
    if hashlib.sha256(data).hexdigest() != item.sha256:
        fix = f"`bloodcell verify {item.path.parent}` lists all damaged ones; restore them first"
        raise BadInput(f"sample {item.key} is not as it was packed", item.path, fix)
    return data
