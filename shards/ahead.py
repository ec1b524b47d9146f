"""Shards that are written while their samples are still audited: what a set waits for runs side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Generic, TypeVar

from shards.samples import Samples

T = TypeVar("T")


class Ahead(Generic[T]):
    """Writes samples before it is known that they stay as they are; where they do not, it begins again.

    A context manager: when it ends, nothing is being written any more.

    Args:
        write: writes samples. It is given an event, and begins no further shard once that is set.
    """

    def __init__(self, write: Callable[[Samples, threading.Event], T]) -> None:
        self._write = write
        self._thread = ThreadPoolExecutor(1)
        self._begun: tuple[Samples, threading.Event, Future[T]] | None = None

    def begin(self, samples: Samples) -> None:
        """Begin to write the samples; what was begun before is given up."""
        self._give_up()
        stop = threading.Event()
        self._begun = samples, stop, self._thread.submit(self._write, samples, stop)

    def result(self, samples: Samples) -> T:
        """Return what writing the samples gave, if they are those that were begun; write them now otherwise.

        Raises:
            Stop: whatever `write` raised.
        """
        if self._begun and self._begun[0] is samples:
            return self._begun[2].result()
        self._give_up()
        return self._write(samples, threading.Event())

    def _give_up(self) -> None:
        if self._begun:
            _, stop, future = self._begun
            stop.set()
            wait([future])  # how it ended does not matter: nobody asks for these shards any more
            self._begun = None

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_up()
        self._thread.shutdown()
