"""Python's collector rests while a process loads its libraries: a sixth of the start-up went into looking through them.

What was loaded stays for good; afterwards the collector leaves it out of every search too, as Python's own
documentation advises for what lives as long as the process (gc.freeze).
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Put collections off until loaded() is called or the block ends; the first such block of a process does so."""
    global _first
    begins, _first = _first, False
    if begins:
        gc.disable()
    try:
        yield
    finally:
        if begins:
            gc.enable()


def loaded() -> None:
    """Say that all that takes memory for good is there."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


_first = True
