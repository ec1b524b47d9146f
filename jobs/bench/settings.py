"""`bloodcell bench engine --setting NAME`: our training steps with a setting of the engine and without it, in turns.

One process with all cores, the same tensors in memory for both. Compiling starts from an empty cache, and what it costs
is among the rows.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.bench.result import Result, Row, cpu_seconds, measured
from shards.errors import BadInput

if TYPE_CHECKING:
    from bloodcell.config import Config
    from bloodcell.data.shardset import ShardSet
    from bloodcell.ranks import Ranks

BATCHES = 4

SETTINGS: dict[str, tuple[str, Any, Any]] = {
    # the field of the config, and its values without and with it
    "compile": ("engine.compile", "off", "on"),
    "channels-last": ("engine.channels_last", False, True),
    "fused": ("optim.fused", "off", "on"),
}


def run(setting: str, models: list[str], size: int, micro_batch: int, repeats: int, steps: int) -> Result:
    """Time both kinds of steps for each model.

    Args:
        setting: one of SETTINGS.
        models: names of the zoo.
        size: of the images, pixels.
        micro_batch: images at once.
        repeats: turns of each kind.
        steps: of a turn.

    Raises:
        BadInput: no such model, no compiler, or a number is too small.
    """
    import torch

    from bloodcell.data.shardset import ShardSet
    from bloodcell.engine.compiling import CACHE
    from bloodcell.engine.setup import check
    from bloodcell.ranks import discover, process_group, set_threads
    from shards.pack import PackOptions, pack
    from shards.synth import SynthOptions, synthesise

    if min(size, micro_batch, steps) < 1 or repeats < 2:
        raise BadInput("a number is too small", "bench engine", "give at least 2 repeats, 1 of the others")
    ranks, table = discover(), list[Row]()
    before = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        synthesise(place / "images", SynthOptions(images=4 * BATCHES * micro_batch, size=size, patients=16), 2)
        options = PackOptions(split="50/50/0", table=str(place / "images" / "truth.csv"), group_column="patient")
        pack(place / "images", place / "set", options)
        shards = ShardSet.open(place / "set")
        wanted = {name: _config(name, setting, shards, size, micro_batch, ranks) for name in models}
        for config in wanted.values():
            check(config, shards, ranks)
        set_threads(next(iter(wanted.values())).engine.threads)
        try:
            os.environ[CACHE] = str(place / "compiled")
            with process_group(ranks, torch.device("cpu"), 600.0):
                for name, config in wanted.items():
                    table += _rows(name, setting, config, place / "runs" / name, ranks, shards, repeats, steps)
        finally:
            os.environ.pop(CACHE) if before is None else os.environ.update({CACHE: before})
    flags = f"--model {' '.join(models)} --size {size} --micro-batch {micro_batch} --repeats {repeats} --steps {steps}"
    return Result(f"bloodcell bench engine --setting {setting} {flags}", table)


def _config(name: str, setting: str, shards: ShardSet, size: int, micro_batch: int, ranks: Ranks) -> Config:
    from bloodcell.config import Config, override
    from bloodcell.engine.resolve import resolve

    field, _, value = SETTINGS[setting]
    flags = {
        "model.name": name,
        "data.set": str(shards.folder),
        "data.size": size,
        "data.micro_batch": micro_batch,
        "train.micro_batches": 1,
        "engine.device": "cpu",
        field: value,
        "tracking.wandb": "off",
    }
    return resolve(override(Config(), flags), ranks)


def _rows(
    name: str, setting: str, config: Config, place: Path, ranks: Ranks, shards: ShardSet, repeats: int, steps: int
) -> list[Row]:
    from bloodcell.config import override
    from bloodcell.engine.batches import training_batches
    from bloodcell.engine.guard import Guard
    from jobs.bench.real import made, take_steps

    field, *values = SETTINGS[setting]
    jobs, spent = {}, {}
    for value in values:
        begin, used = time.perf_counter(), cpu_seconds()
        jobs[value] = made(override(config, {field: value}), place / str(value), ranks, shards)
        jobs[value].strategy.model.train()
        spent[value] = cpu_seconds() - used, time.perf_counter() - begin
    job = jobs[values[0]]
    with training_batches(job, 0) as loader:
        batches = itertools.islice(loader, min(BATCHES, job.plan.steps_per_epoch))
        held = [replace(batch, images=batch.images.clone(), labels=batch.labels.clone()) for batch in batches]
    figures: dict[Any, list[tuple[float, float]]] = {value: [] for value in values}
    guard = Guard(job.device, shards.describe)
    for turn in range(-1, repeats):  # the first one warms up
        for value in values if turn % 2 else reversed(values):
            begin, used = time.perf_counter(), time.process_time()
            take_steps(jobs[value], guard, itertools.cycle(held), steps)
            took = time.process_time() - used, time.perf_counter() - begin
            if turn >= 0:
                figures[value].append((1000 * took[0] / steps, 1000 * took[1] / steps))
    without, with_it = (f"{name}, {field} {str(value).lower()}" for value in values)
    rows = []
    for column, unit in enumerate(("CPU-ms/step", "ms/step")):
        base, other = ([one[column] for one in figures[value]] for value in values)
        rows += [
            measured(f"{without}, {unit}", base, unit),
            measured(f"{with_it}, {unit}", other, unit, f"{without}, {unit}", base),
        ]
    if setting != "compile":
        return rows
    cost = [spent[values[1]][column] - spent[values[0]][column] for column in (0, 1)]
    return [*rows, Row(f"{name}, compiling", cost[0], "CPU-s"), Row(f"{name}, compiling, wall", cost[1], "s")]
