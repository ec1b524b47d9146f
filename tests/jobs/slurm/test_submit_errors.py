"""What is wrong with a submission is said in one line before anything is queued or written; dry runs; the local way."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import FLAGS, DevCluster

from jobs.cli import run_verb
from jobs.slurm.control import all_jobs
from shards.errors import BadInput
from tests.conftest import bloodcell


def refused(*words: object) -> str:
    """Submit what cannot be; return the one line that says so."""
    with pytest.raises(BadInput) as caught:
        run_verb("submit", [str(word) for word in words])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_cluster_that_is_not_there(small_set: Path, tmp_path: Path) -> None:
    said = refused("cnn5", "--data", small_set, "--run", tmp_path / "run", "--cluster", "juwels", *FLAGS)
    assert "no cluster 'juwels'" in said
    assert "dev, example, local" in said
    assert "no cluster is named" in refused("cnn5", "--data", small_set, *FLAGS)


def test_no_slurm_here(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ("cnn5", "--data", small_set, "--run", tmp_path / "run", "--cluster", "dev", *FLAGS)
    assert "there is no sinfo here" in refused(*words)
    assert not (tmp_path / "run").exists()


def test_arrays_that_cannot_be(drawn: Path, small_set: Path, tmp_path: Path) -> None:
    place = ("--cluster", "dev", "--dry-run")
    pack, sweep = ("pack", drawn, tmp_path / "new"), ("sweep", "--data", small_set, "--out", tmp_path / "sweep")
    assert "no cluster is named" in refused(*pack)
    assert "this machine is one node with one job" in refused(*pack, "--cluster", "local")
    assert "one or more jobs, each on one node" in refused(*pack, *place, "--jobs", 0)
    assert "one or more jobs, each on one node" in refused(*pack, *place, "--nodes", 2)
    assert "there are no images" in refused("pack", tmp_path / "none", tmp_path / "new", *place)
    assert "the set exists already" in refused("pack", drawn, small_set, *place)
    assert "unknown argument '--sedd'" in refused(*pack, *place, "--sedd", 3)
    assert "no recipe is named" in refused(*sweep, *place)
    assert "no table [sweep]" in refused(*sweep, *place, "cnn5")
    assert "draws its sets first" in refused("reproduce", "--quick", "--out", tmp_path / "table", *place)
    assert not list(tmp_path.iterdir())


@pytest.mark.slurm
def test_what_the_cluster_does_not_have(small_set: Path, tmp_path: Path, dev_cluster: DevCluster) -> None:
    run = tmp_path / "run"
    words = ("cnn5", "--data", small_set, "--run", run, "--cluster", "dev", *FLAGS)
    before = set(all_jobs())  # of other tests
    assert "no partition 'hihg' (--partition): did you mean 'high'?" in refused(*words, "--partition", "hihg")
    assert "4 GPUs on each node, but a node of 'gpu' has 2" in refused(*words, "--gpus-per-node", 4)
    assert "4 nodes, but 'gpu' has 2" in refused(*words, "--nodes", 4)
    assert "1500 minutes, but 'low' allows 1440" in refused(*words, "--partition", "low", "--time", 1500)
    assert "the signal comes 60 s before the end of a job of 60 s" in refused(*words, "--time", 1)
    assert "sbatch refuses the job" in refused(*words, "--constraint", "a100")
    assert set(all_jobs()) <= before


@pytest.mark.slurm
def test_what_the_run_cannot_be(
    small_set: Path, tmp_path: Path, dev_cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("device = 'cpu'\ngpus_per_node = 2\nmemory_gb = 4\n")
    words = ("cnn5", "--data", small_set, "--run", tmp_path / "run", *FLAGS)
    assert "only this host sees this folder" in refused(*words, "--cluster", mine)
    mine.write_text(f"device = 'cpu'\ngpus_per_node = 2\nshared = ['{tmp_path / 'home'}']\n")
    assert "choose one below" in refused(*words, "--cluster", mine)
    assert "3 ranks" in refused(*words, "--cluster", "dev", "--tasks-per-node", 3)
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    said = refused(*words, "--cluster", "dev", "--nodes", 2, "--tracking.wandb", "online")
    assert "W&B cannot be used online: no API key is configured" in said
    assert not (tmp_path / "run").exists()


def test_a_dry_run_writes_nothing(small_set: Path, tmp_path: Path) -> None:
    words = ("cnn5", "--data", small_set, "--run", tmp_path / "run", "--cluster", "dev", "--nodes", 2, *FLAGS)
    told, lines = run_verb("submit", [str(word) for word in (*words, "--dry-run")])
    assert lines[0] == "#!/bin/bash"
    assert f"set -- --run {tmp_path / 'run'}" in lines
    assert told["runs"] == [str(tmp_path / "run")]
    assert not (tmp_path / "run").exists()


def test_dry_runs_of_arrays(drawn: Path, small_set: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "searched.toml"
    recipe.write_text('[sweep]\n[sweep.space]\n"optim.lr" = {low=1e-4, high=1e-1}\n')
    for how in ("submitit", "sbatch"):
        place = ("--cluster", "dev", "--dry-run", "--through", how)
        words = ("sweep", recipe, "--data", small_set, "--out", tmp_path / "sweep", "--jobs", 3, *place)
        told = run_verb("submit", [str(word) for word in words])[0]["script"]
        assert "--array=0-2%3" in told
        assert told.count(f"set -- --out {tmp_path / 'sweep'} --join ;;") == 3
        assert f"export BLOODCELL_PLACE={tmp_path / 'sweep'}" in told
        assert "--gpus-per-node=1" in told, "a GPU for each worker"
        words = ("pack", drawn, tmp_path / "new", "--table", drawn / "truth.csv", "--no-near", "--jobs", 2, *place)
        told, lines = run_verb("submit", [str(word) for word in words])
        part = f"{drawn} {tmp_path / 'new'} --table {drawn / 'truth.csv'} --no-near --part 2/2"
        assert f"1) set -- {part} ;;" in told["script"]
        assert "gpus" not in told["script"]
        assert lines[-1] == f"# then, afterok: bloodcell merge {tmp_path / 'new'}"
    assert [path.name for path in tmp_path.iterdir()] == ["searched.toml"]


def test_this_machine_without_slurm(small_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("cnn5", "--data", small_set, "--run", run, "--cluster", "local", "--tasks-per-node", 2, *FLAGS)
    done = bloodcell("submit", *words, "--train.epochs", 1, "--wait", "--snapshot", "--json")
    assert done.code == 0, done.err
    assert json.loads((run / "status.json").read_text())["world"] == 2
    assert (run / "slurm" / "code" / "jobs" / "cli.py").exists()
    assert os.stat(run / "slurm").st_mode & 0o077 == 0, "submitit unpickles what lies there"
