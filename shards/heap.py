"""Memory of a command of our own: what was freed is given back to the system, and pandas is not loaded for nothing."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from importlib.abc import MetaPathFinder
from typing import Any

import pyarrow as pa

from shards.mapped import let_go


def give_back() -> None:
    """Let the system have what this process has freed, between two steps of which each needs much for itself.

    glibc keeps whole pages that lie between what is still used, pyarrow's pool what it may need again. Where the C
    library has no such call (macOS, musl) only the pool's and those of mapped files are given back.
    """
    let_go()
    pa.default_memory_pool().release_unused()
    trim = _trim()
    if trim:
        trim(0)


@lru_cache
def _trim() -> Any:
    """Return glibc's malloc_trim; None elsewhere."""
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):
        return None


def without_pandas() -> None:
    """Let pyarrow find no pandas when it first asks, which it does to know a Series given to `pa.array`.

    We give it none, and pandas takes 33 MiB and a quarter of a second in each process. For processes of our own only:
    where somebody else's code runs, its Series would be taken for lists. Tables can still be turned into DataFrames.
    """
    if "pandas" in sys.modules:
        return
    hidden = _Hidden()
    sys.meta_path.insert(0, hidden)
    try:
        pa.array([0])  # pyarrow asks once
    finally:
        sys.meta_path.remove(hidden)


class _Hidden(MetaPathFinder):
    """Finds no pandas, wherever it lies."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(f"no module {name!r} is looked for now", name=name)
