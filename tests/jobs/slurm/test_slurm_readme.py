"""What the READMEs tell a newcomer to type about clusters, typed: on a real Slurm, with small images and few steps."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import FLAGS, ROOT, DevCluster, step_of, wait_for

from jobs.slurm.control import all_jobs

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]

SMALL = " ".join(map(str, (*FLAGS, "--train.epochs", 2)))


def section(file: str, heading: str) -> str:
    """Return the text below a heading, up to the next one of its level."""
    text = (ROOT / file).read_text()
    start = text.index(heading) + len(heading)
    return text[start:].partition("\n## ")[0]


def block(text: str) -> list[str]:
    """Return the lines of the first block of commands, without what is said behind #."""
    found = re.search(r"\n```\n(.*?)\n```", text, re.DOTALL)
    assert found, "no commands here"
    return [re.sub(r"\s{2,}#.*", "", line).strip() for line in found[1].splitlines()]


@pytest.fixture
def newcomer(dev_cluster: DevCluster, small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a set, a cluster file called NAME, and the scripts; `bloodcell` is on the path."""
    (tmp_path / "SET").symlink_to(small_set)
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters" / "NAME.toml").write_text((ROOT / "slurm" / "clusters" / "dev.toml").read_text())
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "bloodcell"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m jobs.cli "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def typed(command: str, folder: Path) -> str:
    """Run a line in a shell; return all that it says."""
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_on_a_cluster(newcomer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The section of the README, on four nodes."""
    cluster = DevCluster(Path(tempfile.mkdtemp(prefix="bloodcell-slurm-")))
    run = newcomer / "RUN"
    try:
        cluster("up", "--nodes", "4", "--gpus", "1")
        monkeypatch.setenv("SLURM_CONF", str(cluster.folder / "slurm.conf"))
        text = section("README.md", "\n## On a cluster\n")
        lines = block(text)
        assert lines[0].startswith("bloodcell submit ")
        typed(f"{lines[0]} --gpus-per-node 1 {SMALL} --train.epochs 40", newcomer)
        wait_for(lambda: step_of(run) >= 5, "training")
        told = "".join(typed(line, newcomer) for line in lines[1:])
        assert "RUN: " in told
        assert "== rank 0" in told
        job = json.loads((run / "slurm" / "job.json").read_text())["job"]
        wait_for(lambda: all_jobs()[job]["JobState"] == "CANCELLED", "the end")
        plain = re.search(r"`(sbatch [^`]*)`", text)
        assert plain
        fits = "--ntasks-per-node=1 --gpus-per-node=1 --cpus-per-task=1"
        second = plain[1].replace("--run RUN", "--run SECOND").replace("sbatch ", f"sbatch {fits} ", 1)
        number = typed(f"{second} {SMALL}", newcomer).split()[-1]
        wait_for(lambda: all_jobs()[number]["JobState"] == "COMPLETED", "the job of sbatch")
        assert json.loads((newcomer / "SECOND" / "status.json").read_text())["world"] == 4
    finally:
        cluster("down")


def test_without_a_cluster(newcomer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block of slurm/README.md, in one shell; what it installs is here already."""
    monkeypatch.delenv("SLURM_CONF")
    monkeypatch.setenv("BLOODCELL_DEV_CLUSTER", str(newcomer / "dev"))
    lines = block("\n" + section("slurm/README.md", "**Without a cluster**"))
    assert lines[0].startswith("apt-get install")
    typed(
        "\n".join(line + (f" {SMALL}" if line.startswith("bloodcell submit") else "") for line in lines[1:]), newcomer
    )
    assert json.loads((newcomer / "RUN" / "status.json").read_text())["state"] == "done"
    assert not (newcomer / "dev").exists(), "down removes all of it"
