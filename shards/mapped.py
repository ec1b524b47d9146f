"""Columns kept in a file and mapped into memory, of which what was looked at is let go again.

A page counts as the process's memory from the first look at it on. Let go it is read from the file when it is next
looked at, most often from the system's cache: memory that does not grow with what is mapped.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from shards.atomic import disk_errors

_MAPS: WeakSet[mmap.mmap] = WeakSet()


def mapped(write: Callable[[BinaryIO], object], folder: Path) -> NDArray[np.uint8]:
    """Return the bytes that `write` wrote into a file without a name in `folder`; it is gone when they are.

    Raises:
        EnvironmentFault: the disk is full or fails.
        PermissionError: no file can be made there.
    """
    with disk_errors(folder), tempfile.TemporaryFile(dir=folder) as file:
        write(file)
        file.flush()
        if not os.fstat(file.fileno()).st_size:
            return np.empty(0, np.uint8)
        found = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _MAPS.add(found)
    return np.frombuffer(found, np.uint8)


def let_go() -> None:
    """Let go of all pages of mapped files; what is in use stays valid."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for one in list(_MAPS):
            one.madvise(mmap.MADV_DONTNEED)
