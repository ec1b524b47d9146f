"""`bloodcell bench data --policy ...`: images a second under augmentation policies, by DALI and by the CPU backend."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.bench.data import kept
from jobs.bench.result import Result, interleaved, measured
from shards.errors import BadInput

if TYPE_CHECKING:
    from bloodcell.data.policies import Policy
    from bloodcell.data.resident import HostCache
    from bloodcell.data.shardset import ShardSet

BATCH = 64


def run(
    folder: Path, names: Sequence[str], size: int, images: int, threads: int, repeats: int, resident: bool = False
) -> Result:
    """Time the loader on the CPU over `images` training images a repeat under each policy, with both backends.

    Both figures count from the first batch on: building a pipeline takes seconds where a policy chooses operations.
    With `resident` all take the images from one cache of decoded ones, so that the policies are what differs.

    Raises:
        BadInput: the set cannot be opened, no such policy, or a number is too small.
    """
    from bloodcell.data.policies import find_policy
    from bloodcell.data.shardset import ShardSet

    if min(size, threads, repeats) < 1 or images < 8 * BATCH:
        raise BadInput("a number is too small", "bench data", f"give at least {8 * BATCH} images")
    shards = ShardSet.open(folder)
    cache = kept(shards, threads) if resident else None
    labels = {f"{name} ({backend})": (name, backend) for name in names for backend in ("dali", "cpu")}
    wall: dict[str, list[float]] = {label: [] for label in labels}
    cpu: dict[str, list[float]] = {label: [] for label in labels}
    cases: dict[str, Callable[[], float]] = {
        label: partial(_time, shards, find_policy(name), backend, size, images, threads, cache, wall[label], cpu[label])
        for label, (name, backend) in labels.items()
    }
    interleaved(cases, repeats)
    rows = []
    for title, unit, figures in (("wall", "images/s", wall), ("cpu", "images/CPU-s", cpu)):
        for label, (name, backend) in labels.items():
            base = f"{name if backend == 'cpu' else names[0]} (dali)"
            rows.append(measured(f"{label}, {title}", figures[label], unit, f"{base}, {title}", figures[base]))
    flags = f"--size {size} --images {images} --workers {threads} --repeats {repeats}{' --resident' * resident}"
    return Result(f"bloodcell bench data {folder} --policy {' '.join(names)} {flags}", rows)


def _time(
    shards: ShardSet,
    policy: Policy,
    backend: str,
    size: int,
    images: int,
    threads: int,
    cache: HostCache | None,
    wall: list[float],
    cpu: list[float],
) -> float:
    import torch

    from bloodcell.data.loader import Loader, training_requests
    from bloodcell.data.order import BatchOrder, NaturalPlan
    from bloodcell.data.pipeline import View
    from bloodcell.data.reading import Reading

    name = next(split for split in shards.info.splits if split.endswith("train"))
    order = BatchOrder(NaturalPlan(shards.ranges(name)), 0, BATCH, 1)
    view = View(size, (0.5,) * 3, (0.25,) * 3, policy, 0, backend=backend)
    requests = training_requests(order, 1, 0, 0, images // BATCH)
    with Loader(shards, requests, view, BATCH, threads, torch.device("cpu"), Reading(cache=cache)) as loader:
        batches = iter(loader)
        next(batches)
        begin, used = time.perf_counter(), _cpu_seconds()
        count = sum(len(batch.images) for batch in batches)
        wall.append(count / (time.perf_counter() - begin))
        cpu.append(count / (_cpu_seconds() - used))
    return wall[-1]


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
