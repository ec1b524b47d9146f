"""Batches as torch tensors: a thread drives the DALI pipeline ahead of the training loop; errors name the sample."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from bloodcell.data.order import BatchOrder, EvaluationOrder
from bloodcell.data.pipeline import Source, View, build
from bloodcell.data.reading import Reading
from bloodcell.data.request import Request
from bloodcell.data.shardset import Reader, ShardSet, unreadable
from shards.errors import Fault, Unreadable
from shards.images import UnusableImageError, decode

AHEAD = 2
"""Finished batches that wait for the training loop, beside those inside DALI."""


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
            yield Request(ids, occurrences, order.epoch(step), valid)


def evaluation_requests(order: EvaluationOrder, world: int, rank: int, epoch: int = 0) -> Iterator[Request]:
    """Yield the evaluation batches of one rank: as many on every rank, padding marked as not valid.

    `epoch` counts for the draws of a policy alone.
    """
    for index in range(order.batches_per_rank(world)):
        ids, valid = order.batch(index, world, rank)
        yield Request(ids, np.zeros_like(ids), epoch, valid)


class Loader:
    """Iterates over batches in the order of `requests`. Use as a context manager, or close() it.

    Args:
        shards: the opened set.
        requests: what each batch shall hold; every request has the same number of ids.
        view: how images become network input.
        batch: ids in a request.
        threads: DALI's decoding threads.
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
        self._source = Source(shards, requests, view, reading)
        self._gpu = device.type == "cuda"
        self._pipeline = build(self._source, batch, threads, device.index or 0 if self._gpu else None)
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
        fault = self._source.ahead.fault_before(count)
        self.waited += time.perf_counter() - begin
        return fault

    def close(self) -> None:
        """Stop the threads and free the pipeline."""
        self._stop.set()
        self._source.ahead.close()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)
        self._pipeline = None

    def _drive(self) -> None:
        try:
            while not self._stop.is_set():
                self._put(self._next())
        except StopIteration:
            self._put(None)
        except BaseException as error:  # everything must reach the consumer, or it would wait for ever
            self._put(self._explain(error))

    def _put(self, item: Batch | BaseException | None) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return

    def _next(self) -> Batch:
        images, ids = self._pipeline.run()
        request = self._source.waiting.popleft()
        if not np.array_equal(np.asarray(ids.as_tensor()).reshape(-1), np.tile(request.ids, self.view.views)):
            raise Fault("DALI delivered a batch out of order", "loader", "report this with the run's configuration")
        tensor = self._tensor(images)
        labels = torch.from_numpy(self.shards.index["label"][request.ids].astype(np.int64))
        return Batch(
            tensor if not self.view.channels_last else tensor.permute(0, 3, 1, 2),
            self._to_device(labels),
            self._to_device(torch.from_numpy(request.valid)),
            request,
        )

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True) if self._gpu else tensor

    def _tensor(self, images: Any) -> torch.Tensor:
        """Return DALI's output as a tensor that owns its memory."""
        if not self._gpu:
            # The tensor keeps DALI's buffer alive; the dynamic executor never writes into it again.
            return from_dlpack(images.as_tensor())
        stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(stream):
            # Copied on a stream of its own and waited for in this thread, so that DALI may reuse its buffer at once.
            tensor = from_dlpack(images.as_tensor()).clone()
        stream.synchronize()
        tensor.record_stream(torch.cuda.default_stream(self.device))
        return tensor

    def _explain(self, error: BaseException) -> BaseException:
        """Return the error of the reader behind DALI's, or one that names the sample that cannot be decoded."""
        if self._source.error is not None:
            return self._source.error
        reader = Reader(self.shards, check=False)
        for request in self._source.waiting:
            for sample in request.ids.tolist():
                try:
                    decode(reader.read(sample).tobytes())
                except (UnusableImageError, Unreadable) as problem:
                    fix = f"restore the shard (`bloodcell verify {self.shards.folder}` lists all bad ones), start again"
                    return unreadable(self.shards, sample, f"it cannot be decoded: {problem}", fix)
        return error
