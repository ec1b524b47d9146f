"""Fill the memory of a GPU with a set's images before training: decoded and scaled down by DALI, as without a cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from bloodcell.data.decoder import Decoder, decoded_images
from bloodcell.data.resident import DeviceCache
from bloodcell.data.shardset import Reader, ShardSet
from shards.errors import Unreadable
from shards.parallel import chunked

BATCH = 64


def fill(cache: DeviceCache, shards: ShardSet, threads: int, check: bool, decoder: Decoder = Decoder()) -> None:  # noqa: B008 - frozen
    """Decode every image of the cache's layout into it.

    A sample that cannot be read, and all that come after one that cannot be decoded, are left to be read when they are
    wanted: it is then that a fault is named, or the sample left out.

    Args:
        cache: to be filled.
        shards: the set.
        threads: that decode.
        check: compare every image with its checksum.
        decoder: how DALI decodes.
    """
    reader, waiting = Reader(shards, check), []
    layout = cache.layout
    sizes = np.stack([layout.heights, layout.widths], axis=1).astype(np.float32)

    def batches() -> Iterator[tuple[list[Any], np.ndarray]]:
        for places in chunked(list(range(len(layout.ids))), BATCH):
            read = [(place, _read(reader, int(layout.ids[place]))) for place in places]
            found = [(place, data) for place, data in read if data is not None]
            if found:
                waiting.append([int(layout.ids[place]) for place, _ in found])
                yield [data for _, data in found], sizes[[place for place, _ in found]]

    told = decoder.told("gpu", shards.largest if decoder.hints else (0, 0))
    pipeline = _pipeline(batches(), threads, cache.device.index or 0, told, bool(layout.scaled.any()))
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


def _pipeline(batches: Iterator[Any], threads: int, device: int, told: dict[str, Any], scales: bool) -> Any:
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=BATCH, num_threads=threads, device_id=device, prefetch_queue_depth=1)
    def graph() -> Any:
        encoded, size = fn.external_source(source=batches, batch=True, num_outputs=2)
        return decoded_images(encoded, told, size=size if scales else None)

    pipeline = graph()
    pipeline.build()
    return pipeline
