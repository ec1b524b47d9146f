"""Trials as processes of this machine: started, watched, their results read from their run folders."""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bloodcell.config import Config, override
from bloodcell.runfolder import STOP_FILE
from jobs.launch import bloodcell
from jobs.slurm.control import without_job
from jobs.sweep.draws import values
from jobs.sweep.recipe import write_recipe
from jobs.sweep.schedulers import following
from jobs.sweep.settings import Settings
from jobs.sweep.trials import Journal
from shards.atomic import open_atomic
from shards.errors import BadInput, EnvironmentFault, Fault, Stopped

POLL_SECONDS = 0.2
PARENT_DIED = 1
"""PR_SET_PDEATHSIG of Linux: the signal that a process gets when the one that started it dies."""


@dataclass
class Running:
    """A trial's process: what it was told, since when it runs, which slot it takes."""

    process: subprocess.Popen
    epochs: int
    slot: int


@dataclass
class Runner:
    """Carries out a sweep.

    Attributes:
        folder: of the sweep.
        data: the set.
        base: the config that all trials share.
        settings: of the sweep.
        journal: what was done; it grows.
        workers: processes at once.
        devices: GPUs to share out among them; none on a CPU.
        flags: of every trial, for this machine alone.
        changed: called with the running trials' numbers when something has happened, and every second.
    """

    folder: Path
    data: Path
    base: Config
    settings: Settings
    journal: Journal
    workers: int
    devices: list[str]
    flags: list[str]
    changed: Callable[[set[int]], None]

    def run(self) -> None:
        """Train until the method has nothing left to train.

        Raises:
            BadInput: a trial refuses its settings; says which.
            EnvironmentFault: a trial died of its surroundings; starting again goes on.
        """
        running: dict[int, Running] = {}
        try:
            while True:
                self._fill(running)
                if not running:
                    return
                self._wait(running)
        finally:
            for trial in running.values():
                trial.process.kill()
                trial.process.wait()

    def trial_config(self, number: int) -> Config:
        """Return the config of a trial."""
        return override(self.base, self.journal.trials[number].values)

    def run_folder(self, number: int) -> Path:
        """Return the run folder of a trial."""
        return self.folder / "trials" / f"{number:04}"

    def _fill(self, running: dict[int, Running]) -> None:
        while len(running) < self.workers:
            due = following(self.settings, self.journal.trials, set(running))
            if due is None:
                return
            number, epochs = due
            if not self.send(number, epochs):
                continue
            taken = {trial.slot for trial in running.values()}
            slot = min(set(range(self.workers)) - taken)
            running[number] = Running(self.launch(number, epochs, slot), epochs, slot)
            self.changed(set(running))

    def send(self, number: int, epochs: int) -> bool:
        """Note that a trial is to train up to `epochs`; return whether it has to be started for that."""
        known = self.journal.trials
        drawn = known[number].values if number < len(known) else values(self.settings, number, known)
        self.journal.send(number, epochs, drawn)
        # Its process may have come to the end, and the sweep was killed before that was noted.
        return not self._read(number, epochs)

    def launch(self, number: int, epochs: int, slot: int) -> subprocess.Popen:
        """Start the process of a trial; `slot` chooses its GPU."""
        run = self.run_folder(number)
        run.mkdir(parents=True, exist_ok=True)
        recipe, log = run.with_suffix(".toml"), run.with_suffix(".log")
        if not recipe.exists():
            write_recipe(recipe, self.trial_config(number), [f"Trial {number} of a sweep."])
        if epochs < self.settings.epochs:
            with open_atomic(run / STOP_FILE, "w") as file:
                file.write(f"{epochs}\n")
        else:
            (run / STOP_FILE).unlink(missing_ok=True)
        environment = {"OMP_NUM_THREADS": "1", **without_job(os.environ)}  # a trial is no rank of a job around us
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        command = bloodcell("train", str(recipe), "--data", str(self.data), "--run", str(run), *self.flags)
        with open(log, "ab") as output:
            return start(command, output, environment)

    def _wait(self, running: dict[int, Running]) -> None:
        """Wait until a trial has ended; take in what it reached."""
        shown = time.monotonic()
        while True:
            ended = [number for number, trial in running.items() if trial.process.poll() is not None]
            for number in ended:
                trial = running.pop(number)
                self.take_in(number, trial)
            if ended:
                self.changed(set(running))
                return
            if time.monotonic() - shown >= 1:
                shown = time.monotonic()
                self.changed(set(running))
            time.sleep(POLL_SECONDS)

    def take_in(self, number: int, trial: Running) -> None:
        """Note what a trial whose process has ended reached; raises as `run`."""
        code = trial.process.returncode
        if code in (0, Stopped.code):
            self._came_through(number, trial.epochs)
            return
        run = self.run_folder(number)
        said, log = _reason(run, code), run.with_suffix(".log")
        if code == BadInput.code:
            tried = ", ".join(f"{key} = {value}" for key, value in self.journal.trials[number].values.items())
            raise BadInput(f"trial {number} cannot train: {said}", tried, "mend the recipe or the space")
        if code == EnvironmentFault.code or code < 0:
            raise EnvironmentFault(f"trial {number} ended: {said}", log, "start the same command again: it goes on")
        if code != Fault.code:
            raise Fault(f"trial {number} ended with code {code}: {said}", log, "the log says more")
        self.journal.fail(number, said)

    def _came_through(self, number: int, epochs: int) -> None:
        if self._read(number, epochs):
            return
        run = self.run_folder(number)
        if curve(run, self.settings.objective):
            raise EnvironmentFault(f"trial {number} was stopped", run / STOP_FILE, "start the same command to go on")
        self.journal.fail(number, f"no finite {self.settings.objective}")

    def _read(self, number: int, epochs: int) -> bool:
        """Note what a trial's run folder says it has reached; return whether it has come as far as it was sent."""
        run = self.run_folder(number)
        state, points = _status(run).get("state"), curve(run, self.settings.objective)
        if not points or (state != "done" and (state != "stopped" or points[-1][0] < epochs)):
            return False
        # The best so far, because it is the weights of that moment that a run keeps.
        sign = -1.0 if self.settings.smaller_is_better else 1.0
        self.journal.reach(number, epochs, max(sign * value for _, value in points), state == "done")
        return True


