"""Whether a sweep finds the learning rate: what it chooses beside the best of a fine grid, trained on the same set."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from jobs.bench.result import Result, Row
from shards.errors import BadInput, CheckFailed

OBJECTIVE = "val/loss"
RECIPE = """\
[model]
name = "{model}"
[data]
size = {size}
micro_batch = 16
[optim]
name = "sgd"
momentum = 0.0
weight_decay = 0.0
warmup = 0.0
schedule = "constant"
[train]
epochs = {epochs}
micro_batches = 2
monitor = "{objective}"
[engine]
threads = 1
[tracking]
wandb = "off"
[sweep]
objective = "{objective}"
trials = {trials}
epochs = {epochs}
[sweep.space]
"optim.lr" = {{ low = {low}, high = {high}, log = true }}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bloodcell bench sweep`."""
    parser.add_argument("data", type=Path, metavar="SET", help="shard set with train and val")
    parser.add_argument("--model", default="handcrafted_resnet", help="trained with plain SGD (handcrafted_resnet)")
    parser.add_argument("--size", type=int, default=48, help="side of the images, pixels (48)")
    parser.add_argument("--epochs", type=int, default=10, help="of each training (10)")
    parser.add_argument("--points", type=int, default=9, help="learning rates of the grid (9)")
    parser.add_argument("--trials", type=int, default=9, help="of the sweep (9)")
    parser.add_argument("--method", default="tpe", help="of the sweep: random, tpe, asha or hyperband (tpe)")
    parser.add_argument("--low", type=float, default=1e-4, help="smallest learning rate (1e-4)")
    parser.add_argument("--high", type=float, default=1.0, help="largest (1)")


def run_arguments(args: argparse.Namespace) -> Result:
    """Run as the flags say.

    Raises:
        BadInput: fewer than 3 points, rates that make no sense, or what `train` and `sweep` raise.
        CheckFailed: no training of the grid came to an end.
    """
    if args.points < 3 or not 0 < args.low < args.high:
        raise BadInput(f"{args.points} points from {args.low:g} to {args.high:g}", "bench sweep", "give 3 or more")
    with tempfile.TemporaryDirectory(prefix="bloodcell-sweep-") as scratch:
        recipe = Path(scratch) / "grid.toml"
        names = ("model", "size", "epochs", "trials", "low", "high")
        recipe.write_text(RECIPE.format(objective=OBJECTIVE, **{name: getattr(args, name) for name in names}))
        grid = _grid(args, recipe, Path(scratch))
        rate, loss = _swept(args, recipe, Path(scratch) / "sweep")
    best = min(grid, key=lambda point: point[1])
    chosen = f"sweep ({args.method}, {args.trials} trials): learning rate"
    rows = [Row(f"grid, learning rate {rate:.3g}: val loss", loss, "nats") for rate, loss in grid]
    rows += [Row("best of the grid: learning rate", best[0], ""), Row("best of the grid: val loss", best[1], "nats")]
    rows += [Row(chosen, rate, "", None, None, "best of the grid: learning rate", rate / best[0])]
    rows += [Row("sweep: val loss", loss, "nats", None, None, "best of the grid: val loss", loss / best[1])]
    flags = f"--model {args.model} --size {args.size} --epochs {args.epochs} --points {args.points}"
    flags += f" --trials {args.trials} --method {args.method} --low {args.low:g} --high {args.high:g}"
    return Result(f"bloodcell bench sweep {args.data.name} {flags}", rows)


def _grid(args: argparse.Namespace, recipe: Path, folder: Path) -> list[tuple[float, float]]:
    """Return (learning rate, smallest validation loss) of every training that came to an end."""
    from jobs.cli import run_verb
    from shards.console import say
    from shards.errors import Fault

    found = []
    for number, rate in enumerate(np.geomspace(args.low, args.high, args.points).tolist()):
        place = folder / f"grid{number}"
        try:
            run_verb("train", [str(recipe), "--data", str(args.data), "--run", str(place), "--optim.lr", repr(rate)])
        except Fault as problem:  # a rate that is too large ends in a loss that is not finite
            say(f"learning rate {rate:.3g}: {problem}")
            continue
        records = [json.loads(line) for line in (place / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        found.append((rate, min(record[OBJECTIVE] for record in records if OBJECTIVE in record)))
    if not found:
        raise CheckFailed("no training of the grid came to an end", "bench sweep", "try smaller rates")
    return found


def _swept(args: argparse.Namespace, recipe: Path, folder: Path) -> tuple[float, float]:
    """Return the learning rate that a sweep chooses, and its validation loss."""
    from jobs.cli import run_verb

    words = [str(recipe), "--data", str(args.data), "--out", str(folder), "--method", args.method]
    best = run_verb("sweep", words)[0]["best"]
    return float(best["values"]["optim.lr"]), float(best["value"])
