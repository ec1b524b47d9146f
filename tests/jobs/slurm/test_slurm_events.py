"""What can happen to a job on a real Slurm: it goes on, and its weights are those of a run that nothing happened to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import (
    FLAGS,
    PAIR,
    DevCluster,
    finished,
    restarts,
    same_weights,
    step_of,
    submit,
    wait_for,
)

from jobs.slurm.control import all_jobs, job_facts, slurm
from tests.conftest import bloodcell
from tests.jobs.conftest import SMALL_NET

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

Told = Callable[[str, Path, Callable[[], object]], None]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """Do something to a run; print how long it took until the run trained again, at another start."""

    def do(name: str, run: Path, event: Callable[[], object]) -> None:
        first, begin = start_of(run), time.monotonic()
        event()
        wait_for(lambda: start_of(run) > first and step_of(run) >= 0, "training again")
        with capsys.disabled():
            print(f"\n{name}: training again after {time.monotonic() - begin:.1f} s", flush=True)

    return do


def start_of(run: Path) -> int:
    """Return which start of the run trains or trained last."""
    try:
        return int(json.loads((run / "heartbeat.json").read_text())["attempt"])
    except (OSError, ValueError, KeyError):
        return 0


def trains(run: Path, step: int) -> None:
    """Wait until a run has come so far: from the fifth step on there is a checkpoint."""
    wait_for(lambda: step_of(run) >= step, f"step {step}")


def decisions(run: Path) -> list[tuple[int, bool]]:
    """Return how each start ended, and whether the job was queued again: what its script decided."""
    lines = (run / "slurm" / "requeues.jsonl").read_text().splitlines()
    return [(one["code"], one["again"]) for one in map(json.loads, lines)]


def rank_of(run: Path, rank: int) -> int:
    """Return the process of one rank of a run."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        mine = f"{run}/slurm".encode() in words and b"submitit.core._submit" in words and b"srun" not in words[0]
        if mine and f"SLURM_PROCID={rank}".encode() in variables:
            return int(entry.name)
    raise AssertionError(f"no rank {rank} of {run} runs")


def test_a_signal_makes_all_ranks_save_and_the_job_go_on(
    pair: Path, small_set: Path, tmp_path: Path, told: Told
) -> None:
    run = tmp_path / "run"
    sent = submit("cnn5", "--data", small_set, "--run", run, *PAIR)
    trains(run, 5)
    told("USR2", run, lambda: subprocess.run(["scancel", "--signal=USR2", sent["jobs"][0]], check=True))
    finished(sent)
    assert restarts(sent) >= 1
    assert decisions(run)[0] == (85, True)
    first = json.loads((run / "slurm" / "requeues.jsonl").read_text().splitlines()[0])
    assert first["step"] >= 5, "nothing that was trained is lost"
    assert same_weights(pair, run)
    assert "stopped by a signal after saving" in bloodcell("status", run).out


@pytest.mark.slow
def test_a_signal_on_four_ranks(undisturbed: Path, small_set: Path, tmp_path: Path, told: Told) -> None:
    run = tmp_path / "run"
    sent = submit("cnn5", "--data", small_set, "--run", run, *FLAGS)
    trains(run, 5)
    told("USR2 on four ranks", run, lambda: bloodcell("requeue", run))
    finished(sent)
    assert restarts(sent) >= 1
    assert same_weights(undisturbed, run)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["scontrol", "bloodcell"])
def test_somebody_requeues_it(way: str, pair: Path, small_set: Path, tmp_path: Path, told: Told) -> None:
    run = tmp_path / "run"
    sent = submit("cnn5", "--data", small_set, "--run", run, *PAIR)
    trains(run, 9)
    if way == "scontrol":
        told("scontrol requeue", run, lambda: slurm("scontrol", "requeue", sent["jobs"][0]))
    else:
        told("bloodcell requeue --now", run, lambda: bloodcell("requeue", run, "--now"))
    finished(sent)
    assert restarts(sent) >= 1
    assert same_weights(pair, run)


def test_a_job_of_more_importance(pair: Path, small_set: Path, tmp_path: Path, told: Told) -> None:
    run = tmp_path / "run"
    sent = submit("cnn5", "--data", small_set, "--run", run, "--partition", "low", *PAIR)
    trains(run, 5)
    asked = ["--partition=high", "--nodes=2", "--gpus-per-node=2", "--mem=1G", "--output=/dev/null"]
    told("preemption", run, lambda: slurm("sbatch", *asked, "--wrap", "sleep 2"))
    finished(sent)
    assert restarts(sent) >= 1
    assert same_weights(pair, run)


@pytest.mark.slow
def test_the_time_limit(pair: Path, small_set: Path, tmp_path: Path, told: Told) -> None:
    """Two minutes; Slurm signals 30 to 60 seconds after the start. The ranks are held up until then."""
    run = tmp_path / "run"
    sent = submit("cnn5", "--data", small_set, "--run", run, *PAIR, "--time", "2", "--signal-lead", 60)
    trains(run, 5)

    def wait_for_the_signal() -> None:
        ranks = [rank_of(run, rank) for rank in (0, 1)]
        for rank in ranks:
            os.kill(rank, signal.SIGSTOP)
        wait_for(lambda: not any(map(is_held_up, ranks)), "the signal, and what Slurm sends to those that sleep")

    told("time limit, with the wait for its signal", run, wait_for_the_signal)
    finished(sent)
    assert restarts(sent) >= 1
    assert decisions(run)[0] == (85, True)
    assert same_weights(pair, run)


