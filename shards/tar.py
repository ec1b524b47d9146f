"""Plain USTAR archives for WebDataset samples: a fast writer that indexes as it goes, and a strict reader of headers.

The bytes are those of `tar --format=ustar --numeric-owner --owner=0 --group=0 --mode=0644 --mtime=@0` (POSIX.1-1988
ustar headers, end of archive padded to 10,240 bytes), so the same samples give the same file anywhere. The index beside
a tar is DALI's text index, version v1.2, as its tool `wds2idx` writes it.
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from shards.atomic import begin_writing, disk_errors, open_atomic, sync_directory
from shards.errors import BadInput, CheckFailed, Fault

BLOCK = 512
RECORD = 20 * BLOCK
"""Archives end at a multiple of this many bytes, as GNU tar's do: readers then never warn."""
BATCH = 512 * BLOCK
"""Bytes that are gathered for one call of the operating system: larger gains nothing and leaves the CPU's cache."""
BEHIND = 64 * BATCH
"""Bytes after which the disk is told to begin writing, so that little is left to wait for at the end."""
NAME_LIMIT = 100
SIZE_LIMIT = 8**11
RESTORE = "restore the file from a copy or pack the set again"

_KEY = re.compile(r"[a-z0-9_]+")
_EXTENSION = re.compile(r"[a-z0-9]+")
_ZEROS = bytes(BLOCK)
_HEADER = b"".join(
    (
        b"%b",  # name, filled up to 100 bytes
        b"0000644\0",  # mode
        b"0000000\0",  # uid
        b"0000000\0",  # gid
        b"%011o\0",  # size
        b"00000000000\0",  # mtime
        b"%06o\0 ",  # checksum
        b"0",  # type: a plain file
        bytes(100),  # target of a link
        b"ustar\0",
        b"00",  # version
        bytes(64),  # names of user and group
        b"0000000\0",  # device, major
        b"0000000\0",  # device, minor
        bytes(167),  # prefix, and the rest of the block
    )
)
_FIXED_SUM = sum(_HEADER % (b"", 0, 0)) - 17 * ord("0") + 7 * ord(" ")  # the checksum counts its own field as spaces


class Member(NamedTuple):
    """A file inside a tar: its name, and where its data begin and how long they are, in bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class ShardSummary:
    """What was written: samples, bytes of the tar, and its sha256."""

    samples: int
    bytes: int
    sha256: str


def header(name: str, size: int) -> bytes:
    """Return the 512-byte ustar header of a plain file.

    Raises:
        BadInput: the name is empty, not printable ASCII or longer than 100 characters, or the size is 8 GiB or more.
    """
    if not 0 < len(name) <= NAME_LIMIT or not name.isascii() or not name.isprintable():
        raise BadInput(f"{name!r} is no member name", "tar", f"use 1 to {NAME_LIMIT} printable ASCII characters")
    if not 0 <= size < SIZE_LIMIT:
        raise BadInput(f"{name} has {size:,} bytes", "tar", "a member of a plain tar is smaller than 8 GiB")
    raw = name.encode("ascii")
    # Less than 65,521, so the low half of Adler-32 is the sum of these bytes, plus one: much faster than sum().
    variable_sum = (zlib.adler32(b"%b%011o" % (raw, size)) & 0xFFFF) - 1
    return _HEADER % (raw.ljust(NAME_LIMIT, b"\0"), size, _FIXED_SUM + variable_sum)


def tar_bytes(key: str, members: Sequence[tuple[str, bytes]]) -> bytes:
    """Return one sample as it stands in a tar: for each (extension, data) a header, the data, and zeros to 512 bytes.

    Raises:
        BadInput: the key is not [a-z0-9_]+, an extension is not [a-z0-9]+ or occurs twice, or a name is too long.
    """
    return b"".join(_lay_out(key, members, 0)[0])


def _lay_out(key: str, members: Sequence[tuple[str, bytes]], position: int) -> tuple[list[bytes], list[Member]]:
    """Return the bytes, in pieces, of one sample that begins at `position` of its tar, and where its members lie."""
    if not _KEY.fullmatch(key):
        raise BadInput(f"{key!r} is no key", "tar", "use only a-z, 0-9 and _: a dot would cut the key short in readers")
    _check_extensions(tuple([extension for extension, _ in members]))
    parts: list[bytes] = []
    placed: list[Member] = []
    for extension, data in members:
        name, size = f"{key}.{extension}", len(data)
        fill = -size % BLOCK
        placed.append(Member(name, position + BLOCK, size))
        parts += (header(name, size), data, _ZEROS[:fill])
        position += BLOCK + size + fill
    return parts, placed


@lru_cache
def _check_extensions(extensions: tuple[str, ...]) -> None:
    if not extensions or len(set(extensions)) < len(extensions) or not all(map(_EXTENSION.fullmatch, extensions)):
        raise BadInput(
            f"extensions {', '.join(extensions)!r}", "tar", "give one or more, all different, of a-z and 0-9"
        )


def archive_end(size: int) -> bytes:
    """Return the zeros that end an archive whose members take `size` bytes: two blocks and the rest of the record."""
    return bytes(2 * BLOCK + -(size + 2 * BLOCK) % RECORD)


def index_text(samples: Iterable[Sequence[Member]]) -> str:
    """Return DALI's index v1.2: a line per sample in the order of the tar, `extension offset size name` per member."""
    return _index_text([_index_line(members) for members in samples])


def _index_line(members: Iterable[Member]) -> str:
    return " ".join([f"{name.partition('.')[2]} {offset} {size} {name}" for name, offset, size in members])


