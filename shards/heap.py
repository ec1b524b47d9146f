"""Memory that was freed, given back to the system: allocators keep it for what may come, which may be little."""

from __future__ import annotations

import ctypes
from functools import lru_cache
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
