"""Records kept in a file and read where they are asked for, so that memory does not grow with their number.

They are not mapped into memory: all that was ever looked at would count as this process's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np

from shards.atomic import disk_errors
from shards.errors import EnvironmentFault
from shards.mapped import let_go, mapped

_ROWS = 4096


class Spooled:
    """Records in a file, or one field of them, indexed like an array: by slices and positions, which give arrays.

    Attributes:
        path: of the file, which may have been removed.
        shape: as of an array.
    """

    def __init__(self, file: BinaryIO, dtype: np.dtype, rows: np.ndarray, path: Path, field: str = "") -> None:
        self._file, self._dtype, self._rows, self.path, self._field = file, dtype, rows, path, field

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, then the shape of the field."""
        return len(self), *(self._dtype[self._field].shape if self._field else ())

    def taken(self, rows: np.ndarray) -> Spooled:
        """Return the records at these positions, int64 [n], without reading them."""
        return Spooled(self._file, self._dtype, self._rows[rows], self.path, self._field)

    @overload
    def __getitem__(self, key: str) -> Spooled: ...
    @overload
    def __getitem__(self, key: slice | np.ndarray) -> np.ndarray: ...
    def __getitem__(self, key: str | slice | np.ndarray) -> Spooled | np.ndarray:
        """Return a field, to be read later, or the records at some positions.

        Raises:
            EnvironmentFault: the file is damaged or cannot be read.
        """
        if isinstance(key, str):
            return Spooled(self._file, self._dtype, self._rows, self.path, key)
        wanted, places = np.unique(self._rows[key], return_inverse=True)
        found = np.empty(len(wanted), self._dtype)
        data, size = found.view(np.uint8).data, self._dtype.itemsize
        edges = np.append(np.flatnonzero(np.diff(wanted, prepend=-2) != 1), len(wanted)).tolist()
        with disk_errors(self.path):
            for first, last in pairwise(edges):
                got = os.preadv(self._file.fileno(), [data[first * size : last * size]], int(wanted[first]) * size)
                if got != (last - first) * size:
                    raise EnvironmentFault("a file of intermediate results is cut short", self.path, "start again")
        return (found[self._field] if self._field else found)[places]


Records = np.ndarray | Spooled
"""Records in memory or in a file."""


def spooled(parts: Iterable[np.ndarray], dtype: np.dtype, path: Path) -> Records:
    """Write records [n] part by part into `path`, which may be removed while they are used; return them.

    Raises:
        EnvironmentFault: the disk is full or fails.
    """
    count = 0
    path.unlink(missing_ok=True)  # who reads what lay under this name goes on reading it
    with disk_errors(path):
        file = open(path, "xb+")  # noqa: SIM115  read as long as the records are there
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).view(np.uint8).data)
            count += len(part)
        file.flush()
    return Spooled(file, dtype, np.arange(count), path)


def chosen(records: Records, rows: np.ndarray) -> Records:
    """Return the records at these positions, int64 [n]; those in a file stay there."""
    return records.taken(rows) if isinstance(records, Spooled) else records[rows]


def blocks(records: Records, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yield the records, or a field of them, or those at some positions, int64 [n], some thousand at a time."""
    count = len(records) if rows is None else len(rows)
    parts = (slice(start, start + _ROWS) for start in range(0, count, _ROWS))
    return (records[part if rows is None else rows[part]] for part in parts)


def whole(field: Records) -> np.ndarray:
    """Return a small field of all records as an array."""
    return np.concatenate([field[:0], *blocks(field)]) if isinstance(field, Spooled) else field


def alongside(records: Records, parts: Iterable[np.ndarray], dtype: type | np.dtype, *shape: int) -> np.ndarray:
    """Return parts [n, *shape] as one array; mapped from a file if the records that they are about lie in one.

    Raises:
        EnvironmentFault: the disk is full or fails.
    """
    if not isinstance(records, Spooled):
        return np.concatenate([np.empty((0, *shape), dtype), *parts])

    def write(file: BinaryIO) -> None:
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).view(np.uint8).data)

    data = mapped(write, records.path.parent)
    let_go()  # of what the parts were made from
    return data.view(dtype).reshape(-1, *shape)


def behind(first: Records, second: Records, name: str) -> Records:
    """Return the records of both, the second ones behind the first; in a file `name` if the first are in a file."""
    if isinstance(first, Spooled):
        return spooled(chain(blocks(first), blocks(second)), first[:0].dtype, first.path.with_name(name))
    return np.concatenate([first, second[:]])
