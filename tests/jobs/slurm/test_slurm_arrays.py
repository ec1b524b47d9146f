"""Other verbs as arrays on a real Slurm: packing in parts, a sweep whose workers die, a reproduction."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import DevCluster, finished, wait_for

from jobs.slurm.control import all_jobs, slurm
from tests.conftest import bloodcell
from tests.jobs.test_reproduce import TINY
from tests.jobs.test_sweep_join import RECIPE, journal

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]


def submit(*words: object) -> dict[str, Any]:
    """Submit an array; return what `submit --json` says."""
    done = bloodcell("submit", *words, "--cluster", "dev", "--json")
    assert done.code == 0, done.err
    return done.json


def whole(sent: dict[str, Any]) -> dict[str, Any]:
    """What `finished` waits for: the array and the job that follows it."""
    return {**sent, "jobs": [*sent["jobs"], *([sent["last"]] if "last" in sent else [])]}


def test_a_set_packed_in_parts(dev_cluster: DevCluster, drawn: Path, tmp_path: Path) -> None:
    flags = ("--table", drawn / "truth.csv", "--group-column", "patient", "--split", "70/15/15", "--shard-samples", 50)
    sent = submit("pack", drawn, tmp_path / "set", *flags, "--jobs", 3)
    assert len(sent["jobs"]) == 3
    finished(whole(sent))
    assert bloodcell("pack", drawn, tmp_path / "alone", *flags).code == 0
    names = sorted(path.name for path in (tmp_path / "alone").glob("*.tar"))
    assert len(names) > 3
    for name in ("dataset.json", *names):
        assert (tmp_path / "set" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    again = bloodcell("submit", "pack", drawn, tmp_path / "set", *flags, "--cluster", "dev")
    assert (again.code, "the set exists already" in again.err) == (2, True)


def worker_of(out: Path, job: str) -> int:
    """Return the process of one worker of a sweep, 0 if it does not run."""
    array, _, task = job.partition("_")
    wanted = {f"SLURM_ARRAY_JOB_ID={array}".encode(), f"SLURM_ARRAY_TASK_ID={task}".encode(), b"SLURM_PROCID=0"}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            variables = set((entry / "environ").read_bytes().split(b"\0"))
        except OSError:
            continue
        if f"{out}/slurm".encode() in words and b"srun" not in words[0] and wanted <= variables:
            return int(entry.name)
    return 0


def trained_by(out: Path, job: str) -> list[str]:
    """Return the trials that a worker holds."""
    leases = [(path.stem, path.read_text()) for path in out.glob("trials/*.lease")]
    return [name for name, text in leases if json.loads(text)["worker"] == f"job {job}"]


def test_a_sweep_with_a_killed_worker_and_preempted_ones(
    dev_cluster: DevCluster, judged_net: None, small_set: Path, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "searched.toml", tmp_path / "sweep"
    recipe.write_text(RECIPE.replace("trials = 3", "trials = 16"))
    sent = submit("sweep", recipe, "--data", small_set, "--out", out, "--jobs", 3, "--partition", "low")
    doomed = sent["jobs"][1]
    wait_for(lambda: any((out / "trials" / name / "heartbeat.json").exists() for name in trained_by(out, doomed)), "it")
    os.kill(worker_of(out, doomed), signal.SIGKILL)
    wait_for(lambda: sum(one["event"] == "reached" for one in journal(out)) >= 4, "four trials")
    asked = ["--partition=high", "--nodes=1", "--gpus-per-node=2", "--mem=1G", "--output=/dev/null"]
    slurm("sbatch", *asked, "--wrap", "sleep 2")
    finished(sent)
    started = {job: int(all_jobs()[job]["Restarts"]) for job in sent["jobs"]}
    assert started[doomed] >= 1
    assert sum(started.values()) >= 2, f"nobody was preempted: {started}"
    ends = Counter(one["trial"] for one in journal(out) if one["event"] == "reached")
    assert ends == dict.fromkeys(range(16), 1), "16 results, none twice"
    states = [json.loads(path.read_text())["state"] for path in out.glob("trials/*/status.json")]
    assert states == ["done"] * 16
    attempts = sum(json.loads(path.read_text())["attempt"] for path in out.glob("trials/*/status.json"))
    assert 17 <= attempts <= 16 + sum(started.values())
    assert (out / "best.toml").exists()
    assert (out / "report.html").exists()
    assert not list(out.glob("trials/*.lease"))


def test_a_reproduction(
    dev_cluster: DevCluster, judged_net: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "table"
    sent = submit("reproduce", "ensemble", "--quick", "--out", out, *TINY, "--data.sampling=6")
    assert len(sent["jobs"]) == 3
    finished(whole(sent))
    rows = {row["row"]: row for row in json.loads((out / "table.json").read_text())["rows"]}
    assert set(rows) == {"ensemble", "efficientnet_v2_s", "xception", "nasnet_mobile"}
    assert not [row for row in rows.values() if row["failed"]]
    attempts = [json.loads(path.read_text())["attempt"] for path in out.glob("*/seed0/status.json")]
    assert attempts == [1, 1, 1], "the job that follows trains nothing"


def test_an_array_is_cancelled_as_one(
    dev_cluster: DevCluster, judged_net: None, small_set: Path, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "searched.toml", tmp_path / "sweep"
    recipe.write_text(RECIPE.replace("epochs = 2", "epochs = 200"))
    sent = submit("sweep", recipe, "--data", small_set, "--out", out, "--jobs", 2)
    wait_for(lambda: len(list(out.glob("trials/*/heartbeat.json"))) == 2, "two trials")
    assert bloodcell("status", out, "--json").json["runs"][1]["run"].endswith("0001")
    assert bloodcell("cancel", out).code == 0
    wait_for(lambda: all(all_jobs()[job]["JobState"] == "CANCELLED" for job in sent["jobs"]), "the end")


def test_through_sbatch(dev_cluster: DevCluster, judged_net: None, small_set: Path, tmp_path: Path) -> None:
    """The other rendering, from a copy of the code; the last worker writes the report."""
    recipe, out = tmp_path / "searched.toml", tmp_path / "sweep"
    recipe.write_text(RECIPE)
    how = ("--jobs", 2, "--through", "sbatch", "--snapshot")
    sent = submit("sweep", recipe, "--data", small_set, "--out", out, *how)
    assert (out / "slurm" / "code" / "jobs" / "cli.py").exists()
    finished(sent)
    assert (out / "report.html").exists()
