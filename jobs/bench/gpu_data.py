"""The data path of `bloodcell bench gpu`: decoding and augmenting alone, beside torchvision's ways, and its settings.

Ours and the workers of a DataLoader do a random resized crop, a flip and the normalisation; torchvision's decoder for
the GPU decodes only.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.bench.data import extract, kept, training_split
from jobs.bench.gpu_parts import Batches, How, batches, filled, has_dali
from jobs.bench.peers import AREA, RATIO, image_folder
from jobs.bench.result import Row, interleaved, measured
from jobs.bench.resuming import NotHereError
from shards.parallel import available_cores

if TYPE_CHECKING:
    from bloodcell.data.policies import Policy

ENCODED = 512
"""Images that the batches of torchvision's decoder are taken from."""

LOADS = (0.0, 0.25, 0.5, 0.65, 0.9)
"""Shares of a batch that go to the JPEG unit."""

THREADS = (1, 2, 4, 8, 16, 32)


def images(how: How) -> list[Row]:
    """Time decoding and augmenting alone, beside a DataLoader with all cores and torchvision's decoder on the GPU."""
    workers = available_cores()
    with tempfile.TemporaryDirectory() as place:
        extract(how.shards, Path(place))
        name = f"torchvision ImageFolder, DataLoader with {workers} workers"
        cases: dict[str, Callable[[], float]] = {name: partial(by_workers, how, Path(place), workers)}
        if how.gpu:
            cases["torchvision decode_jpeg on the GPU, no resize"] = partial(by_torchvision, how)
        else:
            how.left_out.append("torchvision decode_jpeg on the GPU: there is no GPU")
        if has_dali():
            cases["bloodcell, decoded each time (DALI)"] = partial(ours, how, partial(batches, how, None))
        if has_dali() and how.gpu:
            cases["bloodcell, kept on the GPU (DALI)"] = partial(ours, how, partial(batches, how, filled(how)))
        memory = partial(batches, how, kept(how.shards, how.threads), "cpu")
        cases["bloodcell, kept in memory (cpu backend)"] = partial(ours, how, memory)
        figures = interleaved(cases, how.repeats, warmups=1)
    base = next(iter(cases))
    return [measured(name, figures[name], "images/s", base, figures[base]) for name in cases]


def hardware_loads(how: How) -> list[Row]:
    """Time the loader with other shares of a batch on the JPEG unit.

    Raises:
        NotHereError: there is no GPU, or no DALI.
    """
    from bloodcell.data.decoder import Decoder

    if not how.gpu:
        raise NotHereError("there is no GPU")
    if not has_dali():
        raise NotHereError("DALI is not installed")
    cases: dict[str, Callable[[], float]] = {
        f"hw_decoder_load {load:g}": partial(ours, how, partial(batches, how, None, decoder=Decoder(hw_load=load)))
        for load in LOADS
    }
    return _compared(how, cases, "hw_decoder_load 0.65")


def thread_counts(how: How) -> list[Row]:
    """Time the loader with other numbers of decoding threads; raises NotHereError where DALI is not."""
    if not has_dali():
        raise NotHereError("DALI is not installed")
    counts = [count for count in THREADS if count <= available_cores()]
    cases: dict[str, Callable[[], float]] = {
        f"decoding threads {count}": partial(ours, how, partial(batches, replace(how, threads=count), None))
        for count in counts
    }
    return _compared(how, cases, f"decoding threads {counts[-1]}")


def _compared(how: How, cases: dict[str, Callable[[], float]], base: str) -> list[Row]:
    figures = interleaved(cases, how.repeats, warmups=1)
    return [measured(name, figures[name], "images/s", base, figures[base]) for name in cases]


def crop_and_flip() -> Policy:
    """Return what a DataLoader's workers do here, as a policy."""
    from bloodcell.data.operations import Crop, Flip
    from bloodcell.data.policies import Policy

    return Policy("bench", (Crop(AREA, RATIO), Flip(0.5, 0.0)))


def ours(how: How, source: Callable[..., Batches]) -> float:
    """Return images a second of our loader."""
    return counted(how, (found for found, _ in source(policy=crop_and_flip())))


def by_workers(how: How, place: Path, workers: int) -> float:
    """Return images a second that the workers of a DataLoader bring to the device."""
    total = (how.warm_up + how.steps) * max(how.batch, 64)
    found = image_folder(place, how.size, workers, total, decode_v2=True)
    return counted(how, (batch.to(how.device, non_blocking=True) for batch in found))


def counted(how: How, found: Iterable[object]) -> float:
    """Return images a second of batches, the first ones left out."""
    import torch

    batch_iterator = iter(found)
    for _ in islice(batch_iterator, how.warm_up):
        pass
    how.wait()
    begin, count = time.perf_counter(), 0
    for batch in batch_iterator:
        assert isinstance(batch, torch.Tensor)
        count += len(batch)
    how.wait()
    return count / (time.perf_counter() - begin)


def by_torchvision(how: How) -> float:
    """Return images a second of torchvision's decoder for whole batches on the GPU, from bytes in memory."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    from bloodcell.data.shardset import Reader

    reader, first = Reader(how.shards), int(how.shards.ranges(training_split(how.shards))[0][0])
    there = min(ENCODED, how.shards.info.count(training_split(how.shards)))
    found = [torch.from_numpy(reader.read(first + place % there)) for place in range(how.batch)]
    reader.close()
    begin = 0.0
    for step in range(how.warm_up + how.steps):
        if step == how.warm_up:
            how.wait()
            begin = time.perf_counter()
        decode_jpeg(found, mode=ImageReadMode.RGB, device=how.device)
    how.wait()
    return how.steps * how.batch / (time.perf_counter() - begin)
