"""The DALI backend: drives the graph and turns its buffers into tensors; its errors name the sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from bloodcell.data.pipeline import View, build
from bloodcell.data.reading import Reading
from bloodcell.data.request import Request
from bloodcell.data.shardset import Reader, ShardSet, unreadable
from bloodcell.data.source import Source
from shards.errors import Fault, Unreadable
from shards.images import UnusableImageError, decode


class DaliRenderer:
    """Renders requests in their order, on a GPU or on the CPU.

    Args:
        shards: the opened set.
        requests: what each batch shall hold.
        view: how images become network input.
        batch: ids in a request.
        threads: that decode.
        device: where the images shall be.
        reading: how samples are read.
    """

    def __init__(
        self,
        shards: ShardSet,
        requests: Iterator[Request],
        view: View,
        batch: int,
        threads: int,
        device: torch.device,
        reading: Reading,
    ) -> None:
        self.shards, self.view, self.device = shards, view, device
        self._gpu = device.type == "cuda"
        self._source = Source(shards, requests, view, reading, "gpu" if self._gpu else "cpu", threads)
        self.ahead = self._source.ahead
        self._pipeline = build(self._source, batch, threads, device.index or 0 if self._gpu else None)
        # One for all batches: torch keeps the memory that was freed on a stream for that stream alone.
        self._stream = torch.cuda.Stream(device) if self._gpu else None

    def next(self) -> tuple[torch.Tensor, Request]:
        """Return the next batch: float32 [n * views, 3, size, size] on the device, and its request.

        Raises:
            StopIteration: there are no more.
            Unreadable: a sample cannot be read or decoded.
        """
        try:
            images, ids = self._pipeline.run()
        except StopIteration:
            raise
        except Exception as error:
            raise self._explained(error) from error
        request = self._source.taken()
        if not np.array_equal(np.asarray(ids.as_tensor()).reshape(-1), np.tile(request.ids, self.view.views)):
            raise Fault("DALI delivered a batch out of order", "loader", "report this with the run's configuration")
        tensor = self._tensor(images)
        return tensor.permute(0, 3, 1, 2) if self.view.channels_last else tensor, request

    def close(self) -> None:
        """Free the pipeline."""
        self._source.close()
        self._pipeline = None

    def _tensor(self, images: Any) -> torch.Tensor:
        """Return DALI's output as a tensor that owns its memory."""
        if self._stream is None:
            # The tensor keeps DALI's buffer alive; the dynamic executor never writes into it again.
            return from_dlpack(images.as_tensor())
        with torch.cuda.stream(self._stream):
            # Copied on a stream of its own and waited for in this thread, so that DALI may reuse its buffer at once.
            tensor = from_dlpack(images.as_tensor()).clone()
        self._stream.synchronize()
        tensor.record_stream(torch.cuda.default_stream(self.device))
        return tensor

    def _explained(self, error: Exception) -> BaseException:
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
