"""One rank of `bloodcell bench engine`: networks under all strategies side by side, a few steps of each in turn."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch import nn

from bloodcell.config import Config, override
from bloodcell.data.loader import Batch
from bloodcell.data.shardset import ShardSet
from bloodcell.engine.batches import training_batches
from bloodcell.engine.ddp import autocast
from bloodcell.engine.guard import Guard
from bloodcell.engine.meter import Meter
from bloodcell.engine.optim import build_optimizer
from bloodcell.engine.resolve import resolve
from bloodcell.engine.setup import Job, check, make_model, prepare
from bloodcell.engine.train import Progress, take_step
from bloodcell.ranks import Ranks, choose_device, discover, process_group, set_threads
from bloodcell.runfolder import RunFolder, Status
from jobs.bench.engine import BARE, Sizes

RATE = 1e-4
BATCHES = 8
"""Micro-batches held in memory."""


def main(place: Path) -> None:
    """Measure what sizes.json in `place` asks for; the first rank writes found.json there."""
    values = json.loads((place / "sizes.json").read_text())
    sizes = Sizes(**{**values, **{name: tuple(values[name]) for name in ("strategies", "buckets")}})
    ranks = discover()
    shards = ShardSet.open(place / "set")
    configs = {name: _config(sizes, name, place, ranks) for name in sizes.strategies}
    for config in configs.values():
        check(config, shards, ranks)
    set_threads(1)
    with process_group(ranks, choose_device(ranks, sizes.device), 600.0):
        ddp = _job(configs["ddp"], place / "ddp", ranks, shards)
        batches = _batches(ddp)
        step = _ours(ddp, batches)
        step()
        first = time.time() - psutil.Process().create_time()
        if sizes.buckets:
            cases = {}
            for size in sizes.buckets:
                config = override(configs["ddp"], {"engine.bucket_mb": size})
                job = _job(config, place / f"buckets{size}", ranks, shards)
                cases[f"buckets of {size} MiB"] = _ours(job, batches)
        else:
            cases = {BARE: _bare(configs["ddp"], len(shards.info.classes), batches, ddp.device), "ddp": step}
            for name in sizes.strategies[1:]:
                cases[name] = _ours(_job(configs[name], place / name, ranks, shards), batches)
        cpu, wall = _turns(cases, sizes, ddp.device)
        found = {"step": cpu, "wall": wall, "other": [] if sizes.buckets else _other(ddp, first)}
        if ranks.first:
            (place / "found.json").write_text(json.dumps(found))


def _config(sizes: Sizes, strategy: str, place: Path, ranks: Ranks) -> Config:
    flags = {
        "model.name": sizes.model,
        "data.set": str(place / "set"),
        "data.size": sizes.size,
        "data.micro_batch": sizes.micro_batch,
        "train.micro_batches": sizes.ranks,
        "optim.clip": 0.0,
        "engine.strategy": strategy,
        "engine.device": sizes.device,
        "engine.threads": 1,
        "tracking.wandb": "off",
    }
    return resolve(override(Config(), flags), ranks)


def _job(config: Config, place: Path, ranks: Ranks, shards: ShardSet) -> Job:
    run = RunFolder(place)
    if ranks.first:
        (run.path / "checkpoints").mkdir(parents=True)
    dist.barrier()
    return prepare(config, run, Status(run, False), ranks, shards)


def _batches(job: Job) -> Iterator[Batch]:
    """Yield the first micro-batches of this rank again and again, decoded once."""
    with training_batches(job, 0) as loader:
        held = [
            replace(batch, images=batch.images.clone(), labels=batch.labels.clone())
            for batch in itertools.islice(loader, BATCHES)
        ]
    return itertools.cycle(held)


def _bare(config: Config, classes: int, batches: Iterator[Batch], device: torch.device) -> Callable[[], None]:
    """Return a step as PyTorch's tutorial has it, with DDP's cheapest settings."""
    model = make_model(config, classes, None).to(device).train()
    optimizer = build_optimizer(model, config.optim, device)
    wrapped = nn.parallel.DistributedDataParallel(
        model, broadcast_buffers=False, gradient_as_bucket_view=True, static_graph=True
    )
    loss_of = nn.CrossEntropyLoss()

    def step() -> None:
        batch = next(batches)
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, config.engine.precision):
            loss = loss_of(wrapped(batch.images), batch.labels)
        loss.backward()
        optimizer.step()

    return step


def _ours(job: Job, batches: Iterator[Batch]) -> Callable[[], None]:
    """Return the training loop's own step, with what follows each step when nothing is due."""
    guard = Guard(job.device, job.shards.describe)
    meter, state = Meter(job.device, job.plan.global_batch), Progress()
    job.strategy.model.train()

    def step() -> None:
        report = guard.end(take_step(job, guard, batches, state.step, RATE))
        state.step += 1
        job.average.update(state.step)
        state.note(report)
        meter.note(report)
        meter.step(0.0)
        job.show(state, meter)

    return step


def _turns(
    cases: dict[str, Callable[[], None]], sizes: Sizes, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return CPU-seconds of all ranks and clock seconds of a step, one figure a turn; every other turn backwards."""
    cpu: dict[str, list[float]] = {name: [] for name in cases}
    wall: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(-1, sizes.repeats):  # the first one warms up
        for name in list(cases) if turn % 2 else reversed(cases):
            dist.barrier()
            _wait(device)
            begin, used = time.perf_counter(), time.process_time()
            for _ in range(sizes.steps):
                cases[name]()
            _wait(device)
            took = torch.tensor([time.process_time() - used, time.perf_counter() - begin], dtype=torch.float64)
            dist.all_reduce(took)
            if turn >= 0:
                cpu[name].append(float(took[0]) / sizes.steps)
                wall[name].append(float(took[1]) / sizes.steps / sizes.ranks)
    return cpu, wall


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _other(job: Job, first: float) -> list[tuple[str, float, str]]:
    """Return what is measured once: start-up, and evaluation for each image."""
    used = torch.tensor([time.process_time()], dtype=torch.float64)
    with job.strategy.averaged():
        job.inference(job.strategy.model, job.split("val"))
    spent = torch.tensor([time.process_time()], dtype=torch.float64) - used
    dist.all_reduce(spent)
    images = job.shards.info.count(job.split("val"))
    return [
        ("process start to end of first step", first, "s"),
        ("evaluation, decoding included", 1000 * float(spent) / images, "CPU-ms/image"),
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
