"""What shall be predicted: files, folders, tars and lists of paths, as one list on disk."""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from shards.atomic import open_atomic
from shards.errors import BadInput
from shards.images import IMAGE_SUFFIXES, UnusableImageError
from shards.parallel import chunked
from shards.sources.items import as_text
from shards.sources.table import PATH_COLUMNS, read_table
from shards.sources.walk import files_below

CHUNK = 2048
"""Images in a chunk: what is predicted, written and taken up again as one."""

MAX_BYTES = 1 << 29
"""Files with more bytes than this are not read."""

SCHEMA = pa.schema([("source", pa.string()), ("path", pa.binary()), ("offset", pa.int64()), ("size", pa.int64())])
TABLES = (".csv", ".tsv", ".tab", ".parquet")


@dataclass(frozen=True)
class Entry:
    """One image to come: its name for people, its file, and where in the file it lies (size -1: all of it)."""

    source: str
    path: bytes
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        """Return its bytes; raises UnusableImageError that says why there are none."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise UnusableImageError("not a file", "it is no ordinary file")
                size = self.size if self.size >= 0 else status.st_size
                if size > MAX_BYTES:
                    raise UnusableImageError("too large", f"{size:,} bytes, limit {MAX_BYTES:,}")
                data = os.pread(descriptor, size, self.offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UnusableImageError("unreadable", error.strerror or str(error)) from error
        if len(data) != size:
            raise UnusableImageError("unreadable", f"{len(data):,} of {size:,} bytes")
        return data


@dataclass(frozen=True)
class Inputs:
    """The list on disk; made by list_inputs().

    Attributes:
        path: an Arrow file with a record batch for each chunk.
        rows: images in all.
        passed_over: files in folders and tars whose names are not those of images.
    """

    path: Path
    rows: int
    passed_over: int

    @property
    def chunks(self) -> int:
        """Chunks in all."""
        return -(-self.rows // CHUNK)

    def images(self, chunks: Iterable[int]) -> int:
        """Return how many images some chunks hold."""
        return sum(min(CHUNK, self.rows - number * CHUNK) for number in chunks)

    @property
    def digest(self) -> str:
        """sha256 over the whole list."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def chunk(self, number: int) -> list[Entry]:
        """Return the entries of a chunk."""
        with pa.memory_map(str(self.path)) as source:
            columns = pa.ipc.open_file(source).get_batch(number).to_pydict()
        return [Entry(*row) for row in zip(*(columns[name] for name in SCHEMA.names), strict=True)]


class _Lister:
    """Turns paths into entries and counts what it passes over; `own`, where the list is written, is not looked into."""

    def __init__(self, own: Path) -> None:
        self.own = own.resolve()
        self.passed_over = 0

    def named(self, path: Path) -> Iterator[Entry]:
        """Yield what a path on the command line stands for; raises BadInput where that is nothing."""
        if path.is_dir():
            yield from self.folder(path)
        elif not path.exists():
            raise BadInput("no such file or folder", path, "check the path")
        elif path.suffix.lower() == ".tar":
            yield from self.tar(path)
        elif path.suffix.lower() in TABLES:
            yield from self.table(path)
        elif path.name.lower().endswith((".tar.gz", ".tgz", ".tar.zst", ".zip")):
            raise BadInput("images in a compressed archive cannot be looked up", path, "unpack it, or give a plain tar")
        else:
            yield _entry(path)

    def folder(self, root: Path) -> Iterator[Entry]:
        """Yield the files below a folder that are named like images, sorted."""
        around = self.own.is_relative_to(root.resolve())
        for path, _ in files_below(root):
            if around and path.parent.resolve() == self.own:
                continue
            if path.suffix.lower() in IMAGE_SUFFIXES:
                yield _entry(path)
            else:
                self.passed_over += 1

    def tar(self, path: Path) -> Iterator[Entry]:
        """Yield the members of a plain tar that are named like images, in its order."""
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if member.isfile() and Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
                        source = f"{as_text(path)}/{as_text(Path(member.name))}"
                        yield Entry(source, os.fsencode(path.absolute()), member.offset_data, member.size)
                    elif member.isfile():
                        self.passed_over += 1
                    tar.members = []  # type: ignore[attr-defined]  # it would keep every header
        except (tarfile.TarError, OSError) as error:
            raise BadInput(f"the tar cannot be read: {error}", path, "give a plain, whole tar") from error

    def table(self, path: Path) -> Iterator[Entry]:
        """Yield the files that a table names; relative paths start from its folder."""
        content = read_table(path)
        column = next((name for name in PATH_COLUMNS if name in content.column_names), None)
        if column is None:
            raise BadInput("no column for image paths", path, f"name one of its columns {' or '.join(PATH_COLUMNS)}")
        for batch in content.select([column]).to_batches(CHUNK):
            for value in batch.column(0).to_pylist():
                yield _entry(path.parent / str(value), str(value))

    def lines(self, lines: Iterable[bytes]) -> Iterator[Entry]:
        """Yield the files that lines name; one that is not there will be a row that says so."""
        for line in lines:
            name = line.rstrip(b"\r\n")
            if name:
                yield _entry(Path(os.fsdecode(name)))


def list_inputs(paths: Sequence[Path], lines: Iterable[bytes], target: Path) -> Inputs:
    """Write the list of all images that paths and lines stand for to `target`.

    Args:
        paths: image files, folders (looked through to the ground, in the order of names), plain tars, and tables (CSV,
            TSV, parquet) with a column `path`, `file`, `filename` or `image`.
        lines: of a text, a path each.
        target: the file to write.

    Raises:
        BadInput: a path that does not exist, cannot be read, or a list without images.
        EnvironmentFault: the disk is full or fails.
    """
    lister, rows = _Lister(target.parent), 0

    def entries() -> Iterator[Entry]:
        for path in paths:
            yield from lister.named(path)
        yield from lister.lines(lines)

    with open_atomic(target, durable=False) as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for chunk in chunked(entries(), CHUNK):
            columns = [[getattr(entry, name) for entry in chunk] for name in SCHEMA.names]
            writer.write_batch(
                pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], SCHEMA)
            )
            rows += len(chunk)
    if not rows:
        target.unlink()
        said = f"none of {lister.passed_over:,} files is named like one" if lister.passed_over else "nothing is named"
        raise BadInput(
            f"no images: {said}",
            " ".join(map(str, paths)) or "the list",
            f"names end in {', '.join(sorted(IMAGE_SUFFIXES))}",
        )
    return Inputs(target, rows, lister.passed_over)


def _entry(path: Path, source: str = "") -> Entry:
    return Entry(source or as_text(path), os.fsencode(path.absolute()))
