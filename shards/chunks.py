"""Chunks of a packing: what examination found of some images, kept in a file, so that no image is looked at twice.

A chunk file is a sha256 (32 bytes) of all that follows, then an Arrow IPC stream with a row for each image. The bytes
of treated images lie one after the other in a spool beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute as pc
from PIL import features

from shards.atomic import open_atomic
from shards.errors import EnvironmentFault
from shards.examine import CHUNK, Image, Reject, look
from shards.features import FEATURES_DTYPE, compute
from shards.mapped import mapped
from shards.seen import RECORD_DTYPE, Filed, Images, Kind
from shards.sources import Items
from shards.spooled import Records, spooled
from shards.treat import Treatment, parameters

VERSION = 1
"""Of what examination finds; to be raised when the same file would be judged or measured otherwise."""

DECODERS = ("libjpeg_turbo", "zlib", "libtiff", "jpg_2000", "webp")
"""Libraries that decide which pixels a file has."""

STATS = 16
"""Files asked for their size at the same time, where an answer takes long."""

SLOW = 0.02
"""Seconds that all answers of a chunk take together before other chunks are asked for at the same time."""

HASH = 32
"""Bytes of a sha256."""

SCHEMA = pa.schema(
    [
        ("reason", pa.string()),  # why the image cannot be used; null for one that can, whose other columns are filled
        ("detail", pa.string()),
        ("sha256", pa.binary(HASH)),
        ("pixels_sha256", pa.binary(HASH)),
        ("crc32", pa.uint32()),
        ("size", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("format", pa.string()),
        ("personal", pa.list_(pa.string())),
        ("features", pa.binary(FEATURES_DTYPE.itemsize)),
    ]
)


@dataclass(frozen=True)
class Chunk:
    """Some consecutive images of a listing.

    Attributes:
        folder: where the chunk's file lies.
        number: of the chunk; the first is 0.
        digest: of everything that what is found depends on: the files' names, sizes and times, treatment, versions.
        items: the images.
        how: what is done to them.
    """

    folder: Path
    number: int
    digest: str
    items: Items
    how: Treatment

    @property
    def path(self) -> Path:
        """The file with what was found."""
        return self.folder / f"chunk-{self.number:06d}.arrow"

    @property
    def spool(self) -> Path:
        """The file with the bytes of treated images."""
        return spool_path(self.folder, self.number)


def examination(how: Treatment) -> dict[str, Any]:
    """Return, as JSON, what is found of an image depends on beside its file: the program, libraries, treatment."""
    record = hashlib.sha256(repr(FEATURES_DTYPE.descr).encode()).hexdigest()[:16]
    decoders = {f"version of {name}": features.version(name) or "" for name in DECODERS}
    own = {"version of the examination": VERSION, "features": record, "version of Pillow": PIL.__version__}
    return json.loads(json.dumps({**own, **decoders, "treatment": asdict(how), **parameters(how)}))


def cut(folder: Path, items: Items, how: Treatment) -> list[Chunk]:
    """Cut a listing into chunks, and give each its digest; looks at the size and time of every file."""
    shown = json.dumps(examination(how), sort_keys=True)

    def chunk(number: int) -> Chunk:
        part = items[number * CHUNK : (number + 1) * CHUNK]
        columns = [part.column(name).to_pylist() for name in items.names if name != "path"]
        states = map(_state, part.column("path").to_pylist())
        rows = [[*named, *state] for *named, state in zip(*columns, states, strict=True)]
        digest = hashlib.sha256(json.dumps([shown, rows]).encode()).hexdigest()
        return Chunk(folder, number, digest, part, how)

    numbers, chunks = iter(range(chunk_count(len(items)))), []
    for number in numbers:
        begin = time.perf_counter()
        chunks.append(chunk(number))
        if time.perf_counter() - begin > SLOW:  # as on a network; where answers come at once threads cost more
            break
    with ThreadPoolExecutor(STATS) as pool:
        return [*chunks, *pool.map(chunk, numbers)]


def listing_digest(chunks: Sequence[Chunk]) -> str:
    """Return the digest of a whole listing."""
    return hashlib.sha256("".join(chunk.digest for chunk in chunks).encode()).hexdigest()


def _state(path: bytes) -> tuple[int, int]:
    """Return size and time of change (ns) of a file; of one that cannot be asked, -1 and the error."""
    try:
        status = os.stat(path)
    except OSError as error:
        return -1, error.errno or 0
    return status.st_size, status.st_mtime_ns


def spool_path(folder: Path, number: int) -> Path:
    """Return where the treated bytes of a chunk lie."""
    return folder / f"chunk-{number:06d}.bytes"


def chunk_count(images: int) -> int:
    """Return how many chunks a listing of so many images has."""
    return -(-images // CHUNK)


def examine_chunk(chunk: Chunk) -> int:
    """Examine the images of a chunk and write its file; return how many images it has.

    Raises:
        EnvironmentFault: the disk is full or fails.
    """
    if chunk.how.changes:
        with open_atomic(chunk.spool, durable=False) as spool:
            found = [_row(look(item, compute, chunk.how), spool.write) for item in chunk.items]
    else:
        found = [_row(look(item, compute)) for item in chunk.items]
    table = pa.Table.from_pylist(found, SCHEMA).replace_schema_metadata({"digest": chunk.digest})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body = sink.getvalue()
    with open_atomic(chunk.path, durable=False) as file:
        file.write(hashlib.sha256(body).digest())
        file.write(body)
    return len(chunk.items)


def _row(
    found: tuple[Image, np.ndarray, bytes] | Reject, keep: Callable[[bytes], object] | None = None
) -> dict[str, Any]:
    if isinstance(found, Reject):
        # Names inside a message need not be text that can be encoded.
        return {"reason": found.reason, "detail": found.detail.encode("utf-8", "backslashreplace").decode()}
    image, record, data = found
    if keep:
        keep(data)
    row = {name: getattr(image, name) for name in ("crc32", "size", "width", "height", "mode", "format", "personal")}
    digests = {name: bytes.fromhex(getattr(image, name)) for name in ("sha256", "pixels_sha256")}
    return {**row, **digests, "features": record.tobytes()}


def is_examined(chunk: Chunk) -> bool:
    """Whether the chunk's file is there, whole, and about these images and this treatment."""
    return _read(chunk) is not None


