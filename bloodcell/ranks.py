"""Who am I among the processes of this run: torchrun's variables, then Slurm's, then a process on its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from shards.errors import BadInput, EnvironmentFault
from shards.parallel import available_cores


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

    Raises:
        BadInput: variables that contradict each other.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names, launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"), "torchrun"
    elif "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment:
        names, launcher = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"), "slurm"
    else:
        return Ranks(0, 1, 0, 1, "single")
    try:
        rank, world = int(environment[names[0]]), int(environment[names[1]])
        local_rank = int(environment.get(names[2], rank))
        local_world = int(environment.get(names[3], str(world)).split("(")[0])
    except (KeyError, ValueError) as error:
        raise BadInput(
            f"the launcher's variables make no sense: {error}", launcher, "start with torchrun or srun"
        ) from error
    if not 0 <= rank < world:
        raise BadInput(f"rank {rank} of {world}", launcher, "start with torchrun or srun")
    return Ranks(rank, world, local_rank, local_world, launcher)


def choose_device(ranks: Ranks, wanted: str) -> torch.device:
    """Return this rank's device: the CPU, or cuda:LOCAL_RANK (cuda:0 where the launcher shows each rank one GPU only).

    Raises:
        BadInput: CUDA is asked for and there is none, or there are fewer GPUs than ranks on this node.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count == 0:
        raise BadInput("no CUDA device is visible", "engine.device", "use --engine.device cpu or a machine with a GPU")
    if count > 1 and ranks.local_rank >= count:
        raise BadInput(
            f"{ranks.local_world} ranks but {count} GPUs on this node", "engine.device", "start one rank a GPU"
        )
    return torch.device("cuda", ranks.local_rank if count > 1 else 0)


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
    store = HashStore() if ranks.launcher == "single" else None
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=timedelta(seconds=timeout)
        )
    except (RuntimeError, ValueError) as error:
        raise EnvironmentFault(
            f"the {ranks.world} ranks could not meet: {str(error).splitlines()[0]}",
            ranks.launcher,
            "is every rank started?",
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def set_threads(torch_threads: int) -> None:
    """Fix torch's thread count: the result of a sum depends on it, so every launcher gets the same."""
    torch.set_num_threads(torch_threads)
    os.environ["OMP_NUM_THREADS"] = str(torch_threads)
