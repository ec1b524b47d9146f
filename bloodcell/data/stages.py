"""Loaders one after another, for images whose size changes on the way; to who takes the batches it is one loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from bloodcell.data.loader import Batch, Loader

Open = Callable[[], Loader]


class Stages:
    """Iterates over the batches of several loaders; each is opened when the one before it is used up.

    Args:
        openers: of the loaders, in their order.
    """

    def __init__(self, openers: list[Open]) -> None:
        self._openers = openers
        self._open: Loader | None = None
        self._before = 0.0

    @property
    def waited(self) -> float:
        """Seconds that the consumer has waited for batches so far."""
        return self._before + (self._open.waited if self._open else 0.0)

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        for opener in self._openers:
            self._open = opener()
            yield from self._open
            self.close()

    def close(self) -> None:
        """Stop the loader that is open and free its pipeline."""
        if self._open is not None:
            self._before += self._open.waited
            self._open.close()
            self._open = None
