"""A thread that reads the bytes of coming batches, so that a sample that cannot be read is known before its step.

Encoded bytes are held, a few hundred kilobytes a micro-batch; of images that a cache has, a view of what it keeps.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from bloodcell.data.leaving_out import stand_in
from bloodcell.data.reading import Reading
from bloodcell.data.request import Request
from bloodcell.data.resident import KEPT, DeviceCache, EncodedCache
from bloodcell.data.shardset import Reader, ShardSet, unreadable
from bloodcell.data.windows import sequential_reader
from shards.errors import Fault, Unreadable


class ReadAhead:
    """Reads requests in their order.

    Args:
        shards: the opened set.
        requests: what each batch shall hold.
        reading: how.
    """

    def __init__(self, shards: ShardSet, requests: Iterator[Request], reading: Reading) -> None:
        self.shards, self.reading = shards, reading
        self._reader, self.requests = self._opened(requests)
        self._ready: deque[tuple[Request, list[np.ndarray]]] = deque()
        self._change = threading.Condition()
        self._read = 0
        self._ended = self._closed = False
        self._fault: Exception | None = None
        self._sample: int | None = None
        self._since = 0.0
        self._thread = threading.Thread(target=self._drive, name="bloodcell-reader", daemon=True)
        self._thread.start()

    def take(self) -> tuple[Request, list[np.ndarray]]:
        """Return the next request and its images: bytes, uint8 [size], or pixels, uint8 [height, width, 3].

        Raises:
            StopIteration: there are no more.
            Unreadable: one of its samples cannot be read, or not within the patience.
        """
        with self._change:
            self._await(lambda: bool(self._ready))
            if self._ready:
                self._change.notify_all()
                return self._ready.popleft()
            if self._fault is not None:
                raise self._fault
            raise StopIteration

    def fault_before(self, count: int) -> Exception | None:
        """Wait until `count` requests are read in all (or all there are); return what prevents it."""
        with self._change:
            self._await(lambda: self._read >= count)
            return self._fault

    def close(self) -> None:
        """End the thread; one that hangs in the file system is left alone."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._thread.join(1.0)

    def _await(self, done: Callable[[], bool]) -> None:
        """Wait until `done()`, the end, a fault, or the patience with one sample is at its end."""
        while not (done() or self._ended or self._closed or self._fault is not None):
            self._change.wait(0.2)
            sample, since = self._sample, self._since
            if sample is not None and time.monotonic() - since > self.reading.patience:
                problem = f"no answer for {self.reading.patience:g} s"
                self._fault = unreadable(self.shards, sample, problem, "is the file system there? then start again")

    def _drive(self) -> None:
        reader = self._reader
        try:
            for request in self.requests:
                found = self._images(reader, request)
                with self._change:
                    self._ready.append(found)
                    self._read += 1
                    self._change.notify_all()
                    while len(self._ready) > self.reading.depth and not self._closed:
                        self._change.wait()
                    if self._closed or self._fault is not None:
                        return
        except Exception as error:
            self._fault = self._fault or error
        finally:
            reader.close()
            with self._change:
                self._ended = True
                self._change.notify_all()

    def _opened(self, requests: Iterator[Request]) -> tuple[Reader, Iterator[Request]]:
        """Return what reads the samples, and the requests as it wants them gone through."""
        how = self.reading
        if how.reader == "plan":
            return Reader(self.shards, how.check), requests
        kept = lambda sample: self._kept(sample) is not None  # noqa: E731
        reader = sequential_reader(how.reader, self.shards, check=how.check, kept=kept, begin=self._begin)
        return reader, reader.through(requests)

    def _begin(self, sample: int) -> bool:
        """Note that a sample is being read from now on; return whether anybody still waits for it."""
        self._since, self._sample = time.monotonic(), sample
        return not self._closed

    def _kept(self, sample: int) -> np.ndarray | None:
        """Return the pixels or the bytes of a sample if they are in memory."""
        cache, side = self.reading.cache, self.reading.side
        if isinstance(cache, DeviceCache):
            return KEPT if cache.has(sample, side) else None
        return None if cache is None else cache.get(sample, side)

    def _image(self, reader: Reader, sample: int) -> np.ndarray:
        """Return a sample from memory, or from the file system; then its bytes are kept, if that is wanted."""
        found = self._kept(sample)
        if found is None:
            found = reader.read(sample)
            if isinstance(self.reading.cache, EncodedCache):
                self.reading.cache.put(sample, found)
        return found

    def _images(self, reader: Reader, request: Request) -> tuple[Request, list[np.ndarray]]:
        images: dict[int, np.ndarray] = {}
        problems: dict[int, Unreadable] = {}
        for row, sample in enumerate(request.ids.tolist()):
            self._begin(sample)
            try:
                images[row] = self._image(reader, sample)
            except Unreadable as problem:
                if not self.reading.skip:
                    raise
                problems[row] = problem
        self._sample = None
        if not problems:
            return request, list(images.values())
        try:
            ids, occurrences = stand_in(request.ids, request.occurrences, list(problems))
        except Fault as fault:
            first = next(iter(problems.values()))
            raise Unreadable(f"{fault.what}; {first.what}", first.where, first.fix) from first
        first_row = {int(request.ids[row]): row for row in sorted(images, reverse=True)}
        left_out = tuple((row, int(request.ids[row]), problem.what) for row, problem in problems.items())
        filled = [images[row] if row in images else images[first_row[int(ids[row])]] for row in range(len(ids))]
        return replace(request, ids=ids, occurrences=occurrences, left_out=left_out), filled
