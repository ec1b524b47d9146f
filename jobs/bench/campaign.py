"""The trainings of a fault campaign: each is hurt again and again, and must end as the one that nothing happened to."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.bench.injuries import INJURIES, LONGEST, Victim, start, stop_rank, wait
from jobs.bench.result import Row
from jobs.launch import bloodcell, call
from shards.console import say, warn
from shards.errors import Fault

STEPS_PER_EPOCH = 5
START_UP = 6.0
"""Seconds after a start within which a fault falls that shall hit the start-up."""

FAILURES = {
    "wrong weights": "with other final weights",
    "wrong samples": "with lost or doubled samples",
    "hung": "that did not end or did not go on",
    "no reference": "left out: the undisturbed one failed",
}
"""Unit of a row that says what went wrong -> the same in words."""

FLAGS = (
    *("--data.size", 32, "--data.micro_batch", 8, "--train.micro_batches", 6, "--train.patience", 0),
    *("--train.evaluate_every", 5, "--train.save_every", 7, "--tracking.log_every", 1, "--tracking.wandb", "off"),
    *("--engine.max_deaths", 0, "--engine.max_attempts", 0, "--engine.device", "cpu", "--engine.timeout", 90),
    *("--tracking.tensorboard", "false"),
)


@dataclass(frozen=True)
class Extent:
    """How long a campaign is.

    Attributes:
        faults: in all.
        per_run: how many hit one training.
        apart: steps between two faults are drawn below this.
        stall: seconds after which the watchdog of a training ends it when a peer stands still.
        early: share of the faults that fall into the start-up of a run, most of them right after another fault.
    """

    faults: int
    per_run: int
    apart: int = 12
    stall: float = 10.0
    early: float = 0.15

    @property
    def epochs(self) -> int:
        """Length of a training: enough for its faults, and for the steps that it does while one is on its way."""
        return 4 + self.per_run * self.apart // STEPS_PER_EPOCH


@dataclass(frozen=True)
class Truth:
    """What an undisturbed training ended with: weights by name, (step, loss) of every step, digest of its samples."""

    weights: dict[str, bytes]
    losses: list[tuple[int, float]]
    lineage: int


class Campaign:
    """The trainings of one campaign. Use as a context manager: what still runs at the end is killed.

    Args:
        folder: for the set and the logs.
        disk: the small file system with the runs, or None (then they lie in folder/runs all the same).
        extent: how many faults hit one training, and how far apart.
        keep: leave all runs in folder/ended; else only those that went wrong.
    """

    def __init__(self, folder: Path, disk: Path | None, extent: Extent, keep: bool) -> None:
        self.folder, self.disk, self.extent, self.keep = folder, disk, extent, keep
        self.faults = 0
        self._truths: dict[tuple[str, int], Truth | Fault] = {}
        self._victim: Victim | None = None
        self._shards: Path | None = None

    def __enter__(self) -> Campaign:
        return self

    def __exit__(self, *_: object) -> None:
        if self._victim is not None and not self._victim.ended():
            self._victim.kill()

    def part(self, name: str, strategy: str, ranks: int, kinds: list[str], rng: random.Random) -> list[Row]:
        """Train with these faults, on a second training if the first has ended before the last of them.

        Returns:
            A row each: a fault and the seconds until the run trained again (unit `s`), or that the next one came
            before (`hit again`); a training that was compared (`judged`); what went wrong (FAILURES).
        """
        try:
            truth = self.truth(strategy, ranks)
        except Fault as fault:
            warn(f"{name} is left out: {fault}")
            return [Row(f"{name}: {fault}", len(kinds), "no reference")]
        rows: list[Row] = []
        left = kinds[::-1]
        while left and not _failed(rows):
            run = self.folder / "runs" / (name if not rows else f"{name}-{len(left)}")
            rows += self.disturbed(run, strategy, ranks, left, rng)
            if not _failed(rows):
                rows += judged(run, truth)
            self.put_away(run, wrong=_failed(rows))
        return rows

    def truth(self, strategy: str, ranks: int) -> Truth:
        """Return what an undisturbed run of this kind ends with, trained when it is first asked for.

        Raises:
            Fault: it failed, and once more when it was tried again.
        """
        case = (strategy, ranks)
        if case not in self._truths:
            for name in (f"undisturbed-{strategy}-{ranks}", f"undisturbed-{strategy}-{ranks}-again"):
                self._truths[case] = found = self.undisturbed(self.folder / "runs" / name, strategy, ranks)
                if isinstance(found, Truth):
                    break
                warn(str(found))
        known = self._truths[case]
        if isinstance(known, Fault):
            raise known
        return known

    def undisturbed(self, run: Path, strategy: str, ranks: int) -> Truth | Fault:
        """Train to the end; return what came of it, or why nothing did."""
        victim = self.start(run, strategy, ranks)
        in_time = wait(victim.ended, 4 * LONGEST)
        if not in_time:
            victim.kill()
        failed = not in_time or victim.launcher.returncode
        truth = None if failed else Truth(_weights(run), _losses(run), _read(run / "status.json")["lineage"])
        self.put_away(run, wrong=truth is None)
        what = f"the undisturbed training {run.name} failed: {_last_lines(self.log(run))}"
        return truth or Fault(what, self.log(run), "see the log")

    def start(self, run: Path, strategy: str, ranks: int) -> Victim:
        """Start a training, or go on with it."""
        words = ["train", "handcrafted-resnet-dropout", "--data", self.shards(), "--run", run, *FLAGS]
        words += ["--train.epochs", self.extent.epochs, "--engine.stall", self.extent.stall]
        words += ["--engine.strategy", strategy]
        self._victim = start(run, self.disk, ranks, list(map(str, words)), self.log(run))
        return self._victim

    def shards(self) -> Path:
        """Return the set of all trainings, packed when it is first asked for."""
        if self._shards is None:
            images, shards = self.folder / "images", self.folder / "set"
            call(bloodcell("synth", str(images), "--images", "400", "--size", "32", "--patients", "40"), "synth")
            by_patient = ["--table", str(images / "truth.csv"), "--group-column", "patient", "--workers", "1"]
            call(bloodcell("pack", str(images), str(shards), "--split", "72/14/14", *by_patient), "pack")
            self._shards = shards
        return self._shards

    def log(self, run: Path) -> Path:
        """Return the file with what a training said."""
        return self.folder / f"{run.name}.log"

    def disturbed(self, run: Path, strategy: str, ranks: int, kinds: list[str], rng: random.Random) -> list[Row]:
        """Train with faults, taken from the end of `kinds`; return a row each, and one more if the run hangs."""
        rows: list[Row] = []
        last, begin = "", 0.0
        while True:
            trains = _trains(run)
            victim = self.start(run, strategy, ranks)
            # Nothing watches yet over a rank that stands still before the ranks have met: their collectives time out.
            if kinds and INJURIES[kinds[-1]] is not stop_rank and rng.random() < self.extent.early:
                wait(victim.ended, rng.uniform(0, START_UP))
                if last:
                    self.faults += 1
                    rows.append(Row(last, 0, "hit again"))
            else:
                if not wait(lambda: victim.ended() or trains()):  # noqa: B023 (called here)
                    return [*rows, self.hung(victim, f"does not train again after: {last}")]
                if last:
                    rows.append(self.recovered(run, last, time.monotonic() - begin))
                self.moment(victim, rng)
            if not kinds or victim.ended():
                break
            last, begin = kinds.pop(), time.monotonic()
            INJURIES[last](victim, rng)
            if not wait(victim.ended):
                return [*rows, self.hung(victim, f"did not end after: {last}")]
            if _read(run / "status.json").get("state") == "done":
                kinds.append(last)  # it came too late to hurt
                break
        return rows if wait(victim.ended, 4 * LONGEST) else [*rows, self.hung(victim, "does not end")]

    def moment(self, victim: Victim, rng: random.Random) -> None:
        """Let the training go on until the next fault."""
        goal = _step(victim.run) + rng.randrange(1, self.extent.apart)
        wait(lambda: victim.ended() or _step(victim.run) >= goal)
        time.sleep(rng.uniform(0, 0.1))

    def recovered(self, run: Path, kind: str, seconds: float) -> Row:
        """Note that a run trains again so long after a fault."""
        self.faults += 1
        say(f"{self.faults} of {self.extent.faults}: {run.name}: {kind}, training again after {seconds:.1f} s")
        return Row(kind, seconds, "s")

    def hung(self, victim: Victim, what: str) -> Row:
        """End a run that hangs."""
        victim.kill()
        return Row(f"{victim.run.name} {what}", 1, "hung")

    def put_away(self, run: Path, wrong: bool) -> None:
        """Make room on the small disk for the next run."""
        if (wrong or self.keep) and run.exists():
            (self.folder / "ended").mkdir(exist_ok=True)
            shutil.move(run, self.folder / "ended" / run.name)
        else:
            shutil.rmtree(run, ignore_errors=True)


def judged(run: Path, truth: Truth) -> list[Row]:
    """Compare weights, losses, steps and lineage with the undisturbed run's; return a row each."""
    status = _read(run / "status.json")
    rows = [Row(run.name, 1, "judged")]
    if status.get("state") != "done":
        said = status.get("outcome", {}).get("what", "it has left no word")
        return [*rows, Row(f"{run.name} failed: {said}", 1, "wrong weights")]
    if _weights(run) != truth.weights:
        rows.append(Row(f"{run.name}: other final weights", 1, "wrong weights"))
    if not status.get("lineage_proven") or status["lineage"] != truth.lineage:
        rows.append(Row(f"{run.name}: other samples", 1, "wrong samples"))
    if _losses(run) != truth.losses:
        rows.append(Row(f"{run.name}: metrics.jsonl has holes, doubles or other losses", 1, "wrong samples"))
    return rows


