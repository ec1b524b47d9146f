"""Who a process is under every launcher, which GPU is its own, and where the ranks meet: tables of environments."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bloodcell.ranks import Ranks, device_index, discover, expand_counts, first_host, rendezvous
from shards.errors import BadInput

BATCH_BODY = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_TASKS_PER_NODE": "2(x2)"}
TASK = {
    **BATCH_BODY,
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "n[07-08]",
}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks(0, 1, 0, 1, "single")),
        (TORCHRUN, Ranks(5, 8, 1, 4, "torchrun")),
        ({**TASK, **TORCHRUN}, Ranks(5, 8, 1, 4, "torchrun")),  # srun torchrun: Slurm counts agents
        (TASK, Ranks(3, 4, 1, 2, "slurm")),
        # Two tasks in an allocation of eight: the step counts.
        (
            {**TASK, "SLURM_NTASKS": "8", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "0"},
            Ranks(1, 2, 1, 2, "slurm"),
        ),
        ({**TASK, "SLURM_STEP_TASKS_PER_NODE": "1,3"}, Ranks(3, 4, 1, 3, "slurm")),
        # Without the step's own variables the job's are all there is.
        ({**BATCH_BODY, "SLURM_STEP_ID": "0", "SLURM_LOCALID": "0"}, Ranks(0, 4, 0, 2, "slurm")),
        (BATCH_BODY, Ranks(0, 1, 0, 1, "single")),
        ({**BATCH_BODY, "SLURM_STEP_ID": "4294967290"}, Ranks(0, 1, 0, 1, "single")),  # salloc's interactive step
        ({**BATCH_BODY, "SLURM_STEP_ID": "4294967291"}, Ranks(0, 1, 0, 1, "single")),  # the batch step
        # srun --pty bash in an allocation of four tasks is a step of one.
        (
            {**BATCH_BODY, "SLURM_STEP_ID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1"},
            Ranks(0, 1, 0, 2, "slurm"),
        ),
    ],
)
def test_who_am_i(environment: dict[str, str], expected: Ranks) -> None:
    assert discover(environment) == expected


@pytest.mark.parametrize(
    "environment", [{**TORCHRUN, "RANK": "8"}, {**TORCHRUN, "RANK": "x"}, {**TASK, "SLURM_STEP_TASKS_PER_NODE": "two"}]
)
def test_variables_that_contradict_each_other(environment: dict[str, str]) -> None:
    with pytest.raises(BadInput):
        discover(environment)


def slurm(local_rank: int, local_world: int) -> Ranks:
    return Ranks(local_rank, local_world, local_rank, local_world, "slurm")


@pytest.mark.parametrize(
    ("ranks", "visible", "environment", "expected"),
    [
        (Ranks(0, 1, 0, 1, "single"), 8, {}, 0),
        (Ranks(3, 8, 3, 4, "torchrun"), 4, {}, 3),
        (Ranks(1, 2, 1, 2, "torchrun"), 3, {}, 1),  # a subset in CUDA_VISIBLE_DEVICES
        (Ranks(1, 2, 1, 2, "torchrun"), 1, {}, None),
        (Ranks(0, 4, 0, 4, "torchrun"), 2, {}, None),  # rank 0 too, or the others would wait for nobody
        (slurm(1, 2), 2, {"SLURM_GPUS_ON_NODE": "2"}, 1),  # --gpus-per-node=2
        (slurm(1, 2), 2, {"SLURM_GPUS_ON_NODE": "4"}, 1),  # ... and a subset
        (slurm(1, 2), 1, {"SLURM_GPUS_ON_NODE": "2", "SLURM_GPUS_PER_TASK": "1"}, 0),
        (slurm(3, 4), 2, {"SLURM_GPUS_ON_NODE": "8", "SLURM_GPUS_PER_TASK": "2"}, 0),
        (slurm(1, 2), 1, {"SLURM_GPUS_ON_NODE": "2", "SLURM_TRES_PER_TASK": "gres/gpu:1"}, 0),
        (slurm(1, 2), 1, {"SLURM_GPUS_ON_NODE": "2"}, 0),  # --gpu-bind=single:1
        (slurm(1, 2), 1, {"SLURM_GPUS_ON_NODE": "2", "SLURM_NTASKS_PER_GPU": "1"}, 0),
        (slurm(1, 2), 1, {"SLURM_GPUS_ON_NODE": "1", "SLURM_NTASKS_PER_GPU": "2"}, None),
        (slurm(1, 2), 1, {"SLURM_GPUS_ON_NODE": "1"}, None),
        (slurm(0, 1), 0, {}, None),
    ],
)
def test_which_gpu_is_mine(ranks: Ranks, visible: int, environment: dict[str, str], expected: int | None) -> None:
    if expected is None:
        with pytest.raises(BadInput):
            device_index(ranks, visible, environment)
    else:
        assert device_index(ranks, visible, environment) == expected


def test_lists_of_slurm() -> None:
    assert [first_host(nodes) for nodes in ("n1", "n1,n2", "gpu[07-09,12],big1", "r[1-2]n[01-04]", "a[3,5]")] == [
        *("n1", "n1", "gpu07", "r1n01", "a3")
    ]
    assert expand_counts("2(x3),1") == [2, 2, 2, 1]


def test_where_the_tasks_meet() -> None:
    host, port = rendezvous(TASK)
    assert host == "n07"
    assert 1024 < port < 32768
    others = [
        {**TASK, "SLURM_JOB_ID": "8"},
        {**TASK, "SLURM_RESTART_COUNT": "1"},
        {**TASK, "SLURM_STEP_ID": "1"},
    ]
    assert len({port, *(rendezvous(other)[1] for other in others)}) == 4
    assert rendezvous({**TASK, "SLURM_STEP_TASKS_PER_NODE": "4"})[0] == "127.0.0.1"
    assert rendezvous({**TASK, "MASTER_ADDR": "login", "MASTER_PORT": "29500"}) == ("login", 29500)
    with pytest.raises(BadInput):
        rendezvous({**TASK, "MASTER_PORT": "any"})


MEET = (
    "import torch; from bloodcell.ranks import discover, process_group; from shards.errors import Stop\n"
    "try:\n with process_group(discover(), torch.device('cpu'), 60): print(torch.distributed.get_rank())\n"
    "except Stop as problem: print(problem.code, problem)\n"
)


def meet(*tasks: dict[str, str]) -> list[str]:
    root = str(Path(__file__).resolve().parents[2])
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "MASTER"))}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MEET], stdout=subprocess.PIPE, text=True, env={**clean, **task, "PYTHONPATH": root}
        )
        for task in tasks
    ]
    return [process.communicate(timeout=150)[0].strip() for process in started]


def step(task: int) -> dict[str, str]:
    """Return what srun gives a task of two on one node; the job id is this process's, for a port of its own."""
    there = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "nowhere[1-2]"}
    me = {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task), "SLURM_NODEID": "0", "SLURM_STEP_ID": "0"}
    return {**there, **me, "SLURM_JOB_ID": str(os.getpid())}


def test_tasks_of_a_step_meet_with_nothing_exported() -> None:
    assert meet(step(0), step(1)) == ["0", "1"]


def test_a_taken_port_and_an_unknown_host_are_one_line() -> None:
    with socket.create_server(("", 0)) as server:
        taken = {**step(0), "MASTER_PORT": str(server.getsockname()[1])}
        lost = {**step(1), "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_NODEID": "1", "SLURM_LOCALID": "0"}
        first, second = meet(taken, lost)
    assert first.startswith("3 the port where the ranks meet is taken")
    assert second.startswith("3 the 2 ranks could not meet: the host name 'nowhere1' is not known here")
