"""Looking after runs on a Slurm with accounting: the same as without, and `sacct` knows the jobs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PAIR, DevCluster, finished, restarts, step_of, submit, wait_for

from tests.conftest import bloodcell

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def accounted(dev_cluster: DevCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[DevCluster]:
    """A second cluster beside the one without accounting."""
    if not shutil.which("slurmdbd", path=f"{os.environ['PATH']}:/usr/sbin") or not shutil.which("mariadbd"):
        pytest.skip("no accounting here: apt-get install --no-install-recommends slurmdbd mariadb-server")
    cluster = DevCluster(Path(tempfile.mkdtemp(prefix="bloodcell-slurm-")))
    try:
        cluster("up", "--gpus", "2", "--accounting")
        monkeypatch.setenv("SLURM_CONF", str(cluster.folder / "slurm.conf"))
        yield cluster
    finally:
        cluster("down")


def said(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_run_is_looked_after(accounted: DevCluster, small_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sent = submit("cnn5", "--data", small_set, "--run", run, *PAIR)
    wait_for(lambda: step_of(run) >= 5, "training")
    assert bloodcell("status", run, "--json").json["runs"][0]["state"] == "training"
    assert bloodcell("requeue", run, "--json").json["way"] == "saved"
    finished(sent)
    assert restarts(sent) == 1
    assert bloodcell("status", run, "--json").json["runs"][0]["state"] == "done"
    logs = bloodcell("logs", run)
    assert (logs.code, logs.out.count("== rank")) == (0, 2)
    job = sent["jobs"][0]
    wait_for(lambda: said("sacct", "-n", "-X", "-j", job, "-o", "state") == ["COMPLETED"], "sacct")
    states = said("sacct", "-n", "-X", "--duplicates", "-j", job, "-o", "state")
    assert len(states) == 2, f"both starts are on record: {states}"


def test_what_is_cancelled(accounted: DevCluster, small_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sent = submit("cnn5", "--data", small_set, "--run", run, *PAIR)
    wait_for(lambda: step_of(run) >= 1, "training")
    assert bloodcell("cancel", run).code == 0
    job = sent["jobs"][0]
    wait_for(lambda: "CANCELLED" in said("sacct", "-n", "-X", "-j", job, "-o", "state%20"), "sacct")

    def is_over() -> bool:
        return str(bloodcell("status", run, "--json").json["runs"][0]["state"]).startswith("cancelled")

    wait_for(is_over, "the end")