def _failed(rows: list[Row]) -> bool:
    return any(row.unit in FAILURES for row in rows)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _trains(run: Path) -> Callable[[], bool]:
    """Return what says whether the run, in the start that now follows, has done its first step."""
    from bloodcell.engine.watchdog import read_heartbeat

    before = int(_read(run / "status.json").get("attempt", 0))
    first: dict[str, Any] = {}

    def done() -> bool:
        beat = read_heartbeat(run)
        if beat.get("attempt", 0) > before and (first or beat["phase"] == "training"):
            first.setdefault("beat", beat)
        return bool(first) and beat != first["beat"]

    return done


def _step(run: Path) -> int:
    from bloodcell.engine.watchdog import read_heartbeat

    return int(read_heartbeat(run).get("step", 0))


def _weights(run: Path) -> dict[str, bytes]:
    from safetensors.numpy import load_file

    return {name: tensor.tobytes() for name, tensor in load_file(run / "model.safetensors").items()}


def _losses(run: Path) -> list[tuple[int, float]]:
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    records = [json.loads(line) for line in lines]
    return [(record["step"], record["train/loss"]) for record in records if "train/loss" in record]


def _last_lines(log: Path) -> str:
    with contextlib.suppress(OSError):
        return " | ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:])
    return "it said nothing"
