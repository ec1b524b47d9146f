"""Sequential readers: whole windows of samples in long reads, the next window while this one is worked off.

What a window wants is sorted by its place in the tars and read in runs of a few megabytes. While the micro-batches of a
window leave, the next one comes in at the same pace, so about one window is held: slots of the rank x `data.window`
samples, as encoded bytes. Whatever a long read fails to bring (a disk error, bytes that do not match their checksum) is
asked for again by itself, as the reader `plan` does it: so errors name their sample, and what is left out is the same.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from bloodcell.data.request import Request
from bloodcell.data.runs import Run, make_runs
from bloodcell.data.shardset import Reader, ShardSet


class Window:
    """The requests of a window, the runs that bring their samples, and the bytes that are there.

    Args:
        requests: in their order.
        runs: what brings their samples.
    """

    def __init__(self, requests: list[Request], runs: list[Run]) -> None:
        self.requests = requests
        self._runs, self._done = runs, 0
        self._held: dict[int, np.ndarray] = {}
        self._uses = Counter(sample for request in requests for sample in request.ids.tolist())

    def due(self, share: float) -> Iterator[Run]:
        """Yield the runs that must be read until this share (0..1) of all is there."""
        while self._done < math.ceil(share * len(self._runs)):
            self._done += 1
            yield self._runs[self._done - 1]

    def put(self, sample: int, data: np.ndarray) -> None:
        """Hold the bytes of a sample until it was taken as often as the requests name it."""
        self._held[sample] = data

    def take(self, sample: int) -> np.ndarray | None:
        """Return the bytes of a sample, None if they are not there."""
        self._uses[sample] -= 1
        return self._held.get(sample) if self._uses[sample] > 0 else self._held.pop(sample, None)


class WindowReader(Reader):
    """Reads the samples of requests window by window, each run by one positioned read.

    Args:
        shards: the opened set.
        check: compare every image with its checksum.
        kept: whether somebody has the pixels of a sample already, so that nobody asks for its bytes.
        begin: told a sample before each read; False ends all.
    """

    def __init__(
        self,
        shards: ShardSet,
        check: bool = True,
        kept: Callable[[int], bool] = lambda sample: False,
        begin: Callable[[int], bool] = lambda sample: True,
    ) -> None:
        super().__init__(shards, check)
        self._kept, self._begin = kept, begin
        self._window = Window([], [])
        self._buffer = np.empty(0, dtype=np.uint8)

    def through(self, requests: Iterable[Request]) -> Iterator[Request]:
        """Yield the requests in their order, each when `read` can give its samples without a further wait."""
        windows = map(self._planned, together(requests))
        following = next(windows, None)
        while following is not None:
            self._window = current = following
            if not self._bring(current, 1.0):
                return
            following = next(windows, None)
            for number, request in enumerate(current.requests, 1):
                yield request
                if following is not None and not self._bring(following, number / len(current.requests)):
                    return

    def read(self, sample: int) -> np.ndarray:
        """Return the bytes of one image of the request that was yielded last, uint8 [size]; errors as of Reader."""
        data = self._window.take(sample)
        return data if data is not None and self.matches(sample, data) else super().read(sample)

    def fetch(self, run: Run) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the wanted samples of a run with their bytes; fewer, where the file ends early or fails."""
        if run.end - run.begin > len(self._buffer):
            self._buffer = np.empty(run.end - run.begin, dtype=np.uint8)
        data = self._buffer[: run.end - run.begin]
        try:
            got = os.preadv(self._descriptor(run.shard), [data.data], run.begin)
        except OSError:
            return
        rows = self.shards.index[run.ids]
        begins = rows["offset"].astype(np.int64) - run.begin
        for sample, first, size in zip(run.ids.tolist(), begins.tolist(), rows["size"].tolist(), strict=True):
            if first + size <= got:
                yield sample, data[first : first + size].copy()

    def _planned(self, requests: list[Request]) -> Window:
        ids = np.unique(np.concatenate([request.ids for request in requests]))
        wanted = np.array([sample for sample in ids.tolist() if not self._kept(sample)], dtype=np.int64)
        return Window(requests, make_runs(self.shards.index, wanted))

    def _bring(self, window: Window, share: float) -> bool:
        for run in window.due(share):
            if not self._begin(int(run.ids[0])):
                return False
            for sample, data in self.fetch(run):
                window.put(sample, data)
        return True


def together(requests: Iterable[Request]) -> Iterator[list[Request]]:
    """Yield the requests that are read together: those in a row that name the same window."""
    held: list[Request] = []
    for request in requests:
        if held and (request.window < 0 or request.window != held[-1].window):
            yield held
            held = []
        held.append(request)
    if held:
        yield held


def sequential_reader(name: str, shards: ShardSet, **how: Any) -> WindowReader:
    """Return the reader `stream` or `webdataset`; further arguments as of WindowReader."""
    if name == "stream":
        return WindowReader(shards, **how)
    from bloodcell.data.library import WebDatasetReader

    return WebDatasetReader(shards, **how)
