"""Two starts never train into one run: who holds it, who may follow a dead one, and what a suspended one does."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from bloodcell.engine.holder import LOCK_FILE, read_holder
from bloodcell.engine.lock import RunLock
from shards.errors import BadInput, EnvironmentFault, Stop
from tests.bloodcell.engine.held import assert_same, held, train

FORK = multiprocessing.get_context("fork")
BEAT, STALE = 0.2, 2.0


def hold_until(run: Path, end: Path, said: Path) -> None:
    """Take the lock, say how that went, and hold it until the file `end` is there."""
    lock = RunLock(run, BEAT, STALE)
    try:
        lock.take()
        text = "taken"
    except Stop as problem:
        text = f"{problem.code} {problem}"
    said.with_suffix(".new").write_text(text)
    said.with_suffix(".new").rename(said)
    while not end.exists():
        time.sleep(0.01)
    lock.release()


class Starts:
    """Processes that want one run.

    Args:
        folder: for the run, and what they say.
    """

    def __init__(self, folder: Path) -> None:
        self.run, self.folder, self.all = folder / "run", folder, list[BaseProcess]()

    def start(self) -> BaseProcess:
        """Start one more."""
        number = len(self.all)
        process = FORK.Process(
            target=hold_until, args=(self.run, self.folder / f"end{number}", self.folder / f"said{number}")
        )
        process.start()
        self.all.append(process)
        return process

    def said(self, process: BaseProcess) -> str:
        """Wait for what one says of its lock."""
        file = self.folder / f"said{self.all.index(process)}"
        deadline = time.monotonic() + 60
        while not file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return file.read_text()

    def end(self, process: BaseProcess) -> None:
        """Let one give its lock back."""
        (self.folder / f"end{self.all.index(process)}").touch()
        process.join(60)
        assert process.exitcode == 0


@pytest.fixture
def starts(tmp_path: Path) -> Iterator[Starts]:
    them = Starts(tmp_path)
    yield them
    for process in them.all:
        process.kill()
        process.join()


def to_another_machine(run: Path) -> None:
    """Let the holder be one of another machine, whose processes cannot be seen from here."""
    content = json.loads((run / LOCK_FILE).read_text())
    (run / "lock.new").write_text(json.dumps({**content, "host": "elsewhere"}))
    (run / "lock.new").rename(run / LOCK_FILE)


def test_of_many_starts_at_once_one_has_the_run(starts: Starts) -> None:
    many = [starts.start() for _ in range(8)]
    said = [starts.said(process) for process in many]
    assert said.count("taken") == 1
    holder = many[said.index("taken")]
    refused = [text for text in said if text != "taken"]
    assert all(f"another start trains into this run: pid {holder.pid} on " in text for text in refused)
    assert all(text.startswith("2 ") and f"`kill {holder.pid}`" in text for text in refused)
    starts.end(holder)
    assert sorted(path.name for path in starts.run.iterdir()) == []
    assert starts.said(starts.start()) == "taken"


def test_a_dead_holder_is_succeeded_at_once_by_one(starts: Starts, capfd: pytest.CaptureFixture[str]) -> None:
    dead = starts.start()
    assert starts.said(dead) == "taken"
    os.kill(dead.pid or 0, signal.SIGKILL)
    dead.join()
    said = [starts.said(process) for process in [starts.start() for _ in range(8)]]
    assert said.count("taken") == 1
    assert f"from pid {dead.pid} on " in " ".join(capfd.readouterr().err.split())


def test_a_suspended_holder_still_holds(starts: Starts) -> None:
    holder = starts.start()
    assert starts.said(holder) == "taken"
    os.kill(holder.pid or 0, signal.SIGSTOP)
    said = starts.said(starts.start())
    assert "suspended now" in said
    assert f"`kill -CONT {holder.pid}`" in said
    os.kill(holder.pid or 0, signal.SIGCONT)
    starts.end(holder)
    assert not (starts.run / LOCK_FILE).exists()


def test_a_holder_elsewhere_holds_while_it_gives_signs_of_life(starts: Starts) -> None:
    holder = starts.start()
    assert starts.said(holder) == "taken"
    to_another_machine(starts.run)
    second = starts.start()
    assert f"pid {holder.pid} on elsewhere" in starts.said(second)
    # Suspended, it cannot be told from a dead one; when it goes on it finds that the run is another's, and ends.
    os.kill(holder.pid or 0, signal.SIGSTOP)
    third = starts.start()
    assert starts.said(third) == "taken"
    os.kill(holder.pid or 0, signal.SIGCONT)
    holder.join(60)
    assert holder.exitcode == EnvironmentFault.code
    found, _ = read_holder(starts.run)
    assert found is not None
    assert found.pid == third.pid


def test_a_lock_that_was_removed_or_torn_is_no_way_in(starts: Starts) -> None:
    holder = starts.start()
    assert starts.said(holder) == "taken"
    (starts.run / LOCK_FILE).unlink()
    deadline = time.monotonic() + 60
    while read_holder(starts.run)[0] is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert starts.said(starts.start()).startswith("2 ")  # the holder has put it back
    starts.end(holder)
    (starts.run / LOCK_FILE).write_text("{")
    assert starts.said(starts.start()) == "taken"  # nobody touches it


def test_two_starts_of_one_job_try_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of a job whose first start has not ended yet is queued again (code 3); a stranger is refused (2)."""
    run = tmp_path / "run"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    first = RunLock(run)
    first.take()
    with pytest.raises(EnvironmentFault, match="job 7"):
        RunLock(run).take()
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with pytest.raises(BadInput, match="`scancel 7`"):
        RunLock(run).take()
    first.release()


def test_a_second_training_leaves_the_run_as_it_is(calm: Path, held_net: Path, small_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with held(held_net, small_set, run, "train-10-0") as training:
        pid = training.wait_for("train-10-0")
        files = ("config.json", "environment.json", "heartbeat.json", "metrics.jsonl", "status.json")
        before = {run / name: (run / name).read_bytes() for name in files}
        code, err = train(held_net, small_set, run, ranks=0)
        assert code == 2, err
        assert err.startswith(f"bloodcell: another start trains into this run: pid {pid} on ")
        assert len(err.splitlines()) == 1
        assert before == {path: path.read_bytes() for path in before}
        training.release()
        assert training.end()[0] == 0
    assert_same(run, calm)
    assert not (run / "lock").exists()
