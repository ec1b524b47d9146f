"""Killed with SIGKILL at any moment and started again: the same weights bit for bit, no record lost or doubled."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from bloodcell.engine.watchdog import read_heartbeat
from tests.bloodcell.engine.held import assert_same, held, train
from tests.bloodcell.engine.runs import FAST, Running, kill, losses, records, same, start, status, told
from tests.conftest import bloodcell

pytestmark = pytest.mark.timeout(900)  # several runs in one test, perhaps on a busy machine
STEPS_PER_EPOCH = 5
OFFLINE = ("--tracking.wandb", "offline")


def saving(run: Path, after: int) -> bool:
    """Whether a checkpoint is being written, with so many records of training before it."""
    return len(losses(run)) >= after and any((run / "checkpoints").glob("*.partial"))


def epoch_ended(run: Path, after: int) -> bool:
    """Whether the last step of an epoch is done and its evaluation is not."""
    said = losses(run)
    if len(said) < after or not said or said[-1][0] % STEPS_PER_EPOCH:
        return False
    return not any(record["step"] == said[-1][0] and "val/loss" in record for record in records(run))


def evaluating(run: Path, after: int) -> bool:
    """Whether the first rank is in an evaluation, with so many records of training before it."""
    return read_heartbeat(run).get("phase") == "evaluating" and len(losses(run)) >= after


def stepping(run: Path, after: int) -> bool:
    """Whether so many steps are done."""
    return len(losses(run)) >= after


STRATEGIES = ("ddp", "zero0", "zero1", "zero2", "zero3")

Moment = tuple[Callable[[Path, int], bool], int, float]
"""What to wait for, after how many records, and how many seconds later to kill."""

MOMENTS: dict[str, Moment] = {
    "in a save": (saving, 3, 0.0),
    "between the last step of an epoch and its evaluation": (epoch_ended, STEPS_PER_EPOCH, 0.0),
    "in an evaluation": (evaluating, STEPS_PER_EPOCH, 0.0),
    "in a step": (stepping, 7, 0.01),
}


def killed(arguments: tuple[object, ...], run: Path, ranks: int, moment: Moment) -> bool:
    """Start a run and kill it at a moment; return whether the moment came before the run was over."""
    what, after, later = moment
    process = start(*arguments, "--run", run, ranks=ranks)
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if what(run, after):
            time.sleep(later)
            hit = process.poll() is None
            kill(process)
            # An evaluation of so few samples may be over before the signal arrives: what it left tells.
            return hit and (what is not evaluating or read_heartbeat(run)["phase"] == "evaluating")
        time.sleep(0.0005)
    finish(process)
    return False


def finish(process: Running) -> None:
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error


def gone_on_with(arguments: tuple[object, ...], run: Path, ranks: int, whole: Path) -> None:
    """Start the run again and compare everything with the undisturbed one."""
    done = bloodcell(*arguments, "--run", run, ranks=ranks)
    assert done.code == 0, done.err
    assert same(run, whole)
    assert told(run) == told(whole)
    assert status(run)["lineage_proven"] is True
    assert status(run)["lineage"] == status(whole)["lineage"]
    assert not [path for path in (run / "checkpoints").iterdir() if path.name.endswith((".partial", ".old"))]


def wandb_ids(run: Path) -> set[str]:
    """Return the ids of all W&B parts of a run: one, however often it was started."""
    return {path.stem.removeprefix("run-") for path in (run / "wandb").glob("offline-run-*/run-*.wandb")}


@pytest.mark.parametrize("when", [name for name in MOMENTS if name != "in an evaluation"])
def test_killed_on_two_ranks(undisturbed_run: Path, small_set: Path, small_net: str, tmp_path: Path, when: str) -> None:
    arguments = ("train", "cnn5", "--data", small_set, "--model.name", small_net, *FAST, *OFFLINE)
    run = tmp_path / "run"
    assert killed(arguments, run, 2, MOMENTS[when])
    gone_on_with(arguments, run, 2, undisturbed_run)
    assert len(wandb_ids(run)) == 1


def test_killed_in_the_middle_of_an_evaluation(calm: Path, held_net: Path, small_set: Path, tmp_path: Path) -> None:
    """Held in the second of the three batches that each rank evaluates after the first epoch."""
    run = tmp_path / "run"
    with held(held_net, small_set, run, "eval-2-1") as training:
        training.wait_for("eval-2-1")
        kill(training.process)
    code, err = train(held_net, small_set, run)
    assert code == 0, err
    assert_same(run, calm)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_killed_at_twenty_random_moments_of_one_run_after_another(
    small_set: Path, small_net: str, tmp_path: Path, strategy: str, deepspeed_op: None
) -> None:
    """At least twenty kills in all; some runs are killed several times before they may end."""
    arguments = ("train", "cnn5", "--data", small_set, "--model.name", small_net, *FAST, "--engine.strategy", strategy)
    whole = tmp_path / "whole"
    done = bloodcell(*arguments, "--run", whole, ranks=2)
    assert done.code == 0, done.err
    dice, kills, seen = random.Random(5), 0, dict.fromkeys(MOMENTS, 0)
    while kills < 20 or not all(seen.values()):
        run = tmp_path / f"run{kills}"
        for _ in range(dice.randint(1, 4)):
            name = dice.choice(list(MOMENTS))
            hit = killed(arguments, run, 2, (MOMENTS[name][0], dice.randint(1, 14), dice.choice([0.0, dice.random()])))
            kills, seen[name] = kills + hit, seen[name] + hit
            if not hit:
                break
        gone_on_with(arguments, run, 2, whole)
        shutil.rmtree(run)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_killed_on_four_ranks(
    small_set: Path, small_net: str, tmp_path: Path, strategy: str, deepspeed_op: None
) -> None:
    """Beyond two ranks the order of summation follows DDP's buckets, which a resumed process must lay out alike."""
    arguments = ("train", "cnn5", "--data", small_set, "--model.name", small_net, *FAST, "--engine.strategy", strategy)
    whole = tmp_path / "whole"
    assert bloodcell(*arguments, "--run", whole, ranks=4).code == 0
    for number, when in enumerate(MOMENTS):
        run = tmp_path / f"run{number}"
        assert killed(arguments, run, 4, MOMENTS[when]) or when == "in an evaluation"
        gone_on_with(arguments, run, 4, whole)


