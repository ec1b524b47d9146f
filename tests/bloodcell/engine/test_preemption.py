"""Signals at real trainings: to torchrun, to one rank, to a process alone, at every moment; then the run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bloodcell.engine.preemption import lead
from tests.bloodcell.engine.held import assert_same, held, measured, status, train


def assert_stopped(run: Path, code: int, err: str, step: int) -> None:
    assert code == 85, err
    assert (status(run)["state"], status(run)["outcome"]["code"]) == ("stopped", 85)
    assert status(run)["outcome"]["kind"] == "preempted"
    assert (run / "checkpoints" / "last").resolve().name == f"{step:08d}"


def test_usr2_to_torchrun_saves_the_step_and_the_run_goes_on(
    calm: Path, held_net: Path, small_set: Path, tmp_path: Path
) -> None:
    """Held in step 7, which no checkpoint would follow."""
    run = tmp_path / "run"
    with held(held_net, small_set, run, "train-14-0", fresh=True, BLOODCELL_SIGNAL_LEAD="0") as training:
        training.wait_for("train-14-0")
        training.process.send_signal(signal.SIGUSR2)
        training.release()
        code, err = training.end()
    assert_stopped(run, code, err, 7)
    assert "SIGUSR2" in status(run)["outcome"]["what"]
    assert "between its signal and the end" in " ".join(err.split())
    code, err = train(held_net, small_set, run)
    assert code == 0, err
    assert_same(run, calm)
    assert status(run)["attempt"] == 2


def test_a_signal_to_one_rank_during_validation_stops_all(
    calm: Path, held_net: Path, small_set: Path, tmp_path: Path
) -> None:
    """The step is saved without its validation, which is done once afterwards, first thing."""
    run = tmp_path / "run"
    with held(held_net, small_set, run, "eval-2-1") as training:
        os.kill(training.wait_for("eval-2-1"), signal.SIGUSR2)
        training.release()
        code, err = training.end()
    assert_stopped(run, code, err, 5)
    assert not any("val/accuracy" in record for record in measured(run))
    code, err = train(held_net, small_set, run)
    assert code == 0, err
    assert_same(run, calm)


def test_term_to_a_process_alone(held_net: Path, small_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with held(held_net, small_set, run, "train-6-0", ranks=0) as training:
        training.wait_for("train-6-0")
        training.process.terminate()
        training.release()
        code, err = training.end()
    assert_stopped(run, code, err, 2)
    assert "start the same command again" in err


@pytest.mark.slow
def test_a_signal_during_the_last_validation(calm: Path, held_net: Path, small_set: Path, tmp_path: Path) -> None:
    """Each rank runs three batches in each validation: this is in the middle of the second one."""
    run = tmp_path / "run"
    with held(held_net, small_set, run, "eval-5-0") as training:
        training.wait_for("eval-5-0")
        training.process.terminate()
        training.release()
        code, err = training.end()
    assert_stopped(run, code, err, 10)
    code, err = train(held_net, small_set, run)
    assert code == 0, err
    assert_same(run, calm)


@pytest.mark.slow
def test_a_signal_during_the_final_evaluation(held_net: Path, small_set: Path, tmp_path: Path) -> None:
    """Nothing is left to train: the second start only evaluates. One validation has three batches, val and test six."""
    run = tmp_path / "run"
    once = ("--train.evaluate_every", 2)
    with held(held_net, small_set, run, "eval-5-1", flags=once) as training:
        os.kill(training.wait_for("eval-5-1"), signal.SIGTERM)
        training.release()
        code, err = training.end()
    assert_stopped(run, code, err, 10)
    weights = (run / "model.safetensors").read_bytes()
    assert "test" not in json.loads((run / "evaluation.json").read_text())["splits"]
    code, err = train(held_net, small_set, run, *once)
    assert code == 0, err
    assert "test" in json.loads((run / "evaluation.json").read_text())["splits"]
    assert (run / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_a_signal_during_start_up_ends_it_at_once(held_net: Path, small_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with held(held_net, small_set, run, "train-1-0") as training:
        training.wait_for("train-1-0")  # the pass that warms up, before the first step
        training.process.send_signal(signal.SIGUSR2)
        code, err = training.end()
    assert code == 85, err  # the gate is still shut
    assert not (run / "checkpoints" / "last").exists()
    assert (status(run)["state"], status(run)["outcome"]["kind"]) == ("stopped", "preempted")


@pytest.mark.slow
def test_two_interrupts_end_it_without_saving(held_net: Path, small_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with held(held_net, small_set, run, "train-8-0", ranks=0) as training:
        pid = training.wait_for("train-8-0")
        os.kill(pid, signal.SIGINT)
        with pytest.raises(Exception, match="timed out"):
            training.end(2)
        os.kill(pid, signal.SIGINT)
        assert training.end(20)[0] == 130


def test_the_lead_is_read_from_the_launcher() -> None:
    assert lead({"BLOODCELL_SIGNAL_LEAD": "120"}) == 120
    assert lead({"SBATCH_SIGNAL": "B:USR2@90"}) == 90
    assert lead({"SBATCH_SIGNAL": "USR2"}) is None
    assert lead({}) is None


CHILD = """
import os, signal, time
from bloodcell.engine import preemption
with preemption.Listener():
    preemption.started()
    child = os.fork()
    if not child:
        time.sleep(0.5)
        os._exit(7)
    time.sleep(0.1)
    os.kill(child, signal.SIGUSR2)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), preemption.asked())
    os.kill(os.getpid(), signal.SIGUSR2)
    print(preemption.asked())
"""


def test_a_forked_child_does_not_listen() -> None:
    """Slurm signals all processes of a step: a child neither dies of USR2 nor passes it on to its parent."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["7", "False", "True"]


BLOCKED = """
import os, signal, threading, time
from datetime import timedelta
from torch._C._distributed_c10d import TCPStore
from bloodcell.engine import preemption

over, seen = threading.Event(), []

def look():
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGUSR2)
    while not preemption.asked():
        time.sleep(0.01)
    seen.append(over.is_set())

with preemption.Listener():
    preemption.started()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    thread = threading.Thread(target=look)
    thread.start()
    try:
        store.wait(["never"], timedelta(seconds=5))
    except RuntimeError:
        over.set()
    thread.join()
    print(*seen)
"""


def test_a_signal_is_seen_while_the_main_thread_waits_for_a_peer() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
