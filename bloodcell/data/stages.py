"""Loaders one after another, for images whose size changes on the way; to who takes the batches it is one loader."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bloodcell.data.loader import Batch, Loader


@dataclass(frozen=True)
class Stage:
    """A loader that is not open yet, and how many requests it will work off."""

    open: Callable[[], Loader]
    requests: int


class Stages:
    """Iterates over the batches of several loaders; each is opened when something of it is needed, or to be known.

    Args:
        stages: in their order.
    """

    def __init__(self, stages: list[Stage]) -> None:
        self._closed = deque(stages)
        self._open: deque[tuple[Loader, int]] = deque()
        """The loaders that are open, the first of them in use, each with the number of requests up to its end."""
        self._before = 0.0
        self._used = 0
        """Requests of the loaders that are used up."""

    @property
    def waited(self) -> float:
        """Seconds that the consumer has waited for batches so far."""
        return self._before + sum(loader.waited for loader, _ in self._open)

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: Any) -> None:
        while self._open:
            self._close_first()

    def __iter__(self) -> Iterator[Batch]:
        while self._open or self._closed:
            if not self._open:
                self._open_next()
            yield from self._open[0][0]
            self._close_first()

    def fault_before(self, count: int) -> Exception | None:
        """Wait until the bytes of the first `count` requests were read; return what prevents it, None if nothing."""
        while self._closed and self._end < count:
            self._open_next()
        begin = self._used
        for loader, end in self._open:
            if count > begin and (fault := loader.fault_before(min(count, end) - begin)) is not None:
                return fault
            begin = end
        return None

    @property
    def _end(self) -> int:
        return self._open[-1][1] if self._open else self._used

    def _open_next(self) -> None:
        stage = self._closed.popleft()
        self._open.append((stage.open(), self._end + stage.requests))

    def _close_first(self) -> None:
        loader, self._used = self._open.popleft()
        self._before += loader.waited
        loader.close()
