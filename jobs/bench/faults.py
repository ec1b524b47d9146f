"""`bloodcell bench faults`: random faults over small trainings, which must all end with the undisturbed weights."""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from jobs.bench.campaign import FAILURES, Campaign, Extent
from jobs.bench.injuries import INJURIES, small_disk
from jobs.bench.result import Result, Row, measured, show
from jobs.bench.resuming import resumed
from shards.errors import BadInput, CheckFailed

QUICK = Extent(10, 5, apart=8, stall=8.0, early=0.0)
CASES = (("ddp", 2), ("zero2", 2), ("ddp", 3), ("zero1", 3), ("zero3", 2))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bloodcell bench faults`."""
    parser.add_argument("--faults", type=int, default=100, help="faults in all (100)")
    parser.add_argument("--per-run", type=int, default=10, help="faults that hit one training (10)")
    parser.add_argument("--seed", type=int, default=0, help="of what happens when (0)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK.faults} faults, over two trainings, for CI")
    parser.add_argument("--state", type=Path, metavar="FILE", help="keep what is done here; an interrupted one goes on")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the runs and their logs in this new folder")


def run_arguments(args: argparse.Namespace) -> Result:
    """Run the campaign as the flags say; arguments and errors as in `run`."""
    extent = QUICK if args.quick else Extent(args.faults, args.per_run)
    if args.keep:
        if args.keep.exists():
            raise BadInput("the folder exists already", args.keep, "choose another --keep")
        return run(extent, args.seed, args.keep, args.state, keep=True)
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        result = run(extent, args.seed, folder / "campaign", args.state)
    except CheckFailed:
        raise  # the logs, and the runs that went wrong, are left to be looked at
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    return result


def run(extent: Extent, seed: int, folder: Path, state: Path | None = None, keep: bool = False) -> Result:
    """Train, hurt, start again, until so many faults have happened; compare each run with an undisturbed one.

    Args:
        extent: how many faults, and over what.
        seed: of the kinds, moments and victims.
        folder: for the set, the runs and their logs.
        state: where finished trainings are noted (by default in `folder`); those that it has are not done again.
        keep: leave the runs in `folder`; else only those that went wrong stay.

    Raises:
        BadInput: fewer than one fault, or `state` is of another campaign.
        CheckFailed: a run ended with other weights or samples than the undisturbed one, or did not end; or an
            undisturbed one failed twice, and there was nothing to compare with.
    """
    if extent.faults < 1 or extent.per_run < 1:
        raise BadInput(f"{extent.faults} faults, {extent.per_run} a run", "bench faults", "give at least 1 of each")
    length = "--quick" if extent == QUICK else f"--faults {extent.faults} --per-run {extent.per_run}"
    command = f"bloodcell bench faults {length} --seed {seed}"
    kinds = _kinds(extent.faults, seed)
    parts: dict[str, Callable[[], list[Row]]] = {}
    with small_disk(folder / "runs") as disk, Campaign(folder, disk, extent, keep) as campaign:
        for number, begin in enumerate(range(0, len(kinds), extent.per_run)):
            strategy, ranks = CASES[number % len(CASES)]
            name = f"{number:03d}-{strategy}-{ranks}"
            dealt = kinds[begin : begin + extent.per_run]
            parts[name] = partial(campaign.part, name, strategy, ranks, dealt, random.Random(f"{seed} {number}"))
        seen = resumed(parts, state or folder / "faults.json", {"command": command})
    result = Result(command, _rows(seen))
    problems = [row.name for row in seen if row.unit in FAILURES]
    if problems:
        show(result)
        raise CheckFailed("; ".join(problems), folder, "see the logs there, and what is left of those runs in ended/")
    return result


def _kinds(faults: int, seed: int) -> list[str]:
    """Return the kinds of all faults, each as often as the others, shuffled."""
    names = list(INJURIES)
    kinds = [names[place % len(names)] for place in range(faults)]
    random.Random(seed).shuffle(kinds)
    return kinds


def _rows(seen: Sequence[Row]) -> list[Row]:
    """Return the table: what went wrong, and by kind the seconds from the fault until the run trained again."""
    recovered: dict[str, list[float]] = defaultdict(list)
    for row in seen:
        if row.unit == "s":
            recovered[row.name].append(row.value)
    again = [row for row in seen if row.unit == "hit again"]
    rows = [
        Row("faults", sum(map(len, recovered.values())) + len(again), "faults"),
        Row("faults that were followed by the next one before the run trained again", len(again), "faults"),
        Row("trainings hit", sum(row.unit == "judged" for row in seen), "runs"),
    ]
    rows += [Row(f"trainings {what}", sum(row.unit == unit for row in seen), "runs") for unit, what in FAILURES.items()]
    every = [seconds for group in recovered.values() for seconds in group]
    for kind, group in [*sorted(recovered.items()), *([("any fault", every)] if every else [])]:
        rows.append(measured(f"{kind} ({len(group)}): until it trains again", group, "s"))
    return rows