def _index_text(lines: Sequence[str]) -> str:
    return "\n".join([f"v1.2 {len(lines)}", *lines, ""])


def index_path(tar: Path) -> Path:
    """Return where the index of `tar` lies: beside it, ending in .idx."""
    return tar.with_suffix(".idx")


class ShardWriter:
    """Writes one tar and its index; both appear, whole and synced to disk, when it is closed.

    Used as a context manager it closes at the end of the block, or leaves nothing behind if the block raises. While
    it works the tar is called `<name>.partial`. `summary` is there after closing.

    Args:
        path: of the tar; the index lies beside it with the suffix .idx.

    Raises:
        EnvironmentFault: (any method) the disk is full or fails.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.summary: ShardSummary | None = None
        self._partial = path.with_name(f"{path.name}.partial")
        self._digest = hashlib.sha256()
        self._lines: list[str] = []  # of the index: lists of members would take more memory and be walked by the gc
        self._keys: set[str] = set()
        self._size = self._flushed = self._sent = 0  # bytes added, given to the system, begun to be written by the disk
        self._batch: list[bytes] = []
        with disk_errors(path):
            self._file = open(self._partial, "wb", buffering=0)  # noqa: SIM115  closed by close() or _discard()

    def add(self, key: str, members: Sequence[tuple[str, bytes]]) -> list[Member]:
        """Append one sample and return where the data of its members lie.

        Args:
            key: unique in the shard, [a-z0-9_]+.
            members: (extension, data) in the order to be written, the image first.

        Raises:
            BadInput: the key occurs twice, or names that `tar_bytes` refuses.
        """
        if key in self._keys:
            raise BadInput(f"key {key} occurs twice", self.path, "give every sample its own key")
        parts, placed = _lay_out(key, members, self._size)
        self._batch += parts
        self._size = placed[-1].offset + placed[-1].size + len(parts[-1])
        self._keys.add(key)
        self._lines.append(_index_line(placed))
        if self._size - self._flushed >= BATCH:
            self._flush()
        return placed

    def _flush(self) -> None:
        data = b"".join(self._batch)
        self._batch = []
        self._digest.update(data)
        rest = memoryview(data)
        with disk_errors(self.path):
            while rest:  # a nearly full disk takes a part, then fails
                rest = rest[self._file.write(rest) :]
            self._flushed += len(data)
            if self._flushed - self._sent >= BEHIND:
                begin_writing(self._file.fileno(), self._sent, self._flushed - self._sent)
                self._sent = self._flushed

    def close(self) -> ShardSummary:
        """End the archive, write the index, and give both their names; closing again changes nothing.

        Raises:
            Fault: there is no sample (readers fail on empty shards).
        """
        if self.summary is not None:
            return self.summary
        if not self._lines:
            self._discard()
            raise Fault("a shard without samples was to be written", self.path)
        end = archive_end(self._size)
        self._batch.append(end)
        self._flush()
        with disk_errors(self.path):
            os.fsync(self._file.fileno())
            self._file.close()
            with open_atomic(index_path(self.path), "w") as index:
                index.write(_index_text(self._lines))
            os.replace(self._partial, self.path)
            sync_directory(self.path.parent)
        self.summary = ShardSummary(len(self._lines), self._size + len(end), self._digest.hexdigest())
        return self.summary

    def _discard(self) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self.close()
        except BaseException:
            self._discard()
            raise


def parse_header(block: bytes) -> tuple[str, int]:
    """Return name and size of the plain file that a header block (ustar, or GNU's dialect of it) announces.

    Raises:
        ValueError: the block is short, its checksum is wrong, or it announces anything but a plain file.
    """
    if len(block) != BLOCK:
        raise ValueError("the header is cut short")
    checksum = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if block[148:156].strip(b" \0") != b"%06o" % checksum:
        raise ValueError("the header's checksum is wrong")
    if block[257:262] != b"ustar" or block[156:157] not in (b"0", b"\0"):
        raise ValueError(f"the header is not that of a plain file (type {block[156:157]!r})")
    name = block[:100].rstrip(b"\0").decode("ascii", "backslashreplace")
    prefix = block[345:500].rstrip(b"\0").decode("ascii", "backslashreplace") if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name, int(block[124:136].strip(b" \0"), 8)


def read_members(path: Path) -> Iterator[Member]:
    """Yield the members of a tar in order, reading nothing but headers, and check that nothing is wrong with them.

    Raises:
        CheckFailed: a header is damaged, the archive ends too early, or something follows its end; with the position.
        OSError: the file cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        size, position = os.fstat(file.fileno()).st_size, 0
        while True:
            block = os.pread(file.fileno(), BLOCK, position)
            if block == _ZEROS:
                break
            try:
                if position == size:
                    raise ValueError("the archive has no end")
                name, length = parse_header(block)
                if position + BLOCK + length > size:
                    raise ValueError(f"{name} is cut short")
            except ValueError as error:
                raise CheckFailed(str(error), f"{path} at byte {position:,}", RESTORE) from None
            yield Member(name, position + BLOCK, length)
            position += BLOCK + length + -length % BLOCK
        _check_end(file.fileno(), position, size, path)


def _check_end(descriptor: int, position: int, size: int, path: Path) -> None:
    """Check that only zeros, and two blocks of them at least, follow `position`."""
    if size - position < 2 * BLOCK:
        raise CheckFailed("the end of the archive is cut short", f"{path} at byte {position:,}", RESTORE)
    while data := os.pread(descriptor, 1 << 20, position):
        if rest := data.lstrip(b"\0"):
            where = f"{path} at byte {position + len(data) - len(rest):,}"
            raise CheckFailed("something follows the end of the archive", where, RESTORE)
        position += len(data)
