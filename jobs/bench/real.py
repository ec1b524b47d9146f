"""`bloodcell bench engine --real SET`: training on a set's images beside the same steps on tensors held in memory.

Both take turns in one process on the same cores. The held tensors are the first batches of the set; the others are
read, augmented and shown by the loader as in a run from its second epoch on (decoded images stay in memory where they
fit). A turn on real images starts its loader anew and pays for what that reads ahead in vain.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.bench.result import Result, Row, measured
from shards.errors import BadInput

if TYPE_CHECKING:
    from bloodcell.config import Config
    from bloodcell.data.loader import Batch
    from bloodcell.data.shardset import ShardSet
    from bloodcell.engine.setup import Job
    from bloodcell.ranks import Ranks

HELD = 8
"""Micro-batches of the held tensors."""

RATE = 1e-4
REAL, HELD_NAME = "real images", "held tensors"


def run(folder: Path, models: list[str], size: int, micro_batch: int, repeats: int, steps: int) -> Result:
    """Time both for each model, on one rank with all cores.

    Raises:
        BadInput: no set, no such model, a number is too small, or the set is too small for the steps.
    """
    import torch

    from bloodcell.data.shardset import ShardSet
    from bloodcell.ranks import discover, process_group, set_threads

    if min(size, micro_batch, steps) < 1 or repeats < 2:
        raise BadInput("a number is too small", "bench engine", "give at least 2 repeats, 1 of the others")
    shards, ranks = ShardSet.open(folder), discover()
    configs = {name: _config(name, folder, size, micro_batch, ranks) for name in models}
    for config in configs.values():
        _check(config, shards, ranks)
    set_threads(next(iter(configs.values())).engine.threads)
    table: list[Row] = []
    with process_group(ranks, torch.device("cpu"), 600.0), tempfile.TemporaryDirectory() as place:
        for name, config in configs.items():
            table += _rows(name, _turns(made(config, Path(place) / name, ranks, shards), repeats, steps))
    flags = f"--model {' '.join(models)} --size {size} --micro-batch {micro_batch} --repeats {repeats} --steps {steps}"
    return Result(f"bloodcell bench engine --real {folder} {flags}", table)


def _config(name: str, folder: Path, size: int, micro_batch: int, ranks: Ranks) -> Config:
    from bloodcell.config import Config, override
    from bloodcell.engine.resolve import resolve

    flags = {
        "model.name": name,
        "data.set": str(folder),
        "data.size": size,
        "data.micro_batch": micro_batch,
        "data.cache": "host",
        "train.micro_batches": 1,
        "engine.device": "cpu",
        "tracking.wandb": "off",
    }
    return resolve(override(Config(), flags), ranks)


def _check(config: Config, shards: ShardSet, ranks: Ranks) -> None:
    from bloodcell.engine.setup import check

    check(config, shards, ranks)


def made(config: Config, place: Path, ranks: Ranks, shards: ShardSet) -> Job:
    """Return a run that is ready to train, in the folder `place`. Collective."""
    from bloodcell.engine.setup import prepare
    from bloodcell.runfolder import RunFolder, Status

    (place / "checkpoints").mkdir(parents=True)
    folder = RunFolder(place)
    return prepare(config, folder, Status(folder, False), ranks, shards)


def _turns(job: Job, repeats: int, steps: int) -> dict[str, list[tuple[float, float]]]:
    """Return (CPU-seconds, seconds) of each turn; the first turn of both warms up and fills the memory of images."""
    from bloodcell.engine.batches import training_batches
    from bloodcell.engine.guard import Guard

    if steps > job.plan.steps_per_epoch:
        fix = f"it has {job.plan.steps_per_epoch} micro-batches: take fewer steps"
        raise BadInput("the set is too small", "--steps", fix)
    guard = Guard(job.device, job.shards.describe)
    job.strategy.model.train()
    with training_batches(job, 0) as loader:
        held = [
            replace(batch, images=batch.images.clone(), labels=batch.labels.clone())
            for batch in itertools.islice(loader, min(HELD, steps))
        ]
    found: dict[str, list[tuple[float, float]]] = {REAL: [], HELD_NAME: []}
    for turn in range(-1, repeats):
        for name in found if turn % 2 else reversed(found):
            begin, used = time.perf_counter(), time.process_time()
            if name == REAL:
                with training_batches(job, 0) as loader:
                    take_steps(job, guard, iter(loader), steps)
            else:
                take_steps(job, guard, itertools.cycle(held), steps)
            if turn >= 0:
                images = steps * job.plan.global_batch
                took = (time.process_time() - used, time.perf_counter() - begin)
                found[name].append((images / took[0], images / took[1]))
    return found


def take_steps(job: Job, guard: Any, batches: Iterator[Batch], steps: int) -> None:
    """Take training steps as a run does, and wait for the last one's report."""
    from bloodcell.engine.train import take_step

    for step in range(steps):
        guard.end(take_step(job, guard, batches, step, RATE))
    guard.flush()


def _rows(model: str, found: dict[str, list[tuple[float, float]]]) -> list[Row]:
    table = []
    for place, unit in enumerate(("images/CPU-s", "images/s")):
        held = [one[place] for one in found[HELD_NAME]]
        real = [one[place] for one in found[REAL]]
        base = f"{model}, {HELD_NAME}, {unit}"
        table += [measured(base, held, unit), measured(f"{model}, {REAL}, {unit}", real, unit, base, held)]
    return table
