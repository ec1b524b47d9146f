"""Who am I among the processes of this run: torchrun's variables, then Slurm's, then a process on its own."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from shards.errors import BadInput, EnvironmentFault
from shards.parallel import available_cores

FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""Slurm's ids of steps that are none: interactive shell, batch script, extern."""

FIRST_PORT, PORTS = 12000, 20000
OWN_GPUS = ("SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU")
"""Slurm sets them when each task sees GPUs of its own."""


@dataclass(frozen=True)
class Ranks:
    """This process's place: `rank` of `world`, `local_rank` of `local_world` on this node, and who started it."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    launcher: str

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0


def discover(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Read the launcher's variables: torchrun before Slurm (under `srun torchrun` Slurm counts agents, not ranks).

    Of Slurm's, those of the step go before those of the job: `srun -n 2` in an allocation of eight starts two ranks. A
    batch script's own body and an interactive shell are no tasks of a step, although they have SLURM_PROCID=0.

    Raises:
        BadInput: variables that contradict each other.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        launcher, read = "torchrun", _from_torchrun
    elif "SLURM_PROCID" in environment and in_step(environment):
        launcher, read = "slurm", _from_slurm
    else:
        return Ranks(0, 1, 0, 1, "single")
    try:
        rank, world, local_rank, local_world = read(environment)
    except (KeyError, ValueError) as error:
        raise BadInput(
            f"the launcher's variables make no sense: {error}", launcher, "start with torchrun or srun"
        ) from error
    if not (0 <= rank < world and 0 <= local_rank < local_world):
        place = f"rank {rank} of {world}, on its node {local_rank} of {local_world}"
        raise BadInput(place, launcher, "start with torchrun or srun")
    return Ranks(rank, world, local_rank, local_world, launcher)


def in_step(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process as a task (batch and interactive shells have step ids beyond all others)."""
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", ""))
    return step.isdecimal() and int(step) < FIRST_SPECIAL_STEP


def _from_torchrun(environment: Mapping[str, str]) -> tuple[int, int, int, int]:
    rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    return rank, world, int(environment.get("LOCAL_RANK", rank)), int(environment.get("LOCAL_WORLD_SIZE", world))


def _from_slurm(environment: Mapping[str, str]) -> tuple[int, int, int, int]:
    rank = int(environment["SLURM_PROCID"])
    world = int(_of_step(environment, "STEP_NUM_TASKS", "NTASKS"))
    per_node = expand_counts(_of_step(environment, "STEP_TASKS_PER_NODE", "TASKS_PER_NODE", str(world)))
    node, local_rank = int(environment.get("SLURM_NODEID", 0)), int(environment.get("SLURM_LOCALID", rank))
    return rank, world, local_rank, per_node[node] if node < len(per_node) else max(per_node)


def _of_step(environment: Mapping[str, str], step: str, job: str, default: str | None = None) -> str:
    """Return the step's variable, else the job's, else the default; raises KeyError."""
    for name in (f"SLURM_{step}", f"SLURM_{job}"):
        if environment.get(name):
            return environment[name]
    if default is None:
        raise KeyError(f"SLURM_{step}")
    return default


def expand_counts(text: str) -> list[int]:
    """Return Slurm's tasks per node, "2(x3),1", as a list: [2, 2, 2, 1]. Raises ValueError."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts


def first_host(nodes: str) -> str:
    """Return the first name in Slurm's list of nodes: "gpu[07-09,12],big1" gives "gpu07". Asks nobody."""
    name = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[([^\]]*)\]", lambda found: re.split("[-,]", found[1])[0], name)


