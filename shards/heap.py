"""Memory of a command of our own: what was freed is given back to the system, and pandas is not loaded for nothing."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from importlib.abc import MetaPathFinder
from typing import Any

import pyarrow as pa

from shards.mapped import let_go

KEPT = 2**26
_LARGE = 2**25  # larger arrays are the system's alone; the most that glibc takes for this
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_ of malloc.h


def give_back() -> None:
    """Let the system have what this process has freed, between two steps of which each needs much for itself.

    glibc keeps whole pages that lie between what is still used, pyarrow's pool what it may need again. Where the C
    library has no such call (macOS, musl) only the pool's and those of mapped files are given back.
    """
    let_go()
    pa.default_memory_pool().release_unused()
    trim = _of_libc("malloc_trim")
    if trim:
        trim(0)


def keep_freed() -> None:
    """Let glibc keep up to KEPT freed bytes for the next arrays of this process, in place of asking the system again.

    For workers, whose arrays are some MiB large and of the same sizes again and again: asking the system for each, and
    for its pages one by one, takes up to a third of their time.
    """
    choose = _of_libc("mallopt")
    if choose:
        choose(_TRIM_THRESHOLD, KEPT)
        choose(_MMAP_THRESHOLD, _LARGE)


@lru_cache
def _of_libc(name: str) -> Any:
    """Return a function of glibc's; None where the C library has it not."""
    try:
        return getattr(ctypes.CDLL(None), name, None)
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
