"""Two dry steps of the recipe, and one save: do they work, how long do they take, how much memory do they need?"""

from __future__ import annotations

import resource
import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bloodcell.config import Config
from bloodcell.data.shardset import ShardSet
from bloodcell.engine.batches import training_batches
from bloodcell.engine.guard import Guard
from bloodcell.engine.setup import Job, check, prepare
from bloodcell.engine.train import Progress, take_step
from bloodcell.ranks import Ranks
from bloodcell.runfolder import RunFolder, Status
from jobs.doctor.findings import Finding, bad, good, unknown
from jobs.doctor.folders import size

STEPS = 2
RATE = 1e-4
FULL = 0.9
"""Share of a node's memory above which other programs and the page cache get too little."""


def look(config: Config, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Do them; return {step, save, bytes, memory, gpu_memory, gpu_total} of this rank. Collective.

    Args:
        config: resolved.
        folder: on the disk of the run; a folder in it is made and removed.
        ranks: this process's place; the process group is up.
    """
    shards = ShardSet.open(Path(config.data.set))
    check(config, shards, ranks)
    run = RunFolder(folder / "dry")
    if ranks.first:
        (run.path / "checkpoints").mkdir(parents=True, exist_ok=True)
    dist.barrier()
    try:
        job = prepare(config, run, Status(run, False), ranks, shards)
        step = _steps(job)
        begin = time.perf_counter()
        job.save(STEPS, asdict(Progress(step=STEPS, planned=job.plan.steps)))
        job.checkpoints.wait()
        save = time.perf_counter() - begin
        written = sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file() and not file.is_symlink())
        job.checkpoints.close()
        dist.barrier()
    finally:
        if ranks.first:
            shutil.rmtree(run.path, ignore_errors=True)
    gpu = job.device.type == "cuda"
    return {
        "step": round(step, 4),
        "save": round(save, 4),
        "bytes": written,
        "keep": config.train.keep,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "gpu_memory": torch.cuda.max_memory_reserved() if gpu else 0,
        "gpu_total": torch.cuda.mem_get_info()[1] if gpu else 0,
    }


def _steps(job: Job) -> float:
    """Return the seconds of the last step: the first one also compiles and fills the pipeline."""
    guard = Guard(job.device, job.shards.describe, check_norm=job.config.engine.precision != "fp16")
    job.strategy.model.train()
    seconds = 0.0
    with training_batches(job, 0) as loader:
        batches = iter(loader)
        for step in range(STEPS):
            begin = time.perf_counter()
            guard.end(take_step(job, guard, batches, step, RATE))
            guard.flush()
            seconds = time.perf_counter() - begin
    return seconds


def judge(seen: dict[int, dict[str, Any]], hosts: Sequence[str], limits: dict[str, int]) -> list[Finding]:
    """Say how the steps went, and which node's memory they fill.

    Args:
        seen: what look() returned, by rank.
        hosts: each rank's node.
        limits: bytes that the job may use on each node.
    """
    if not seen:
        return [unknown(name, "no RECIPE with --data SET is named") for name in ("dry steps", "memory")]
    slowest, save = max(one["step"] for one in seen.values()), max(one["save"] for one in seen.values())
    written = max(one["bytes"] for one in seen.values())
    took = f"{STEPS} on {len(seen)} ranks, the last took {slowest:.3g} s; a checkpoint of {size(written)} {save:.3g} s"
    used: dict[str, int] = defaultdict(int)
    for rank, one in seen.items():
        used[hosts[rank]] += one["memory"]
    problems = [
        f"{host}: {size(used[host])} of {size(limits[host])}"
        for host in used
        if host in limits and used[host] > FULL * limits[host]
    ]
    full = [(rank, one) for rank, one in seen.items() if one["gpu_memory"] > FULL * max(one["gpu_total"], 1)]
    problems += [
        f"GPU of rank {rank}: {size(one['gpu_memory'])} of {size(one['gpu_total'])}"
        for rank, one in full
        if one["gpu_total"]
    ]
    fix = "a smaller data.micro_batch with more train.micro_batches, or more --memory; fewer data.threads"
    worst = max(used, key=lambda host: used[host] / limits.get(host, 1 << 62))
    said = f"{size(used[worst])} of {size(limits[worst])} on {worst}" if worst in limits else size(used[worst])
    gpu = max(one["gpu_memory"] for one in seen.values())
    said += f", {size(gpu)} of a GPU" if gpu else ""
    return [good("dry steps", took), bad("memory", "; ".join(problems), fix) if problems else good("memory", said)]
