"""Several workers carry out one sweep: a killed one gives its trial back, and none is trained twice to its end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from jobs.sweep.leases import Leases
from shards.errors import BadInput
from tests.conftest import command
from tests.jobs.conftest import verb

RECIPE = """
[model]
name = "judged_net:build"
[data]
size = 32
micro_batch = 8
[train]
micro_batches = 6
[engine]
threads = 1
[tracking]
wandb = "off"
log_every = 1
[sweep]
trials = 3
epochs = 2
[sweep.space]
"optim.lr" = { low = 1e-4, high = 1e-1, log = true }
"""


@pytest.fixture
def begun(tmp_path: Path, small_set: Path, judged_net: None) -> Path:
    """A sweep that was begun, and not gone on with."""
    from jobs.sweep.cli import asked
    from jobs.sweep.stored import make, settle
    from tests.jobs.conftest import parsed

    (tmp_path / "searched.toml").write_text(RECIPE)
    out = tmp_path / "sweep"
    given = parsed("sweep", tmp_path / "searched.toml", "--data", small_set, "--out", out)
    begun = asked(given)
    make(out)
    settle(out, *begun, 1)
    return out


def journal(folder: Path) -> list[dict[str, Any]]:
    path = folder / "journal.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def worker(out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command("sweep", "--out", out, "--join", "--silence", 6), stderr=subprocess.DEVNULL)


def test_a_killed_worker_gives_its_trial_back(begun: Path) -> None:
    doomed = worker(begun)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (begun / "trials" / "0000" / "heartbeat.json").exists():
        time.sleep(0.02)
    doomed.send_signal(signal.SIGKILL)
    doomed.wait()
    assert (begun / "trials" / "0000.lease").exists()
    with pytest.raises(BadInput, match="--epochs changes a sweep that is under way"):
        verb("sweep", "--out", begun, "--join", "--epochs", 5)
    others = [worker(begun), worker(begun)]
    assert [one.wait(timeout=240) for one in others] == [0, 0]
    ends = Counter(record["trial"] for record in journal(begun) if record["event"] == "reached")
    assert ends == dict.fromkeys(range(3), 1)
    assert not list(begun.glob("trials/*.lease"))
    assert (begun / "report.html").exists()
    attempts = [json.loads(path.read_text())["attempt"] for path in sorted(begun.glob("trials/*/status.json"))]
    assert attempts == [2, 1, 1], "the trial of the killed worker was started again, and no other"


@pytest.mark.slow
def test_a_preempted_worker_saves_and_gives_its_trial_back(begun: Path) -> None:
    first = worker(begun)
    heart = begun / "trials" / "0000" / "heartbeat.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not heart.exists() or json.loads(heart.read_text())["step"] < 2):
        time.sleep(0.02)
    first.send_signal(signal.SIGUSR2)
    assert first.wait(timeout=60) == 85
    assert not list(begun.glob("trials/*.lease"))
    assert json.loads((begun / "trials" / "0000" / "status.json").read_text())["state"] == "stopped"
    result = verb("sweep", "--out", begun)
    assert result["finished"] == 3


def test_leases(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    ours, theirs = Leases(tmp_path, "one", 1), Leases(tmp_path, "two", 600)
    with ours.turn():
        lease = ours.take(3)
    with ours.alive(lease) as lost:
        before, end = lease.path.read_text(), time.monotonic() + 60
        while lease.path.read_text() == before:
            assert time.monotonic() < end, "no beat"
            time.sleep(0.05)
        assert theirs.held() == {3: "one"}
        assert not lost.is_set()
        with theirs.turn():  # as if ours had been suspended
            theirs.take(3)
        assert lost.wait(timeout=60)
        assert not ours.mine(lease)
    ours.give_back(lease)
    assert ours.held() == {3: "two"}
    time.sleep(1.1)
    assert ours.held() == {}, "nobody has beaten for a second"
    with theirs.turn():
        theirs.take(4)
    assert Leases(tmp_path, "two", 600).held() == {}, "a worker that starts again has lost what it had"


def test_one_worker_waits_for_what_others_may_leave(tmp_path: Path) -> None:
    one, other = (Leases(tmp_path, name, 1) for name in "ab")
    with one.last_waiter() as first, one.last_waiter() as again, other.last_waiter() as second:
        assert (first, again, second) == (True, True, False)
    with other.last_waiter() as now:
        assert now


def test_two_processes_take_turns(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from jobs.sweep.leases import Leases
with Leases(Path({str(tmp_path)!r}), "other", 1).turn():
    Path({str(tmp_path / "had")!r}).touch()
"""
    with Leases(tmp_path, "one", 1).turn():
        other = subprocess.Popen([sys.executable, "-c", code])
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=2)
        assert not (tmp_path / "had").exists()
    assert other.wait(timeout=60) == 0
    assert (tmp_path / "had").exists()
