"""The runs of the rows as processes of this machine: planned, started, and gone on with where something is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bloodcell.config import Flat
from jobs.folds import POOLED
from jobs.launch import bloodcell
from jobs.reproduce.rows import Row
from jobs.sweep.runner import start
from shards.console import say

POLL_SECONDS = 0.2


@dataclass
class Task:
    """One process: a training, or the average of finished trainings.

    Attributes:
        row: what it belongs to.
        seed: of the training.
        folder: of the run, or of its folds, or of the average.
        data: the set.
        folds: how many folds are trained; 0 for a set without.
        flags: config fields of the training.
        members: folders of the trainings that are averaged.
        small: remove checkpoints when it is done.
        failed: why it failed, or empty.
    """

    row: Row
    seed: int
    folder: Path
    data: Path
    folds: int = 0
    flags: Flat = field(default_factory=dict)
    members: list[Path] = field(default_factory=list)
    small: bool = False
    failed: str = ""

    @property
    def result(self) -> Path:
        """The folder that holds evaluation.json in the end."""
        return self.folder / POOLED if self.folds and not self.members else self.folder

    @property
    def runs(self) -> list[Path]:
        """The run folders of the training."""
        return [self.folder / f"fold{fold}" for fold in range(self.folds)] or [self.folder]

    @property
    def done(self) -> bool:
        """Whether nothing is missing."""
        judged = read(self.result / "evaluation.json").get("splits", {})
        if self.members or self.folds:  # the validation part is judged first
            return "test" in judged
        return bool(judged) and _state(self.folder) == "done"

    @property
    def command(self) -> list[str]:
        """The command line."""
        if self.members:
            runs = [folder / f"fold{fold}" for fold in range(self.folds) for folder in self.members] or self.members
            return bloodcell("evaluate", *map(str, runs), "--output", str(self.folder))
        flags = {**self.flags, "train.seed": self.seed}
        words = [word for key, value in flags.items() for word in (f"--{key}", _word(value))]
        if self.folds:
            words += ["--folds", "all"]
        return bloodcell("train", self.row.recipe, "--data", str(self.data), "--run", str(self.folder), *words)


def carry_out(tasks: list[Task], workers: int) -> None:
    """Run what is not done, `workers` processes at once; a task whose members failed, fails. Each notes why."""
    waiting = [task for task in tasks if not task.done and not task.failed]
    running: list[tuple[Task, subprocess.Popen, float]] = []
    if len(waiting) < len(tasks):
        say(f"{sum(task.done for task in tasks)} of {len(tasks)} runs are done already")
    try:
        while waiting or running:
            for task in [task for task in waiting if len(running) < workers and _ready(task, tasks)]:
                if len(running) == workers:
                    break
                waiting.remove(task)
                running.append((task, _start(task), time.monotonic()))
            ended = [entry for entry in running if entry[1].poll() is not None]
            for task, process, begin in ended:
                running.remove((task, process, begin))
                _ended(task, process.returncode)
                how = f"failed: {task.failed}" if task.failed else f"done in {time.monotonic() - begin:.0f} s"
                say(f"{task.row.name}, seed {task.seed}: {how} ({len(waiting)} to go)")
            waiting = [task for task in waiting if not _hopeless(task, tasks)]
            if not ended:
                time.sleep(POLL_SECONDS)
    finally:
        for _, process, _ in running:
            process.kill()
            process.wait()


def give_up(tasks: list[Task]) -> None:
    """Let trainings that did not come to their end fail, and say why: they were jobs of their own."""
    for task in tasks:
        for run in task.runs if not task.members else []:
            status = read(run / "status.json")
            if status.get("state") != "done":
                task.failed = str((status.get("outcome") or {}).get("what") or "it did not come to its end")


def _ready(task: Task, tasks: list[Task]) -> bool:
    return all(other.done for other in tasks if other.folder in task.members)


def _hopeless(task: Task, tasks: list[Task]) -> bool:
    failed = [other.row.name for other in tasks if other.folder in task.members and other.failed]
    if failed:
        task.failed = f"{', '.join(failed)} failed"
    return bool(failed)


def _start(task: Task) -> subprocess.Popen:
    task.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(task.folder.with_suffix(".log"), "ab") as output:
        return start(task.command, output, {"OMP_NUM_THREADS": "1", **os.environ})


def _ended(task: Task, code: int) -> None:
    if code or not task.done:
        log = task.folder.with_suffix(".log")
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        task.failed = lines[-1].removeprefix("bloodcell: ") if lines else f"code {code}"
    elif task.small and not task.members:
        for run in task.runs:
            shutil.rmtree(run / "checkpoints")


def _state(run: Path) -> str:
    return str(read(run / "status.json").get("state", ""))


def read(path: Path) -> dict[str, Any]:
    """Return a JSON object, empty if the file is missing or none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
