"""What would fail in the queue or on the nodes, found before: partition, sizes, folders that only this host sees."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from jobs.slurm.cluster import Cluster
from jobs.slurm.control import slurm
from jobs.slurm.description import JobDescription
from shards.errors import BadInput, nearest

LOCAL = ("/tmp", "/var/tmp", "/dev/shm", "/run")
"""Folders that each machine has for itself."""


@dataclass(frozen=True)
class Partition:
    """What the largest node of a partition has, how many nodes there are, and the longest job in minutes (0: any)."""

    name: str
    nodes: int
    gpus: int
    cpus: int
    memory_mb: int
    minutes: int


def check_queue(job: JobDescription) -> None:
    """Compare a job with what the cluster has.

    Raises:
        BadInput: no Slurm here, no such partition, or more of something than a node or the partition has.
    """
    known = [line.strip() for line in slurm("sinfo", "-h", "-o", "%R").splitlines() if line.strip()]
    name = job.partition or default_partition()
    if job.partition and job.partition not in known:
        fix = nearest(job.partition, known) or f"there are {', '.join(known)}"
        raise BadInput(f"no partition {job.partition!r}", "--partition", fix)
    if not name:
        return
    has = describe(name)
    cpus = job.tasks_per_node * job.cpus_per_task
    wanted = (
        ("GPUs", job.gpus_per_node, has.gpus, "--gpus-per-node"),
        ("CPUs", cpus, has.cpus, "--cpus-per-task"),
        ("MB", round(job.memory_gb * 1024), has.memory_mb, "--memory"),
    )
    for what, asked, there, flag in wanted:
        if asked > there:
            raise BadInput(
                f"{asked} {what} on each node, but a node of {name!r} has {there}", flag, f"ask for at most {there}"
            )
    if job.nodes > has.nodes:
        raise BadInput(f"{job.nodes} nodes, but {name!r} has {has.nodes}", "--nodes", f"ask for at most {has.nodes}")
    if has.minutes and job.minutes > has.minutes:
        raise BadInput(
            f"{job.minutes} minutes, but {name!r} allows {has.minutes}",
            "--time",
            "ask for less: the job queues itself again",
        )
    if job.signal_lead >= job.minutes * 60:
        raise BadInput(
            f"the signal comes {job.signal_lead} s before the end of a job of {job.minutes * 60} s",
            "--signal-lead",
            "ask for a longer time or a shorter lead",
        )


def default_partition() -> str:
    """Return the name of the default partition, or an empty string."""
    names = [line.strip() for line in slurm("sinfo", "-h", "-o", "%P").splitlines()]
    return next((name.removesuffix("*") for name in names if name.endswith("*")), "")


def describe(name: str) -> Partition:
    """Return what a partition has."""
    from jobs.slurm.cluster import minutes

    gpus = cpus = memory = nodes = longest = 0
    for line in slurm("sinfo", "-h", "-p", name, "-N", "-o", "%c|%m|%l|%G").splitlines():
        count, size, limit, devices = (part.strip() for part in line.split("|", 3))
        nodes += 1
        cpus = max(cpus, int(count.rstrip("+") or 0))
        memory = max(memory, int(size.rstrip("+") or 0))
        found = re.findall(r"\bgpu:(?:[^,:(]+:)?(\d+)", devices)
        gpus = max(gpus, sum(map(int, found)))
        longest = minutes(limit, "sinfo") if limit[:1].isdigit() else 0
    return Partition(name, nodes, gpus, cpus, memory, longest)


def check_shared(path: Path, what: str, cluster: Cluster) -> None:
    """Refuse a folder that the nodes do not see.

    Raises:
        BadInput: it lies outside of what the cluster file calls shared or, where that says nothing, in a folder or a
            file system that every machine has for itself.
    """
    full = path.resolve()
    if cluster.shared:
        if not any(full.is_relative_to(os.path.expandvars(folder)) for folder in cluster.shared):
            raise BadInput(
                f"only this host sees {what}",
                full,
                f"choose one below {', '.join(cluster.shared)} (cluster file: shared)",
            )
        return
    if any(full.is_relative_to(folder) for folder in LOCAL) or kind_of(full) in ("tmpfs", "ramfs"):
        raise BadInput(
            f"only this host sees {what}", full, "choose a folder that all nodes share, or name it in shared = [...]"
        )


def kind_of(path: Path) -> str:
    """Return the type of the file system that a path, which need not exist yet, will lie on."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    shown = subprocess.run(["stat", "-f", "-c", "%T", str(there)], capture_output=True, text=True, check=False)
    return shown.stdout.strip()