def is_held_up(process: int) -> bool:
    """Whether a process is stopped; one that Slurm has signalled meanwhile is let go on."""
    try:
        told = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    except (FileNotFoundError, ProcessLookupError):
        return False
    if "T" not in told["State"].split()[0]:
        return False
    if int(told["ShdPnd"], 16) & 1 << (signal.SIGUSR2 - 1):
        os.kill(process, signal.SIGCONT)
    return True


def test_a_rank_that_is_killed(pair: Path, small_set: Path, tmp_path: Path, told: Told) -> None:
    run = tmp_path / "run"
    sent = submit("cnn5", "--data", small_set, "--run", run, *PAIR)
    trains(run, 9)
    told("SIGKILL of a rank", run, lambda: os.kill(rank_of(run, 1), signal.SIGKILL))
    finished(sent)
    assert restarts(sent) >= 1
    assert same_weights(pair, run)


LEAVING_NET = """
import os
from pathlib import Path
from quiet_net import build as quiet

def build(classes, dropout=0.2):
    net, marker, calls = quiet(classes, dropout), Path(os.environ["LEAVES_ONCE"]), iter(range(10**9))

    def leave(*_):
        if os.environ.get("SLURM_PROCID") == "1" and next(calls) == 20 and not marker.exists():
            marker.touch()
            os._exit(1)

    net.register_forward_pre_hook(leave)
    return net
"""


@pytest.fixture
def leaving_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small network; in the middle of its first training its second rank ends with code 1, without a word."""
    (tmp_path / "quiet_net.py").write_text(SMALL_NET)
    (tmp_path / "leaving_net.py").write_text(LEAVING_NET)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("LEAVES_ONCE", str(tmp_path / "left"))
    return tmp_path / "left"


@pytest.mark.slow
def test_a_rank_that_leaves_with_code_1(
    dev_cluster: DevCluster, leaving_net: Path, small_set: Path, tmp_path: Path, told: Told
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    flags = ("cnn5", "--data", small_set, *PAIR, "--model.name", "leaving_net:build")
    sent = submit(*flags, "--run", run)
    told("exit 1 of a rank, from its submission", run, lambda: wait_for(leaving_net.exists, "the exit"))
    finished(sent)
    assert restarts(sent) >= 1
    finished(submit(*flags, "--run", whole))
    assert same_weights(whole, run)


@pytest.mark.slow
def test_a_rank_that_hangs(pair: Path, small_set: Path, tmp_path: Path, told: Told) -> None:
    """Its peer waits in a collective: the watchdog ends it."""
    run = tmp_path / "run"
    sent = submit("cnn5", "--data", small_set, "--run", run, *PAIR, "--engine.stall", 10)
    trains(run, 9)
    told("a rank hangs (stall 10 s)", run, lambda: os.kill(rank_of(run, 1), signal.SIGSTOP))
    finished(sent)
    assert decisions(run)[0] == (3, True)
    assert same_weights(pair, run)


@pytest.mark.slow
def test_a_dead_node(pair: Path, small_set: Path, tmp_path: Path, dev_cluster: DevCluster, told: Told) -> None:
    run = tmp_path / "run"
    sent = submit("cnn5", "--data", small_set, "--run", run, *PAIR)
    trains(run, 9)

    def fail() -> None:
        dev_cluster("kill-node", "n2")
        wait_for(lambda: "down" in slurm("sinfo", "-h", "-n", "n2", "-o", "%T"), "Slurm to notice")
        dev_cluster("start-node", "n2")

    told("a dead node", run, fail)
    finished(sent)
    assert restarts(sent) >= 1
    assert same_weights(pair, run)


@pytest.mark.slow
@pytest.mark.parametrize("node", ["n1", "n2"])
def test_a_node_that_is_back_before_slurm_notices(
    node: str, pair: Path, small_set: Path, tmp_path: Path, dev_cluster: DevCluster, told: Told
) -> None:
    """Of n2 only some ranks are gone; with n1 the job's script is gone too."""
    run = tmp_path / "run"
    sent = submit("cnn5", "--data", small_set, "--run", run, *PAIR)
    trains(run, 9)

    def blink() -> None:
        dev_cluster("kill-node", node)
        dev_cluster("start-node", node)

    told(f"{node} dies and is back at once", run, blink)
    finished(sent)
    assert restarts(sent) >= 1
    assert same_weights(pair, run)


@pytest.mark.slow
def test_what_is_cancelled_stays_cancelled(small_set: Path, tmp_path: Path, dev_cluster: DevCluster) -> None:
    run = tmp_path / "run"
    sent = submit("cnn5", "--data", small_set, "--run", run, *PAIR)
    trains(run, 5)
    assert bloodcell("cancel", run).code == 0
    job = sent["jobs"][0]
    wait_for(lambda: all_jobs()[job]["JobState"] == "CANCELLED", "the end")
    assert restarts(sent) == 0
    assert bloodcell("status", run, "--json").json["runs"][0]["state"].startswith("cancelled")
    assert job_facts(job)["JobState"] == "CANCELLED"
