"""Fill the memory of a GPU with a set's images before training: decoded by DALI, as the path without a cache does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from bloodcell.data.resident import DeviceCache
from bloodcell.data.shardset import Reader, ShardSet
from shards.errors import Unreadable
from shards.parallel import chunked

BATCH = 64


def fill(cache: DeviceCache, shards: ShardSet, threads: int, check: bool) -> None:
    """Decode every image of the cache's layout into it.

    A sample that cannot be read, and all that come after one that cannot be decoded, are left to be read when they are
    wanted: it is then that a fault is named, or the sample left out.

    Args:
        cache: to be filled.
        shards: the set.
        threads: that decode.
        check: compare every image with its checksum.
    """
    reader, waiting = Reader(shards, check), []

    def batches() -> Iterator[list[Any]]:
        for ids in chunked(cache.layout.ids.tolist(), BATCH):
            found = [(sample, data) for sample in ids if (data := _read(reader, sample)) is not None]
            if found:
                waiting.append([sample for sample, _ in found])
                yield [data for _, data in found]

    pipeline = _decoder(batches(), threads, cache.device.index or 0)
    try:
        while True:
            (images,) = pipeline.run()
            for sample, image in zip(waiting.pop(0), images, strict=True):
                cache.put(sample, from_dlpack(image))
            torch.cuda.synchronize(cache.device)  # DALI uses its buffers again in the next run
    except (StopIteration, RuntimeError):
        pass
    finally:
        reader.close()
        torch.cuda.synchronize(cache.device)


def _read(reader: Reader, sample: int) -> np.ndarray | None:
    try:
        return reader.read(sample)
    except Unreadable:
        return None


def _decoder(batches: Iterator[list[Any]], threads: int, device: int) -> Any:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=BATCH, num_threads=threads, device_id=device, prefetch_queue_depth=1)
    def graph() -> Any:
        encoded = fn.external_source(source=batches, batch=True)
        return fn.decoders.image(encoded, device="mixed", output_type=types.RGB)

    pipeline = graph()
    pipeline.build()
    return pipeline
