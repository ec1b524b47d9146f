"""`bloodcell bench train`: the time to a result on a set, whole commands, beside a plain loop; interleaved over seeds.

Both start from the same weights and see the same training images. What counts is all of a process: its start, decoding,
training, and judging val and test. The recipe was chosen on val; test is only reported.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.bench.result import Result, Row, measured, median
from shards.errors import BadInput, EnvironmentFault
from shards.parallel import available_cores

RECIPE, PLAIN = "quick", "plain loop"


@dataclass(frozen=True)
class Trial:
    """What one whole command took (seconds) and reached (shares that are right)."""

    cpu: float
    wall: float
    val: float
    test: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bloodcell bench train`."""
    parser.add_argument("set", type=Path, metavar="SET", help="shard set with train, val and test")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of MobileNetV2, a file")
    parser.add_argument("--recipe", default=RECIPE, help=f"recipe that is compared with the plain loop ({RECIPE})")
    parser.add_argument("--seeds", type=int, default=3, help="repeats, each with a seed of its own (3)")
    parser.add_argument("--size", type=int, default=128, help="height and width of the plain loop's images (128)")
    parser.add_argument("--epochs", type=int, default=4, help="of the plain loop (4)")
    parser.add_argument("--threads", type=int, default=available_cores(), help="torch threads of both (all cores)")


def run_arguments(parsed: argparse.Namespace) -> Result:
    """Run the benchmark.

    Raises:
        BadInput: no set, no weights, or no seeds.
        EnvironmentFault: a command failed; its last line is in the message.
    """
    from bloodcell.data.shardset import ShardSet
    from jobs.train import recipe_file

    if parsed.seeds < 1:
        raise BadInput("there must be a seed", "--seeds", "give at least 1")
    if not parsed.weights.is_file():
        raise BadInput("no such file of weights", parsed.weights, "name one with --weights")
    info = ShardSet.open(parsed.set).info
    for name in ("train", "val", "test"):
        info.count(name)
    recipe_file(parsed.recipe)
    ours, plain = f"bloodcell train {Path(parsed.recipe).stem}", PLAIN
    trials: dict[str, list[Trial]] = {plain: [], ours: []}
    with tempfile.TemporaryDirectory() as place:
        for seed in range(parsed.seeds):
            trials[plain].append(trial(plain_command(parsed, seed)))
            trials[ours].append(trial(own_command(parsed, seed, Path(place) / str(seed))))
    return Result(_command(parsed), rows(trials, plain))


def plain_command(parsed: argparse.Namespace, seed: int) -> list[str]:
    """Return the words after `python` that train by the plain loop."""
    flags = ("--seed", seed, "--size", parsed.size, "--epochs", parsed.epochs, "--threads", parsed.threads)
    return ["-m", "jobs.bench.plain", str(parsed.set), str(parsed.weights), *map(str, flags)]


def own_command(parsed: argparse.Namespace, seed: int, run: Path) -> list[str]:
    """Return the words after `python` that train the recipe."""
    flags = ("--model.weights", parsed.weights.resolve(), "--train.seed", seed, "--engine.threads", parsed.threads)
    words = ("train", parsed.recipe, "--data", parsed.set, "--run", run, *flags, "--tracking.wandb", "off", "--json")
    return ["-m", "jobs.cli", *map(str, words)]


def trial(words: Sequence[str]) -> Trial:
    """Run a command that prints one JSON object; return its times (with those of its own processes) and its result."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begin = time.perf_counter()
        process = subprocess.Popen([sys.executable, *words], stdout=out, stderr=err)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode != 0:
            said = err.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise EnvironmentFault(f"a command ended with {process.returncode}: {said[-1]}", " ".join(words[:3]))
        found = json.loads(out.read())
    shares = {name: _accuracy(found, name) for name in ("val", "test")}
    return Trial(used.ru_utime + used.ru_stime, wall, **shares)


def _accuracy(found: dict[str, object], split: str) -> float:
    metrics = found.get("metrics")
    if isinstance(metrics, dict):
        return float(metrics[split]["accuracy"]["value"])
    return float(str(found[split]))


def rows(trials: dict[str, list[Trial]], baseline: str) -> list[Row]:
    """Return the table: times with ratios, shares that are right, and how far they lie apart, seed by seed."""
    table = []
    for title, unit, figure in (("CPU time", "CPU-s", "cpu"), ("wall", "s", "wall")):
        against = [getattr(one, figure) for one in trials[baseline]]
        for name, done in trials.items():
            values = [getattr(one, figure) for one in done]
            table.append(measured(f"{name}, {title}", values, unit, f"{baseline}, {title}", against))
    for split in ("val", "test"):
        for name, done in trials.items():
            table.append(measured(f"{name}, accuracy on {split}", [100 * getattr(one, split) for one in done], "%"))
        medians = {name: median([100 * getattr(one, split) for one in done]) for name, done in trials.items()}
        for name in trials:
            if name != baseline:
                apart = medians[name] - medians[baseline]
                table.append(Row(f"{name} less {baseline}, medians on {split}", apart, "points"))
    return table


def _command(parsed: argparse.Namespace) -> str:
    flags = f"--recipe {parsed.recipe} --seeds {parsed.seeds} --size {parsed.size} --epochs {parsed.epochs}"
    return f"bloodcell bench train {parsed.set} --weights {parsed.weights} {flags} --threads {parsed.threads}"