def test_other_world_sizes_go_on_with_the_same_micro_batches(small_set: Path, small_net: str, tmp_path: Path) -> None:
    """K = 6 on 2, then 1, then 3 ranks; each stops where an epoch ends, and the next takes up exactly what was saved.

    Bound against the run on one rank: sums of float32 gradients in another order, 9 steps of AdamW.
    """
    six = (*FAST[:4], "--train.micro_batches", 6, *FAST[6:8], *FAST[10:])
    arguments = ("train", "cnn5", "--data", small_set, "--model.name", small_net, *six)
    run, alone = tmp_path / "run", tmp_path / "alone"
    run.mkdir()
    before: dict[str, Any] = {}
    for ranks, stop in ((2, 1), (1, 2), (3, None)):
        (run / "stop").unlink(missing_ok=True)
        if stop:
            (run / "stop").write_text(f"{stop}\n")
        done = bloodcell(*arguments, "--run", run, ranks=ranks)
        assert (done.code == 0) is (stop is None), done.err
        if before:
            assert f"resuming {run} at step {before['step']}" in " ".join(done.err.split())
        before = status(run)
    assert before["lineage_proven"] is True
    assert bloodcell(*arguments, "--run", alone).code == 0
    assert before["lineage"] == status(alone)["lineage"]
    assert [step for step, _ in losses(run)] == [step for step, _ in losses(alone)]
    np.testing.assert_allclose([loss for _, loss in losses(run)], [loss for _, loss in losses(alone)], rtol=2e-3)


def test_optimizer_state_is_taken_over_exactly(undisturbed_run: Path) -> None:
    """What one rank loads of a checkpoint of two is what is saved again from there, to the bit."""
    from bloodcell.config import OptimConfig
    from bloodcell.engine.checkpoint import Checkpoints
    from bloodcell.engine.ddp import DDP
    from bloodcell.engine.optim import build_optimizer
    from bloodcell.ranks import Ranks, process_group
    from tests.bloodcell.engine.runs import SMALL_NET

    scope: dict[str, Any] = {}
    exec(SMALL_NET, scope)
    folder = undisturbed_run / "checkpoints" / "last"
    saved = load_file(folder / "state.safetensors")
    found = Checkpoints(undisturbed_run / "checkpoints", 2).load("best")
    assert found is not None
    device = torch.device("cpu")
    with process_group(Ranks(0, 1, 0, 1, "single"), device, 60):
        model = scope["build"](4)
        strategy = DDP(model, build_optimizer(model, OptimConfig(), device), device, "fp32", OptimConfig(), 4)
        state, _ = found
        strategy.load_state_dict(state)
        common, mine = strategy.state_dict()
    assert mine == {}
    assert common["optimizer"]["state"].keys() == state["optimizer"]["state"].keys()
    for number, moments in state["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(common["optimizer"]["state"][number][name], value)
    assert json.dumps(common["optimizer"]["param_groups"]) == json.dumps(state["optimizer"]["param_groups"])
    assert any(name.startswith("/optimizer/state") for name in saved)
