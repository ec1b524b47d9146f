"""Run a function over many items in several processes: results in order, memory bounded, failures loud."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from itertools import islice
from multiprocessing import forkserver, resource_tracker
from types import TracebackType
from typing import TypeVar

from shards.errors import EnvironmentFault

T = TypeVar("T")
R = TypeVar("R")


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chunked(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items (the last may be shorter)."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def one_thread() -> AbstractContextManager[object]:
    """Keep the numeric libraries of this process to one thread, from now until the context ends if it is entered."""
    import numpy  # noqa: F401  its threads can be limited only where it is loaded
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits


def _begin_worker() -> None:
    """Keep a worker to one core, and let it end with its parent: it waits on a pipe that a kill would leave open."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears an interrupt too, and says so once
    one_thread()
    from shards.heap import keep_freed  # late: it loads pyarrow

    keep_freed()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def warm_up(*modules: str) -> None:
    """Start the process that worker processes are forked from, and let it import `modules` while this one goes on.

    Workers then begin at once and share that memory. Importing the modules must start no threads that a fork would cut
    short: numpy's stay away because of `shards.onethread`; pyarrow's allocator knows of forks.
    """
    if os.name == "posix":
        forkserver.set_forkserver_preload(["shards.onethread", *modules])
        _start_server()


def _start_server() -> None:
    """Start the process that workers are forked from; an interrupt is for the parent, which says so once."""
    resource_tracker.ensure_running()  # on its own: it lets interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Processes:
    """Processes that are started when they are first needed and kept for one map after the other.

    A context manager: when it ends, they have ended.

    Args:
        count: how many; 1: the work is done in this process.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield function(item) for each item, in order.

        Each process computes on one core: threads of the numeric libraries would only wait for each other. At most
        four results a process wait to be taken, so memory does not grow with the number of items.

        Raises:
            EnvironmentFault: a process was killed (out of memory, most often).
        """
        if self.count <= 1:
            with one_thread():
                yield from map(function, items)
            return
        try:
            yield from mapped_ahead(self._started(), function, items, 4 * self.count)
        except BrokenProcessPool as error:
            raise EnvironmentFault("a worker process died", "", "use fewer --workers if memory is short") from error

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Not fork: this process may hold threads (the progress bar, pyarrow) whose locks a fork would inherit.
            context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
            if os.name == "posix":
                _start_server()
            self._pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_begin_worker)
        return self._pool

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool:
            self._pool.shutdown()


def map_ordered(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yield function(item) for each item, in order, computed by `workers` processes; as `Processes.map`."""
    with Processes(workers) as processes:
        yield from processes.map(function, items)


def threaded(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yield function(item) for each item, in order, computed by `workers` threads (in this one if there is one).

    An item is taken when its turn comes: at most one result more than there are threads waits.
    """
    if workers <= 1:
        yield from map(function, items)  # what a thread frees stays in an arena of its own
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from mapped_ahead(pool, function, items, workers + 1)


def mapped_ahead(pool: Executor, function: Callable[[T], R], items: Iterable[T], depth: int) -> Iterator[R]:
    """Yield function(item) for each item, in order; at most `depth` results are waiting or under way."""
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
