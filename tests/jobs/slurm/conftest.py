"""A real Slurm of two nodes for the tests marked `slurm`, and runs trained on it."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.slurm.waiting import wait
from tests.conftest import bloodcell

ROOT = Path(__file__).resolve().parents[3]
INSTALL = "apt-get install --no-install-recommends slurmctld slurmd slurm-client"

FLAGS = (
    *("--data.size", 32, "--data.micro_batch", 8, "--train.micro_batches", 4, "--train.epochs", 8),
    *("--train.evaluate_every", 4, "--train.save_every", 4, "--tracking.wandb", "off", "--engine.threads", 1),
)
"""Of a run of 40 steps on 4 ranks: long enough to be disturbed."""


PAIR = ("--tasks-per-node", 1, *FLAGS)


@dataclass
class DevCluster:
    """slurm/dev-cluster, up."""

    folder: Path

    def __call__(self, *words: str) -> str:
        """Run one of its commands."""
        command = [str(ROOT / "slurm" / "dev-cluster"), *words, "--dir", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def dev_cluster() -> Iterator[DevCluster]:
    """Two nodes with two GPUs that only Slurm sees; SLURM_CONF leads to them."""
    if not all(map(shutil.which, ("sbatch", "unshare"))) or not Path("/usr/sbin/slurmctld").exists():
        message = f"no Slurm here: {INSTALL}"
        if os.environ.get("BLOODCELL_REQUIRE_SLURM"):
            pytest.fail(message)
        pytest.skip(message)
    cluster = DevCluster(Path(tempfile.mkdtemp(prefix="bloodcell-slurm-")))
    before = {name: os.environ.get(name) for name in ("SLURM_CONF", "PYTHONPATH")}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), before["PYTHONPATH"] or ""])
    try:
        cluster("up", "--gpus", "2", "--kill-wait", "20")
        os.environ["SLURM_CONF"] = str(cluster.folder / "slurm.conf")
        yield cluster
    finally:
        cluster("down")
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Cancel what a test that failed left in the queue: the next one would wait for it."""
    yield
    if "SLURM_CONF" in os.environ:
        subprocess.run(["scancel", "--user", getpass.getuser()], check=False)


def submit(*words: object) -> dict[str, Any]:
    """Submit to two nodes of the development cluster; return what `submit --json` says."""
    done = bloodcell("submit", *words, "--cluster", "dev", "--nodes", 2, "--json")
    assert done.code == 0, done.err
    return done.json


def finished(sent: dict[str, Any]) -> None:
    """Wait for what was submitted; its jobs must end COMPLETED."""
    ends = wait(sent["jobs"], "slurm", [Path(run) for run in sent["runs"]])
    logs = "\n".join(f"{log}:\n{log.read_text()[-1500:]}" for log in sorted(Path(sent["logs"]).glob("*_log.out")))
    assert ends["exit"] == 0, f"{ends['lines']}\n{logs}"


def wait_for(happened: Callable[[], bool], what: str, seconds: float = 240) -> None:
    """Wait for something that will come if nothing is broken."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


def step_of(run: Path) -> int:
    """Return the training step that the run is in."""
    try:
        beat = json.loads((run / "heartbeat.json").read_text())
        return int(beat["step"]) if beat["phase"] == "training" else -1
    except (OSError, ValueError, KeyError):
        return -1


def restarts(sent: dict[str, Any]) -> int:
    """Return how often Slurm has started the job again."""
    from jobs.slurm.control import job_facts

    return int(job_facts(sent["jobs"][0])["Restarts"])


@pytest.fixture(scope="session")
def undisturbed(dev_cluster: DevCluster, small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that submitit trained on 2 nodes of 2 processes, with a key in the submitter's environment."""
    run = tmp_path_factory.mktemp("submitted") / "run"
    os.environ["WANDB_API_KEY"] = CANARY
    try:
        finished(submit("cnn5", "--data", small_set, "--run", run, *FLAGS))
    finally:
        del os.environ["WANDB_API_KEY"]
    return run


@pytest.fixture(scope="session")
def pair(dev_cluster: DevCluster, small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on 2 nodes of 1 process: what runs that were disturbed are compared with."""
    run = tmp_path_factory.mktemp("pair") / "run"
    finished(submit("cnn5", "--data", small_set, "--run", run, *PAIR))
    return run


CANARY = "canary0123456789canary0123456789canary01"


def same_weights(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same weights, bit for bit."""
    from safetensors.numpy import load_file

    ours, theirs = (load_file(run / "model.safetensors") for run in (one, other))
    return ours.keys() == theirs.keys() and all(ours[key].tobytes() == theirs[key].tobytes() for key in ours)
