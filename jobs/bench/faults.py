"""`bloodcell bench faults`: random faults over small trainings, which must all end with the undisturbed weights."""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.bench.injuries import INJURIES, LONGEST, Victim, small_disk, start, wait
from jobs.bench.result import Result, Row, measured
from jobs.launch import bloodcell, call
from shards.console import say
from shards.errors import BadInput, CheckFailed, Fault


@dataclass(frozen=True)
class Extent:
    """How long a campaign is.

    Attributes:
        faults: in all.
        per_run: how many hit one training.
        apart: steps between two faults are drawn below this.
        stall: seconds after which the watchdog of a training ends it when a peer stands still.
    """

    faults: int
    per_run: int
    apart: int = 30
    stall: float = 15.0

    @property
    def epochs(self) -> int:
        """Length of a training: enough for its faults, and for the steps that it does while one is on its way."""
        return 4 + self.per_run * self.apart // STEPS_PER_EPOCH


STEPS_PER_EPOCH = 5
QUICK = Extent(10, 5, apart=8, stall=8.0)
CASES = (("ddp", 2), ("zero2", 2), ("ddp", 3), ("zero1", 3), ("zero3", 2))

FLAGS = (
    *("--data.size", 32, "--data.micro_batch", 8, "--train.micro_batches", 6, "--train.patience", 0),
    *("--train.evaluate_every", 5, "--train.save_every", 7, "--tracking.log_every", 1, "--tracking.wandb", "off"),
    *(
        "--engine.max_deaths",
        0,
        "--engine.max_attempts",
        0,
        "--engine.device",
        "cpu",
        "--tracking.tensorboard",
        "false",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bloodcell bench faults`."""
    parser.add_argument("--faults", type=int, default=100, help="faults in all (100)")
    parser.add_argument("--per-run", type=int, default=10, help="faults that hit one training (10)")
    parser.add_argument("--seed", type=int, default=0, help="of what happens when (0)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK.faults} faults, over two trainings, for CI")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the runs and their logs in this new folder")


def run_arguments(args: argparse.Namespace) -> Result:
    """Run the campaign as the flags say; arguments and errors as in `run`."""
    extent = QUICK if args.quick else Extent(args.faults, args.per_run)
    if args.keep:
        if args.keep.exists():
            raise BadInput("the folder exists already", args.keep, "choose another --keep")
        return run(extent, args.seed, args.keep)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        return run(extent, args.seed, Path(folder) / "campaign")


@dataclass
class Account:
    """What the campaign has seen: seconds from fault to training again by kind of fault, and everything wrong."""

    recovered: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    wrong_weights: list[str] = field(default_factory=list)
    wrong_samples: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    runs: int = 0

    @property
    def faults(self) -> int:
        """Faults so far."""
        return sum(map(len, self.recovered.values()))


def run(extent: Extent, seed: int, folder: Path) -> Result:
    """Train, hurt, start again, until so many faults have happened; compare each run with an undisturbed one.

    Args:
        extent: how many faults, and over what.
        seed: of the kinds, moments and victims.
        folder: for the set, the runs and their logs.

    Raises:
        BadInput: fewer than one fault.
        CheckFailed: a run ended with other weights or samples than the undisturbed one, or did not end.
    """
    if extent.faults < 1 or extent.per_run < 1:
        raise BadInput(f"{extent.faults} faults, {extent.per_run} a run", "bench faults", "give at least 1 of each")
    account = Account()
    kinds = _kinds(extent.faults, seed)
    with small_disk(folder / "runs") as disk:
        campaign = Campaign(folder, disk, extent, account)
        number = 0
        while kinds:
            strategy, ranks = CASES[number % len(CASES)]
            campaign.disturbed(number, strategy, ranks, kinds, random.Random(f"{seed} {number}"))
            number += 1
    problems = account.wrong_weights + account.wrong_samples + account.hung
    if problems:
        raise CheckFailed("; ".join(problems), folder, "see the logs there (--keep leaves them)")
    length = "--quick" if extent == QUICK else f"--faults {extent.faults} --per-run {extent.per_run}"
    return Result(f"bloodcell bench faults {length} --seed {seed}", _rows(account))


class Campaign:
    """The trainings of one campaign.

    Args:
        folder: for the set and the logs.
        disk: the small file system with the runs, or None (then they lie in folder/runs all the same).
        extent: how many faults hit one training, and how far apart.
        account: where what happens is noted.
    """

    def __init__(self, folder: Path, disk: Path | None, extent: Extent, account: Account) -> None:
        self.folder, self.disk, self.extent, self.account = folder, disk, extent, account
        self.shards = folder / "set"
        images = folder / "images"
        call(bloodcell("synth", str(images), "--images", "400", "--size", "32", "--patients", "40"), "synth")
        by_patient = ["--table", str(images / "truth.csv"), "--group-column", "patient", "--workers", "1"]
        call(bloodcell("pack", str(images), str(self.shards), "--split", "72/14/14", *by_patient), "pack")
        self.references: dict[tuple[str, int], Path] = {}

    def arguments(self, run: Path, strategy: str) -> list[str]:
        """Return the words of the training command."""
        words = ["train", "handcrafted-resnet-dropout", "--data", self.shards, "--run", run, *FLAGS]
        words += ["--train.epochs", self.extent.epochs, "--engine.stall", self.extent.stall]
        return [str(word) for word in (*words, "--engine.strategy", strategy)]

    def reference(self, strategy: str, ranks: int) -> Path:
        """Return an undisturbed run of this kind, trained when it is first asked for."""
        if (strategy, ranks) not in self.references:
            run = self.folder / "runs" / f"undisturbed-{strategy}-{ranks}"
            victim = self.start(run, strategy, ranks)
            if not wait(victim.ended, 4 * LONGEST) or victim.launcher.returncode:
                victim.kill()
                raise Fault("the undisturbed training failed", self.log(run), "see the log (--keep leaves it)")
            self.references[strategy, ranks] = run
        return self.references[strategy, ranks]

    def start(self, run: Path, strategy: str, ranks: int) -> Victim:
        """Start a training, or go on with it."""
        return start(run, self.disk, ranks, self.arguments(run, strategy), self.log(run))

    def log(self, run: Path) -> Path:
        """Return the file with what a training said."""
        return self.folder / f"{run.name}.log"

    def disturbed(self, number: int, strategy: str, ranks: int, kinds: list[str], rng: random.Random) -> None:
        """Train with faults, taken from the end of `kinds`, and compare the end with that of the undisturbed run."""
        reference = self.reference(strategy, ranks)
        run = self.folder / "runs" / f"{number:03d}-{strategy}-{ranks}"
        victim = self.start(run, strategy, ranks)
        for _ in range(min(self.extent.per_run, len(kinds))):
            self.moment(victim, rng)
            if victim.ended():
                break
            kind = kinds.pop()
            begin = time.monotonic()
            INJURIES[kind](victim, rng)
            if not wait(victim.ended):
                self.account.hung.append(f"{run.name}: did not end after: {kind}")
                victim.kill()
            before = _attempt(run)
            victim = self.start(run, strategy, ranks)
            if not wait(lambda: victim.ended() or (_attempt(run) > before and _trains(run))):  # noqa: B023 (called here)
                self.account.hung.append(f"{run.name}: does not train again after: {kind}")
                victim.kill()
                return
            seconds = time.monotonic() - begin
            self.account.recovered[kind].append(seconds)
            say(f"{self.account.faults}: {run.name}: {kind}, training again after {seconds:.1f} s")
        if not wait(victim.ended, 4 * LONGEST):
            self.account.hung.append(f"{run.name}: does not end")
            victim.kill()
        self.account.runs += 1
        self.judge(run, reference)

    def moment(self, victim: Victim, rng: random.Random) -> None:
        """Let the training go on until the next fault: mostly some steps, sometimes a time that hits the start-up."""
        goal = _step(victim.run) + rng.randrange(1, self.extent.apart)
        longest = rng.uniform(0, 8) if rng.random() < 0.15 else LONGEST
        wait(lambda: victim.ended() or _step(victim.run) >= goal, longest)
        time.sleep(rng.uniform(0, 0.1))

    def judge(self, run: Path, reference: Path) -> None:
        """Compare weights, losses, steps and lineage with the undisturbed run's."""
        status, undisturbed = _read(run / "status.json"), _read(reference / "status.json")
        if status.get("state") != "done":
            said = status.get("outcome", {}).get("what", "it has left no word")
            self.account.wrong_weights.append(f"{run.name} failed: {said}")
            return
        if _weights(run) != _weights(reference):
            self.account.wrong_weights.append(f"{run.name}: other final weights")
        if not status.get("lineage_proven") or status["lineage"] != undisturbed["lineage"]:
            self.account.wrong_samples.append(f"{run.name}: other samples")
        if _losses(run) != _losses(reference):
            self.account.wrong_samples.append(f"{run.name}: metrics.jsonl has holes, doubles or other losses")


def _kinds(faults: int, seed: int) -> list[str]:
    """Return the kinds of all faults, each as often as the others, shuffled."""
    names = list(INJURIES)
    kinds = [names[place % len(names)] for place in range(faults)]
    random.Random(seed).shuffle(kinds)
    return kinds


def _rows(account: Account) -> list[Row]:
    rows = [
        Row("faults", account.faults, "faults"),
        Row("trainings hit", account.runs, "runs"),
        Row("trainings with other final weights", len(account.wrong_weights), "runs"),
        Row("trainings with lost or doubled samples", len(account.wrong_samples), "runs"),
    ]
    for kind, seconds in sorted(account.recovered.items()):
        rows.append(measured(f"{kind} ({len(seconds)}): until it trains again", seconds, "s"))
    return rows


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _attempt(run: Path) -> int:
    return int(_read(run / "status.json").get("attempt", 0))


def _records(run: Path) -> list[dict[str, Any]]:
    try:
        text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    except OSError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _step(run: Path) -> int:
    steps = [record["step"] for record in _records(run) if "train/loss" in record]
    return steps[-1] if steps else 0


def _trains(run: Path) -> bool:
    """Whether the run as it was started last has done a step."""
    status = _read(run / "status.json")
    return status.get("state") == "training" or status.get("state") == "done"


def _weights(run: Path) -> dict[str, bytes]:
    from safetensors.numpy import load_file

    return {name: tensor.tobytes() for name, tensor in load_file(run / "model.safetensors").items()}


def _losses(run: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["train/loss"]) for record in _records(run) if "train/loss" in record]
