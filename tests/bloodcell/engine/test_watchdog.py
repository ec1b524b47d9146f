"""Ranks that stop, die or die again and again: the others end themselves and say who it was."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from bloodcell.engine.attempts import Attempts, take_stock
from bloodcell.engine.peers import LEFT, Beat, any_silent
from tests.bloodcell.engine.held import FLAGS, assert_same, environment, held, status, train
from tests.conftest import command, start


@pytest.mark.parametrize(("gate", "step"), [("train-6-1", 2), ("train-2-1", 0)])
def test_a_rank_that_stands_still_is_named_by_the_other(
    gate: str, step: int, held_net: Path, small_set: Path, tmp_path: Path
) -> None:
    """Two ranks without a launcher that would clear up after them; rank 1 is suspended in its third or first step.

    The first may take ten minutes, but that the other is silent shows sooner.
    """
    run, hold = tmp_path / "run", tmp_path / "hold"
    hold.mkdir()
    (hold / gate).touch()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = []
    for rank in ("0", "1"):
        variables = environment(held_net, hold, RANK=rank, LOCAL_RANK=rank, **place)
        words = command("train", "cnn5", "--data", small_set, "--run", run, *FLAGS, "--engine.stall", 10 if step else 5)
        ranks.append(start(words, variables))
    try:
        while not (hold / f"{gate}.reached").exists():
            assert [rank.poll() for rank in ranks] == [None, None]
            time.sleep(0.02)
        time.sleep(2)  # a sign of life goes out every second
        ranks[1].send_signal(signal.SIGSTOP)
        _, err = ranks[0].communicate(timeout=240)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert ranks[0].returncode == 3, err
    said = status(run)["outcome"]
    assert said["code"] == 3
    assert f"rank 1 on {socket.gethostname()} is silent, last heard of in step {step} (training)" in said["what"]
    assert "rank 1 on" in err
    stacks = (run / "stacks" / "rank-0.txt").read_text()
    assert f"in step {step} (training)" in stacks
    assert "_engine_run_backward" in stacks
    assert "watchdog.py" in stacks


@pytest.mark.slow
def test_a_slow_first_step_is_waited_for(calm: Path, held_net: Path, small_set: Path, tmp_path: Path) -> None:
    """Rank 1 takes much longer than `stall` for it, and gives signs of life."""
    run = tmp_path / "run"
    with held(held_net, small_set, run, "train-2-1", flags=("--engine.stall", 4)) as training:
        training.wait_for("train-2-1")
        time.sleep(15)
        training.release()
        code, err = training.end()
    assert code == 0, err
    assert_same(run, calm)


def test_only_peers_that_said_nothing_more_are_silent() -> None:
    here, moved = Beat(4, "training", 1, 0.1, "a"), Beat(9, "training", 1, 5.1, "a")
    left = Beat(7, LEFT, 9, 0.0, "b")
    assert not any_silent([here, left], [moved, left], 0), "who has left in good order is not missed"
    assert not any_silent([here, left], [here, left], 0), "that this rank itself was not heard is no matter"
    assert any_silent([here, moved], [moved, moved], 0)
    assert any_silent([here, None], [moved, None], 0), "it never spoke"
    assert not any_silent([], [moved, moved], 0), "the store did not answer"


def test_a_killed_rank_ends_the_run_with_code_3(calm: Path, held_net: Path, small_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with held(held_net, small_set, run, "train-10-1") as training:
        os.kill(training.wait_for("train-10-1"), signal.SIGKILL)
        code, err = training.end()
    assert code == 3, err
    said = status(run)["outcome"]
    assert said["code"] == 3
    assert "another rank is gone: rank 1 " in said["what"]  # on which host, once it has given a sign of life
    code, err = train(held_net, small_set, run)
    assert code == 0, err
    assert_same(run, calm)


def test_a_crash_loop_ends_with_the_samples_of_its_step(held_net: Path, small_set: Path, tmp_path: Path) -> None:
    """A process alone, four micro-batches a step, killed from inside in step 2 (counted from 0) each time."""
    run = tmp_path / "run"
    flags = ("--engine.max_deaths", 2)
    for _ in range(2):
        with held(held_net, small_set, run, "die-train-11-0", ranks=0, flags=flags) as training:
            assert training.end()[0] == -signal.SIGKILL
    code, err = train(held_net, small_set, run, *flags, ranks=0)
    assert code == 70, err
    assert "2 attempts in a row died in step 2; its samples: " in " ".join(err.split())
    keys = (run / "suspects.txt").read_text().splitlines()
    assert len(keys) == 32
    assert keys[0] in status(run)["outcome"]["what"]
    code, err = train(held_net, small_set, run, *flags, ranks=0)
    assert code == 0, err  # asked for by hand once more


@pytest.mark.parametrize(
    ("code", "phase", "saved", "expected"),
    [
        (None, "training", 4, (1, 7, 3)),  # killed in that step again
        (3, "training", 4, (1, 7, 3)),
        (70, "training", 8, (0, -1, 0)),  # the step is behind us
        (3, "saving", 4, (1, 7, 2)),  # not the fault of its samples
        (85, "training", 4, (0, 7, 2)),  # a signal is no death
        (85, "training", 6, (0, 7, 2)),
        (0, "judging", 20, (0, -1, 0)),
    ],
)
def test_only_deaths_without_progress_count(
    code: int | None, phase: str, saved: int, expected: tuple[int, int, int]
) -> None:
    before = {"attempt": 5, "attempts": {"began": 4, "fruitless": 0, "died_at": 7, "deaths": 2}}
    if code is not None:
        before["outcome"] = {"code": code}
    stock = take_stock(before, {"attempt": 5, "phase": phase, "step": 7}, saved)
    assert (stock.fruitless, stock.died_at, stock.deaths) == expected
    assert stock.began == saved


def test_a_run_that_is_often_preempted_is_healthy() -> None:
    attempts = Attempts()
    for number in range(64):
        before = {"attempt": number, "attempts": attempts.__dict__, "outcome": {"code": 85}}
        attempts = take_stock(before, {"attempt": number, "phase": "training", "step": number}, number)
    assert (attempts.fruitless, attempts.deaths) == (0, 0)
