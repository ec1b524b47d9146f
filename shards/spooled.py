"""Records kept in a file that is mapped into memory: the system reads what is looked at, and gives the room back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from shards.atomic import disk_errors

_ROWS = 4096


def spooled(parts: Iterable[np.ndarray], dtype: np.dtype, path: Path) -> np.ndarray:
    """Write records [n] part by part into `path`, which may be removed while they are used; return them, read-only.

    Raises:
        EnvironmentFault: the disk is full or fails.
    """
    count = 0
    path.unlink(missing_ok=True)  # what was mapped under this name stays as it is
    with disk_errors(path), open(path, "xb") as file:  # not written through the map: a full disk would kill the process
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).view(np.uint8).data)
            count += len(part)
    return np.memmap(path, dtype, "r", shape=(count,)) if count else np.empty(0, dtype)


def chosen(records: np.ndarray, rows: np.ndarray, name: str) -> np.ndarray:
    """Return records[rows]; of records that lie in a file, in another file `name` beside it."""
    if not isinstance(records, np.memmap) or records.filename is None:
        return records[rows]
    parts = (np.asarray(records[rows[start : start + _ROWS]]) for start in range(0, len(rows), _ROWS))
    return spooled(parts, records.dtype, Path(records.filename).with_name(name))