class Found(NamedTuple):
    """What examination found: as `shards.examine.Seen`, the images in columns and the features in a file."""

    images: Images
    features: Records
    rejected: list[Reject]


def load(chunks: Sequence[Chunk], items: Items) -> Found:
    """Return what was found in all chunks of a listing of `items`; it lies in files beside them.

    Raises:
        EnvironmentFault: a chunk was there a moment ago and is not, or is damaged.
    """
    kinds, first = dict[Kind, int](), 0
    rejected: list[Reject] = []
    features: Records = np.empty(0, FEATURES_DTYPE)
    if not chunks:
        return Found(Images(items, np.empty(0, RECORD_DTYPE), []), features, rejected)

    seen = Filed(len(items))

    def measured(chunk: Chunk, file: BinaryIO) -> np.ndarray:
        nonlocal first
        table = _read(chunk)
        if table is None:
            raise EnvironmentFault("what was found of some images is gone", chunk.path, "start again to go on")
        usable = pc.is_null(table["reason"]).to_numpy()
        rows = table.filter(pa.array(usable))
        part = np.empty(rows.num_rows, RECORD_DTYPE)
        _fill(part, rows, kinds, chunk)
        part["item"] = first + np.flatnonzero(usable)
        for place in np.flatnonzero(~usable).tolist():
            reason, detail = table["reason"][place].as_py(), table["detail"][place].as_py()
            rejected.append(Reject(chunk.items[place], sys.intern(reason), detail))
        seen.write(file, part)
        first += len(chunk.items)
        return _packed(rows["features"], FEATURES_DTYPE)

    def write(file: BinaryIO) -> None:
        nonlocal features
        parts = (measured(chunk, file) for chunk in chunks)
        features = spooled(parts, FEATURES_DTYPE, chunks[0].folder / "features.bin")

    data = mapped(write, chunks[0].folder)
    return Found(Images(items, seen.columns(data), list(kinds)), features, rejected)


def _fill(part: np.ndarray, rows: pa.Table, kinds: dict[Kind, int], chunk: Chunk) -> None:
    """Write the rows of a chunk into records of RECORD_DTYPE, all but their place among the items."""
    for name in ("crc32", "size", "width", "height"):
        part[name] = rows[name].to_numpy()
    for name in ("sha256", "pixels_sha256"):
        part[name] = _packed(rows[name], RECORD_DTYPE[name])
    alike = zip(*(rows[name].to_pylist() for name in ("mode", "format", "personal")), strict=True)
    part["kind"] = [kinds.setdefault((mode, form, tuple(fields)), len(kinds)) for mode, form, fields in alike]
    part["chunk"] = chunk.number if chunk.how.changes else -1
    part["offset"] = np.cumsum(part["size"]) - part["size"] if chunk.how.changes else -1


def _packed(column: pa.ChunkedArray, dtype: np.dtype) -> np.ndarray:
    return np.frombuffer(b"".join(column.to_pylist()), dtype)


def _read(chunk: Chunk) -> pa.Table | None:
    """Return the rows of a chunk's file; None where there is none, a damaged one, or one about something else."""
    try:
        data = chunk.path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(memoryview(data)[HASH:]).digest() != data[:HASH]:
        return None
    with pa.ipc.open_stream(pa.py_buffer(data)[HASH:]) as reader:
        table = reader.read_all()
    if (table.schema.metadata or {}).get(b"digest") != chunk.digest.encode():
        return None
    if chunk.how.changes and _size(chunk.spool) != (pc.sum(table["size"]).as_py() or 0):
        return None
    return table


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
