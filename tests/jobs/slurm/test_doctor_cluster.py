"""The doctor on a real Slurm of two nodes: green where all is well, and each planted fault found on its node."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import DevCluster

from tests.conftest import bloodcell

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

FLAGS = ("--data.size", 32, "--data.micro_batch", 8, "--engine.threads", 1, "--tracking.wandb", "off")
RECIPE = ("cnn5", "--train.micro_batches", 2, *FLAGS)

Plant = Callable[..., None]


def doctor(run: Path, *words: object) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """Look at both nodes; return what --json says, and its checks by name."""
    done = bloodcell("doctor", *words, "--run", run, "--nodes", 2, "--tasks-per-node", 1, "--json")
    assert done.code in (0, 1), done.err
    told = done.json
    return told, {check["name"]: check for check in told["checks"]}


def red(checks: dict[str, dict[str, str]]) -> set[str]:
    """Return what is red."""
    return {name for name, check in checks.items() if check["state"] == "red"}


@pytest.fixture
def plant(dev_cluster: DevCluster) -> Iterator[Plant]:
    """Start n2 again so that it sees A where n1 sees B; afterwards as it was."""

    def planted(*pairs: tuple[Path, Path]) -> None:
        dev_cluster("kill-node", "n2")
        binds = [word for a, b in pairs for word in ("--bind", f"{a}:{b}")]
        dev_cluster("start-node", "n2", *binds)

    yield planted
    dev_cluster("kill-node", "n2")
    dev_cluster("start-node", "n2")


def test_two_healthy_nodes_and_a_signal_that_comes_too_late(
    dev_cluster: DevCluster, small_set: Path, tmp_path: Path
) -> None:
    words = (*RECIPE, "--data", small_set, "--cluster", "dev", "--signal-lead", 5)
    told, checks = doctor(tmp_path / "runs", *words)
    assert red(checks) == {"warning before the end"}, told
    assert told["exit"] == 1
    assert (told["nodes"], told["ranks"]) == (["n1", "n2"], 2)
    assert "--signal-lead" in checks["warning before the end"]["fix"]
    looked_at = ("run folder is shared", "Python and packages", "shards", "network", "slowest pair", "clocks")
    assert {checks[name]["state"] for name in (*looked_at, "dry steps", "memory", "being queued again")} == {"green"}
    assert "n1 and n2" in checks["slowest pair"]["what"]


@pytest.mark.slow
def test_all_green_is_exit_0_and_leaves_nothing(dev_cluster: DevCluster, small_set: Path, tmp_path: Path) -> None:
    told, checks = doctor(tmp_path / "runs", *RECIPE, "--data", small_set, "--cluster", "dev")
    assert (told["exit"], red(checks)) == (0, set())
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", ["n1", "n2"])
def test_a_node_whose_run_folder_is_another_one(dev_cluster: DevCluster, tmp_path: Path, elsewhere: str) -> None:
    runs, other = tmp_path / "runs", tmp_path / "other"
    runs.mkdir()
    other.mkdir()
    dev_cluster("kill-node", elsewhere)
    dev_cluster("start-node", elsewhere, "--bind", f"{other}:{runs}")
    try:
        told, checks = doctor(runs, "--cluster", "dev")
    finally:
        dev_cluster("kill-node", elsewhere)
        dev_cluster("start-node", elsewhere)
    assert told["exit"] == 1
    if elsewhere == "n1":  # the node that writes the job's log: nothing comes back at all
        assert "left no log here" in checks["every node answers"]["what"]
    else:
        assert "n2 has no such folder" in checks["run folder is shared"]["what"]
        assert checks["every node answers"]["state"] == "green", "it is heard over the network"


@pytest.mark.slow
def test_a_package_that_one_node_lacks(plant: Plant, tmp_path: Path) -> None:
    site, nothing = Path(sysconfig.get_paths()["purelib"]), tmp_path / "nothing"
    nothing.mkdir()
    told = next(site.glob("webdataset-*.dist-info"))
    plant((nothing, site / "webdataset"), (nothing, told))
    _, checks = doctor(tmp_path / "runs", "--cluster", "dev")
    assert red(checks) == {"Python and packages"}
    said = checks["Python and packages"]["what"]
    assert "webdataset is missing on n2" in said
    assert "webdataset cannot be found on n2" in said
    assert "n1" not in said


@pytest.mark.slow
def test_a_package_without_which_the_program_does_not_start(plant: Plant, tmp_path: Path) -> None:
    site, nothing = Path(sysconfig.get_paths()["purelib"]), tmp_path / "nothing"
    nothing.mkdir()
    plant((nothing, site / "msgspec"))
    _, checks = doctor(tmp_path / "runs", "--cluster", "dev")
    assert "node 1 of the job broke off" in checks["every node answers"]["what"]
    assert "msgspec" in checks["every node answers"]["what"]


@pytest.mark.slow
def test_a_full_scratch_and_a_wrong_shard_on_one_node(
    plant: Plant, small_set: Path, tmpfs: Path, tmp_path: Path
) -> None:
    scratch, data, broken = tmp_path / "scratch", tmp_path / "set", tmp_path / "broken"
    scratch.mkdir()
    for copy in (data, broken):
        shutil.copytree(small_set, copy)
    shard = sorted(broken.glob("train-*.tar"))[1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    (tmpfs / "others").write_bytes(bytes(3 << 19))
    plant((tmpfs, scratch), (broken, data))
    mine = tmp_path / "mine.toml"
    dev = (Path(__file__).parents[3] / "slurm" / "clusters" / "dev.toml").read_text()
    mine.write_text(f'{dev}scratch = "{scratch}"\n')
    _, checks = doctor(tmp_path / "runs", "--data", data, "--cluster", mine)
    assert red(checks) == {"scratch of the nodes", "shards"}
    assert "n2 cannot write" in checks["scratch of the nodes"]["what"]
    assert "n1" not in checks["scratch of the nodes"]["what"]
    assert shard.name in checks["shards"]["what"]
    assert "seen on n2" in checks["shards"]["what"]
    assert not list(scratch.iterdir())
