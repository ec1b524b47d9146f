"""Batches as torch tensors: a thread drives a backend (DALI, or a pool of threads) ahead of the training loop."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from bloodcell.data.order import BatchOrder, EvaluationOrder
from bloodcell.data.pipeline import View
from bloodcell.data.readahead import ReadAhead
from bloodcell.data.reading import Reading
from bloodcell.data.request import Request
from bloodcell.data.shardset import ShardSet

AHEAD = 2
"""Finished batches that wait for the training loop, beside those that the backend works on."""


TOGETHER = 1024
"""Samples of an evaluation that sequential readers hold at once."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        images: float32 [n * views, 3, size, size] on the device, normalised, all samples in their first view first;
            channels_last in memory if the view asks for it.
        labels: int64 [n] on the device.
        valid: bool [n] on the device; False rows are padding (evaluation only).
        request: the ids, occurrences and epoch behind it, on the host.
    """

    images: torch.Tensor
    labels: torch.Tensor
    valid: torch.Tensor
    request: Request


def training_requests(order: BatchOrder, world: int, rank: int, first_step: int, last_step: int) -> Iterator[Request]:
    """Yield the micro-batches of one rank, slot by slot, for the steps [first_step, last_step)."""
    valid = np.ones(order.micro_batch, dtype=bool)
    for step in range(first_step, last_step):
        dealt = order.step(step, world, rank)
        for ids, occurrences in zip(dealt.ids, dealt.occurrences, strict=True):
            yield Request(ids, occurrences, order.epoch(step), valid, window=order.window(step))


def evaluation_requests(order: EvaluationOrder, world: int, rank: int, epoch: int = 0) -> Iterator[Request]:
    """Yield the evaluation batches of one rank: as many on every rank, padding marked as not valid.

    `epoch` counts for the draws of a policy alone.
    """
    for index in range(order.batches_per_rank(world)):
        ids, valid = order.batch(index, world, rank)
        yield Request(ids, np.zeros_like(ids), epoch, valid, window=index * order.batch_size // TOGETHER)


class Renderer(Protocol):
    """A backend: it turns requests into images, in their order."""

    ahead: ReadAhead

    def next(self) -> tuple[torch.Tensor, Request]:
        """Return the images of the next request (see Batch) and it, or raise StopIteration or Unreadable."""

    def close(self) -> None:
        """Stop its threads and free its memory."""


class Loader:
    """Iterates over batches in the order of `requests`. Use as a context manager, or close() it.

    Args:
        shards: the opened set.
        requests: what each batch shall hold; every request has the same number of ids.
        view: how images become network input.
        batch: ids in a request.
        threads: that decode and, on the CPU, augment.
        device: where the batches shall be.
        reading: how samples are read.

    Raises (while iterating):
        Unreadable: a sample cannot be read or decoded; names its key and shard.
    """

    def __init__(
        self,
        shards: ShardSet,
        requests: Iterator[Request],
        view: View,
        batch: int,
        threads: int,
        device: torch.device,
        reading: Reading = Reading(),  # noqa: B008 - frozen
    ) -> None:
        self.shards, self.view, self.device = shards, view, device
        self.waited = 0.0
        """Seconds that the consumer has waited for batches so far."""
        self._gpu = device.type == "cuda"
        self._renderer = self._backend(requests, batch, threads, reading)
        self._queue: queue.Queue[Batch | BaseException | None] = queue.Queue(AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._drive, name="bloodcell-loader", daemon=True)
        self._thread.start()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            begin = time.perf_counter()
            item = self._queue.get()
            self.waited += time.perf_counter() - begin
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def fault_before(self, count: int) -> Exception | None:
        """Wait until the bytes of the first `count` requests were read; return what prevents it, None if nothing."""
        begin = time.perf_counter()
        fault = self._renderer.ahead.fault_before(count)
        self.waited += time.perf_counter() - begin
        return fault

    def close(self) -> None:
        """Stop the threads and free the backend."""
        self._stop.set()
        self._renderer.ahead.close()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)
        self._renderer.close()

    def _backend(self, requests: Iterator[Request], batch: int, threads: int, reading: Reading) -> Renderer:
        if self.view.backend == "cpu":
            from bloodcell.data.pool import PoolRenderer

            return PoolRenderer(self.shards, requests, self.view, threads, reading)
        from bloodcell.data.dali import DaliRenderer

        return DaliRenderer(self.shards, requests, self.view, batch, threads, self.device, reading)

    def _drive(self) -> None:
        try:
            if self._gpu:  # a thread begins on the first GPU, whichever the rank's is
                torch.cuda.set_device(self.device)
            while not self._stop.is_set():
                self._put(self._next())
        except StopIteration:
            self._put(None)
        except BaseException as error:  # everything must reach the consumer, or it would wait for ever
            self._put(error)

    def _put(self, item: Batch | BaseException | None) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return

    def _next(self) -> Batch:
        images, request = self._renderer.next()
        labels = torch.from_numpy(self.shards.index["label"][request.ids].astype(np.int64))
        valid = torch.from_numpy(request.valid)
        return Batch(images.to(self.device), self._to_device(labels), self._to_device(valid), request)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True) if self._gpu else tensor
