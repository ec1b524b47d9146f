"""Training on a real Slurm of two nodes: three ways to start it, one result; and what ends a job goes on."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import (
    CANARY,
    FLAGS,
    PAIR,
    ROOT,
    DevCluster,
    finished,
    restarts,
    same_weights,
    step_of,
    submit,
    wait_for,
)

from jobs.slurm.control import all_jobs, slurm
from tests.conftest import bloodcell

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


def test_submitit_trains_and_evaluates_on_two_nodes(undisturbed: Path) -> None:
    status = json.loads((undisturbed / "status.json").read_text())
    assert (status["state"], status["world"], status["attempt"]) == ("done", 4, 1)
    assert status["step"] == status["steps"] == 40
    assert json.loads((undisturbed / "evaluation.json").read_text())
    logs = sorted((undisturbed / "slurm").glob("*_log.out"))
    assert len(logs) == 4, "one log of each rank"
    told = bloodcell("status", undisturbed, "--json").json["runs"][0]
    assert (told["state"], told["step"], told["node"]) == ("done", 40, "n[1-2]")


def test_secrets_reach_the_job_but_no_file(undisturbed: Path, dev_cluster: DevCluster) -> None:
    files = [path for path in undisturbed.rglob("*") if path.is_file()]
    assert any(path.name.endswith("submission.sh") for path in files)
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]


def sbatch(script: str, run: Path, data: Path, *options: str) -> dict[str, object]:
    """Submit one of the plain scripts as its own comment says."""
    words = ["cnn5", "--data", str(data), "--run", str(run), *map(str, FLAGS)]
    log = f"--output={run.parent}/%x-%j.log"
    asked = ["--nodes=2", "--gpus-per-node=2", "--mem=4G", "--time=30", log, *options]
    number = slurm("sbatch", "--parsable", *asked, str(ROOT / "slurm" / script), *words).strip()
    return {"jobs": [number], "runs": [str(run)], "logs": str(run.parent)}


def test_the_sbatch_twin_gives_the_same_weights(undisturbed: Path, small_set: Path, tmp_path: Path) -> None:
    finished(sbatch("train.sbatch", tmp_path / "run", small_set, "--ntasks-per-node=2", "--cpus-per-task=1"))
    assert same_weights(undisturbed, tmp_path / "run")


@pytest.mark.slow
def test_torchrun_gives_the_same_weights(undisturbed: Path, small_set: Path, tmp_path: Path) -> None:
    finished(sbatch("torchrun.sbatch", tmp_path / "run", small_set, "--cpus-per-task=2"))
    assert same_weights(undisturbed, tmp_path / "run")


def test_a_signal_makes_all_ranks_save_and_the_job_go_on(pair: Path, small_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sent = submit("cnn5", "--data", small_set, "--run", run, *PAIR)
    wait_for(lambda: step_of(run) >= 5, "training")
    subprocess.run(["scancel", "--signal=USR2", sent["jobs"][0]], check=True)
    finished(sent)
    assert restarts(sent) == 1
    decisions = [json.loads(line) for line in (run / "slurm" / "requeues.jsonl").read_text().splitlines()]
    assert [(one["code"], one["again"]) for one in decisions] == [(85, True)]
    assert decisions[0]["step"] >= 5, "nothing that was trained is lost"
    assert same_weights(pair, run)
    assert "stopped by a signal after saving" in bloodcell("status", run).out


@pytest.mark.slow
def test_a_dead_node(pair: Path, small_set: Path, tmp_path: Path, dev_cluster: DevCluster) -> None:
    run = tmp_path / "run"
    sent = submit("cnn5", "--data", small_set, "--run", run, *PAIR)
    wait_for(lambda: step_of(run) >= 9, "training")
    dev_cluster("kill-node", "n2")
    wait_for(lambda: "down" in slurm("sinfo", "-h", "-n", "n2", "-o", "%T"), "Slurm to notice")
    dev_cluster("start-node", "n2")
    finished(sent)
    assert restarts(sent) >= 1
    assert same_weights(pair, run)


@pytest.mark.slow
def test_a_job_of_more_importance(pair: Path, small_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sent = submit("cnn5", "--data", small_set, "--run", run, "--partition", "low", *PAIR)
    wait_for(lambda: step_of(run) >= 5, "training")
    asked = ["--partition=high", "--nodes=2", "--gpus-per-node=2", "--mem=1G", "--output=/dev/null"]
    slurm("sbatch", *asked, "--wrap", "sleep 2")
    finished(sent)
    assert restarts(sent) == 1
    assert same_weights(pair, run)


@pytest.mark.slow
def test_a_rank_that_is_killed(pair: Path, small_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sent = submit("cnn5", "--data", small_set, "--run", run, *PAIR)
    wait_for(lambda: step_of(run) >= 9, "training")
    assert kill_rank(run, 1)
    finished(sent)
    assert restarts(sent) >= 1
    assert same_weights(pair, run)


def kill_rank(run: Path, rank: int) -> bool:
    """Kill one rank of a run as the kernel does where memory is short."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        mine = f"{run}/slurm".encode() in words and b"submitit.core._submit" in words and b"srun" not in words[0]
        if mine and f"SLURM_PROCID={rank}".encode() in variables:
            os.kill(int(entry.name), 9)
            return True
    return False


@pytest.mark.slow
def test_what_is_cancelled_stays_cancelled(small_set: Path, tmp_path: Path, dev_cluster: DevCluster) -> None:
    run = tmp_path / "run"
    sent = submit("cnn5", "--data", small_set, "--run", run, *PAIR)
    wait_for(lambda: step_of(run) >= 5, "training")
    assert bloodcell("cancel", run).code == 0
    job = sent["jobs"][0]
    wait_for(lambda: all_jobs()[job]["JobState"] == "CANCELLED", "the end")
    assert restarts(sent) == 0
    assert bloodcell("status", run, "--json").json["runs"][0]["state"].startswith("cancelled")


@pytest.mark.slow
def test_a_chain_of_folds(drawn: Path, tmp_path: Path, dev_cluster: DevCluster) -> None:
    table = f"--folds 3 --table {drawn / 'truth.csv'} --group-column patient"
    words = ["--images", drawn, "--pack", table, "--chain", "pack,train,evaluate", "--folds", 3, *FLAGS]
    sent = submit("cnn5", "--data", tmp_path / "set", "--run", tmp_path / "run", *words, "--train.epochs", 1)
    finished({**sent, "jobs": [sent["pack"], *sent["jobs"], sent["evaluate"]]})
    assert len(sent["runs"]) == 3
    log = (Path(sent["logs"]) / f"{sent['evaluate']}_0_log.out").read_text()
    assert "3 folds, every sample judged once" in log


@pytest.mark.slow
def test_a_signal_on_four_ranks(undisturbed: Path, small_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sent = submit("cnn5", "--data", small_set, "--run", run, *FLAGS)
    wait_for(lambda: step_of(run) >= 5, "training")
    subprocess.run(["scancel", "--signal=USR2", sent["jobs"][0]], check=True)
    finished(sent)
    assert restarts(sent) == 1
    assert same_weights(undisturbed, run)
