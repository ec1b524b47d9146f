"""Training on a real Slurm of two nodes: three ways to start it, one result; and what ends a job goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import (
    CANARY,
    FLAGS,
    PAIR,
    ROOT,
    DevCluster,
    finished,
    same_weights,
    submit,
)

from jobs.slurm.control import slurm
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
def test_deepspeed_over_two_nodes(pair: Path, deepspeed_op: None, small_set: Path, tmp_path: Path) -> None:
    """The same micro-batches as under DDP, and so the same weights."""
    run = tmp_path / "run"
    finished(submit("cnn5", "--data", small_set, "--run", run, *PAIR, "--engine.strategy", "zero2"))
    assert json.loads((run / "status.json").read_text())["world"] == 2
    assert same_weights(pair, run)
    judged = bloodcell("evaluate", run, "--predict", "--json")
    assert judged.code == 0, judged.err
    assert (
        judged.json["metrics"]["accuracy"]
        == json.loads((run / "evaluation.json").read_text())["splits"]["test"]["metrics"]["accuracy"]
    )


@pytest.mark.slow
def test_an_array_of_seeds_through_sbatch(dev_cluster: DevCluster, small_set: Path, tmp_path: Path) -> None:
    """From a copy of the code, waited for; each seed is the run that `train` makes of it."""
    words = ("cnn5", "--data", small_set, "--run", tmp_path / "runs", *PAIR, "--train.epochs", 2)
    how = ("--seeds", 2, "--through", "sbatch", "--snapshot", "--wait", "--nodes", 1, "--gpus-per-node", 1)
    done = bloodcell("submit", *words, "--cluster", "dev", *how, "--json", timeout=600)
    assert done.code == 0, done.err
    assert set(done.json["states"].values()) == {"COMPLETED"}
    assert [Path(run).name for run in done.json["runs"]] == ["seed0", "seed1"]
    one, other = (Path(run) for run in done.json["runs"])
    assert (tmp_path / "runs" / "slurm" / "code" / "jobs" / "cli.py").exists()
    assert not same_weights(one, other)
    assert json.loads((one / "status.json").read_text())["node"] in ("n1", "n2")
