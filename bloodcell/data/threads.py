"""Threads that work on different images, each alone: torch's own threads would only get in their way."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def image_threads(threads: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of so many threads, all started, in each of which torch computes with one thread."""
    pool = ThreadPoolExecutor(threads, name, initializer=_alone)
    _start(pool, threads)
    return pool


def _alone() -> None:
    """Let torch compute in this thread alone: the pool is parallel over images.

    The first operation of a thread takes over the number that was set last in any thread, here that of the main thread
    after `_start`. Asking for it now is such a first operation.
    """
    torch.set_num_threads(1)
    torch.get_num_threads()


def _start(pool: ThreadPoolExecutor, threads: int) -> None:
    """Start all threads of the pool now, and leave the number of threads of all others as it is."""
    before, gate = torch.get_num_threads(), threading.Barrier(threads + 1)
    started = [pool.submit(gate.wait) for _ in range(threads)]
    gate.wait()
    for one in started:
        one.result()
    torch.set_num_threads(before)  # what a thread that starts from now on would take over