def curve(run: Path, name: str) -> list[tuple[float, float]]:
    """Return the (epoch, value) of a metric over a run so far; values that are not finite are left out."""
    from bloodcell.report.curves import read_metrics

    records = read_metrics(run / "metrics.jsonl")
    pairs = [(r.get("epoch"), r.get(name)) for r in records]
    return [(float(e), float(v)) for e, v in pairs if e is not None and v is not None and math.isfinite(v)]


def start(command: list[str], output: IO[bytes], environment: dict[str, str]) -> subprocess.Popen:
    """Start a process that is killed when this one dies, however it dies: two of them must never write into one run."""
    parent, library = os.getpid(), ctypes.CDLL(None)

    def tied() -> None:
        library.prctl(PARENT_DIED, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    bound = tied if sys.platform == "linux" else None
    return subprocess.Popen(command, stdout=output, stderr=output, env=environment, preexec_fn=bound)


@contextmanager
def alone(folder: Path, shared: bool = False) -> Iterator[None]:
    """Keep other processes from carrying out the same sweep, but for `shared` ones; raises BadInput if one does."""
    import fcntl

    with open(folder / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            raise BadInput("another process is at work here", folder, "wait for it, or choose another --out") from None
        yield


def _status(run: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((run / "status.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _reason(run: Path, code: int) -> str:
    """Return why a trial ended: from its status, or the last line of its log."""
    status = _status(run)
    if code > 0 and status.get("state") == "failed":
        return str(status["outcome"]["what"])
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    try:
        lines = run.with_suffix(".log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1].removeprefix("bloodcell: ") if lines else f"code {code}"
