"""`bloodcell bench gpu`: what a GPU shows, in order of weight; an interrupted one goes on where it was.

First the tests marked `gpu`, then networks on real images beside the same step on tensors that lie on the device (and
timm's network in a bare loop), then decoding and augmenting alone.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jobs.bench.result import Result, Row
from shards.errors import BadInput, EnvironmentFault

MODELS = {"resnet50": "resnet50", "mobilenet_v2": "mobilenetv2_100"}
"""Networks of the zoo that are measured, and the same ones of timm."""

TESTS = Path(__file__).resolve().parents[2] / "tests"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bloodcell bench gpu`."""
    parser.add_argument("set", type=Path, metavar="SET", help="shard set; its training images are used")
    parser.add_argument("--state", type=Path, default=Path("bench-gpu.json"), help="finished parts (bench-gpu.json)")
    parser.add_argument("--size", type=int, default=224, help="height and width of the input, pixels (224)")
    parser.add_argument("--batch", type=int, default=256, help="images in a micro-batch (256)")
    parser.add_argument("--steps", type=int, default=60, help="steps in each repeat (60)")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each (5)")
    parser.add_argument("--threads", type=int, default=0, help="decoding threads; 0 is all cores but two, at most 16")


def run_arguments(parsed: argparse.Namespace) -> Result:
    """Run what is left to be measured.

    Raises:
        EnvironmentFault: there is no CUDA device.
        BadInput: no set, a number is too small, or the kept measurements are of another device.
    """
    import torch

    if not torch.cuda.is_available():
        raise EnvironmentFault("no CUDA device", "bench gpu", "start it where there is one")
    from bloodcell.data.shardset import ShardSet
    from jobs.bench import gpu_parts
    from jobs.bench.resuming import resumed
    from shards.parallel import available_cores

    if min(parsed.size, parsed.batch, parsed.steps, parsed.repeats) < 1:
        raise BadInput("a number is too small", "bench gpu", "give numbers above 0")
    shards = ShardSet.open(parsed.set)
    threads = parsed.threads or max(1, min(16, available_cores() - 2))
    how = gpu_parts.How(shards, parsed.size, parsed.batch, parsed.steps, parsed.repeats, threads)
    parts: dict[str, Callable[[], list[Row]]] = {"tests": tests}
    for ours, theirs in MODELS.items():
        parts[f"{ours}, plain"] = partial(gpu_parts.network, how, ours, theirs, compiled=False)
        parts[f"{ours}, compiled"] = partial(gpu_parts.network, how, ours, theirs, compiled=True)
    parts["images"] = partial(gpu_parts.images, how)
    shape = {"size": parsed.size, "batch": parsed.batch, "steps": parsed.steps, "repeats": parsed.repeats}
    about = {"device": torch.cuda.get_device_name(), "set": shards.info.fingerprint, "threads": threads, **shape}
    rows = resumed(parts, parsed.state, about)
    return Result(f"bloodcell bench gpu {parsed.set} {' '.join(f'--{k} {v}' for k, v in shape.items())}", rows)


def tests() -> list[Row]:
    """Run the tests that need a GPU; without a checkout there are none to run."""
    if not TESTS.is_dir():
        return []
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(TESTS)]
    said = subprocess.run(words, capture_output=True, text=True, cwd=TESTS.parent, check=False).stdout
    counts = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|failed|errors?)\b", said)}
    failed = sum(number for kind, number in counts.items() if kind != "passed")
    return [Row("gpu tests, passed", counts.get("passed", 0), "tests"), Row("gpu tests, failed", failed, "tests")]
