"""`bloodcell demo`: from nothing to a report in one command, with every part real: draw, pack, two ranks, judge."""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from jobs.launch import bloodcell, call, torchrun
from shards.console import say
from shards.errors import BadInput

RECIPE = "resnet10t"


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of demo."""
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="where everything goes (runs/demo)")
    parser.add_argument("--images", type=int, default=1600, help="images to draw (1600)")
    parser.add_argument("--patients", type=int, default=80, help="patients they are drawn from (80)")
    parser.add_argument("--size", type=int, default=96, help="their height and width in pixels (96)")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the training images (6)")
    parser.add_argument("--ranks", type=int, default=2, choices=(1, 2), help="training processes (2)")
    parser.add_argument("--force", action="store_true", help="remove an earlier demo in --output first")


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Draw, pack, train, evaluate; return what was reached and where it is."""
    output: Path = parsed.output
    if output.exists():
        if not parsed.force:
            raise BadInput("an earlier demo lies here", output, "add --force to replace it, or choose another --output")
        shutil.rmtree(output)
    begin = time.monotonic()
    images, shards, trained = output / "images", output / "set", output / "run"
    output.mkdir(parents=True)
    say("1/4 drawing smears")
    drawn = ["--images", parsed.images, "--patients", parsed.patients, "--size", parsed.size]
    call(bloodcell("synth", str(images), *map(str, drawn)), "synth")
    say("2/4 packing: cleaned, split by patient, audited")
    patients = ["--table", str(images / "truth.csv"), "--group-column", "patient"]
    packed = call(bloodcell("pack", str(images), str(shards), *patients), "pack")
    say(f"3/4 training on {parsed.ranks} ranks")
    flags = ["--data.size", str(parsed.size), "--train.epochs", str(parsed.epochs)]
    call(torchrun(parsed.ranks, "train", RECIPE, "--data", str(shards), "--run", str(trained), *flags), "train")
    say("4/4 evaluating")
    result = call(bloodcell("evaluate", str(trained), "--split", "test"), "evaluate")
    accuracy = result["metrics"]["accuracy"]
    seconds = time.monotonic() - begin
    lines = [
        f"test accuracy {accuracy['value']:.1%} (95 % interval {accuracy['low']:.1%} to {accuracy['high']:.1%}) "
        f"on {result['samples']} drawn images of {result['groups']} patients never seen in training; chance is 25 %",
        f"done in {seconds:.0f} s",
        f"the set:  {packed['report']}",
        f"the run:  {trained / 'report.html'}",
    ]
    value = {"accuracy": accuracy, "samples": result["samples"], "seconds": round(seconds, 1), "output": str(output)}
    return value, lines