def rendezvous(environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Return where the tasks of a Slurm step meet: MASTER_ADDR and MASTER_PORT if somebody set them, else ours.

    The host is the step's first node; the port differs between jobs, between steps of a job, and after a requeue, when
    the old one may still be closing. It lies below the ports that the kernel hands out to connections (from 32768).

    Raises:
        BadInput: no node list, or a port that is no number.
    """
    try:
        alone = len(expand_counts(_of_step(environment, "STEP_TASKS_PER_NODE", "TASKS_PER_NODE", "1"))) == 1
        # On one node its own name need not resolve.
        host = "127.0.0.1" if alone else first_host(_of_step(environment, "STEP_NODELIST", "JOB_NODELIST"))
        names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")
        job, restarts, step = (int(environment.get(name) or 0) for name in names)
        port = FIRST_PORT + (17 * job + 5 * restarts + step) % PORTS
        return environment.get("MASTER_ADDR") or host, int(environment.get("MASTER_PORT") or port)
    except (KeyError, ValueError) as error:
        raise BadInput(f"Slurm's variables make no sense: {error}", "slurm", "start with srun") from error


def choose_device(ranks: Ranks, wanted: str) -> torch.device:
    """Return this rank's device: the CPU or one of the GPUs that it sees (CUDA_VISIBLE_DEVICES counts them from 0).

    Raises:
        BadInput: CUDA is asked for and there is none, or there are fewer GPUs than ranks on this node.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", device_index(ranks, torch.cuda.device_count()))


def device_index(ranks: Ranks, visible: int, environment: Mapping[str, str] = os.environ) -> int:
    """Return which of the `visible` GPUs is this rank's.

    All ranks of a node see the same ones under torchrun and `--gpus-per-node`: each takes that of its local rank. With
    `--gpus-per-task` or `--ntasks-per-gpu` Slurm shows each task its own: it takes the first.

    Raises:
        BadInput: none is visible, or fewer than ranks on this node.
    """
    if visible == 0:
        raise BadInput("no CUDA device is visible", "engine.device", "use --engine.device cpu or a machine with a GPU")
    if ranks.local_world == 1 or (ranks.launcher == "slurm" and _own_gpus(visible, environment)):
        return 0
    if ranks.local_rank >= visible or visible < ranks.local_world:
        raise BadInput(
            f"{ranks.local_world} ranks but {visible} GPU{'s' * (visible > 1)} on this node",
            "engine.device",
            "start one rank a GPU",
        )
    return ranks.local_rank


def _own_gpus(visible: int, environment: Mapping[str, str]) -> bool:
    """Whether Slurm shows each task of this node GPUs of its own."""
    if environment.get("SLURM_NTASKS_PER_GPU", "1") != "1":
        return False  # one GPU for several tasks, which NCCL refuses
    asked = any(environment.get(name) for name in OWN_GPUS) or "gpu" in environment.get("SLURM_TRES_PER_TASK", "")
    return asked or (visible == 1 and environment.get("SLURM_GPUS_ON_NODE", "") != "1")


def cores_per_rank(ranks: Ranks) -> int:
    """Return the cores this process may use, shared fairly where the launcher lets ranks share them."""
    mine = available_cores()
    # A launcher that binds ranks to cores shows fewer than the node has; then they are ours alone.
    shared = mine >= (os.cpu_count() or 1)
    return max(1, mine // ranks.local_world) if shared else mine


@contextlib.contextmanager
def process_group(ranks: Ranks, device: torch.device, timeout: float) -> Iterator[None]:
    """Join the other ranks for the length of the block (gloo, and NCCL where there are GPUs).

    Inside another such block nothing happens: under torchrun ranks that have parted cannot meet again.

    Raises:
        EnvironmentFault: the others do not come within `timeout` seconds.
    """
    if dist.is_initialized():
        yield
        return
    # One process needs no port: a store in memory cannot collide with anything.
    store = HashStore() if ranks.world == 1 else None
    if store is None and ranks.launcher == "slurm":
        host, port = rendezvous()
        os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        if store is None:
            _resolve(os.environ.get("MASTER_ADDR", ""))
        dist.init_process_group(
            backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=timedelta(seconds=timeout)
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise _no_meeting(ranks, str(error)) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def _resolve(host: str) -> None:
    """Fail at once where the name means nothing: the store would try again for minutes."""
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror as error:
        raise OSError(f"the host name {host!r} is not known here ({error.strerror})") from error


def _no_meeting(ranks: Ranks, error: str) -> EnvironmentFault:
    place = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
    if "EADDRINUSE" in error or "address already in use" in error.lower():
        fix = "start again, or set MASTER_PORT to a free one for all ranks"
        return EnvironmentFault("the port where the ranks meet is taken by another program", place, fix)
    what = f"the {ranks.world} ranks could not meet: {error.splitlines()[0][:160]}"
    return EnvironmentFault(what, f"{ranks.launcher}, {place}", "is every rank started, is the host known?")


def set_threads(torch_threads: int) -> None:
    """Fix torch's thread count: the result of a sum depends on it, so every launcher gets the same."""
    torch.set_num_threads(torch_threads)
    os.environ["OMP_NUM_THREADS"] = str(torch_threads)
