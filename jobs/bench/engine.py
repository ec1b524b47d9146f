"""`bloodcell bench engine`: what a training step costs beside a bare PyTorch DDP loop, and what else a run pays for.

Two ranks (or more) of this machine train one network on the same drawn images, held in memory: a bare loop around
DistributedDataParallel, our loop under DDP, and under ZeRO-0/1/2/3. They take turns, a few steps each, in the same
processes, so that a busy machine hits all of them alike; what counts is processor time, over all ranks. The bare loop
has the settings that make DDP cheapest (bucket views, static graph, no broadcast of buffers), and neither a gradient
norm nor a check that anything is finite, which ours has.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs.bench.result import Result, Row, measured
from shards.errors import BadInput, Fault

BARE = "bare DDP loop"
STRATEGIES = ("ddp", "zero0", "zero1", "zero2", "zero3")


@dataclass(frozen=True)
class Sizes:
    """What is measured: the network, pixels, images of a micro-batch, ranks, turns, steps of each turn, state saved."""

    model: str = "resnet10t"
    size: int = 96
    micro_batch: int = 16
    ranks: int = 2
    repeats: int = 20
    steps: int = 5
    strategies: tuple[str, ...] = STRATEGIES
    megabytes: int = 64
    device: str = "cpu"
    buckets: tuple[int, ...] = ()
    """Sizes of DDP's buckets, MiB, that are timed instead of strategies."""


QUICK = Sizes("cnn5", 32, 8, 2, 2, 2, ("ddp", "zero2"), 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bloodcell bench engine`."""
    parser.add_argument(
        "--model",
        nargs="+",
        default=[Sizes.model],
        help=f"zoo name of the network ({Sizes.model}); several with --real and --setting",
    )
    parser.add_argument(
        "--real", type=Path, metavar="SET", help="instead: train on a set's images beside tensors held in memory"
    )
    parser.add_argument("--size", type=int, default=Sizes.size, help="height and width, pixels (%(default)s)")
    parser.add_argument("--micro-batch", type=int, default=Sizes.micro_batch, help="images at once (%(default)s)")
    parser.add_argument("--ranks", type=int, default=Sizes.ranks, help="processes on this machine (%(default)s)")
    parser.add_argument("--repeats", type=int, default=Sizes.repeats, help="turns of each (%(default)s)")
    parser.add_argument("--steps", type=int, default=Sizes.steps, help="steps of a turn (%(default)s)")
    parser.add_argument(
        "--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES, help="which to time (all); ddp always is"
    )
    parser.add_argument(
        "--buckets", nargs="+", type=int, metavar="MIB", help="instead: our step under DDP with these engine.bucket_mb"
    )
    parser.add_argument(
        "--setting",
        choices=["compile", "channels-last", "fused"],
        help="instead: our steps with such a setting beside those without it, one process, all cores",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tiny network, few steps: whether it works, not how fast it is"
    )


def run_arguments(parsed: argparse.Namespace) -> Result:
    """Run the benchmark as the flags say; errors as in `run`."""
    if parsed.quick:
        return run(QUICK, "bloodcell bench engine --quick")
    if parsed.real:
        from jobs.bench import real

        return real.run(parsed.real, parsed.model, parsed.size, parsed.micro_batch, parsed.repeats, parsed.steps)
    if parsed.setting:
        from jobs.bench import settings

        numbers = parsed.size, parsed.micro_batch, parsed.repeats, parsed.steps
        return settings.run(parsed.setting, parsed.model, *numbers)
    if len(parsed.model) > 1:
        raise BadInput("one network at a time", "--model", "name one, or add --real SET or --setting")
    if parsed.buckets:
        return run_buckets(parsed)
    names = ("ddp", *(name for name in parsed.strategies if name != "ddp"))
    sizes = Sizes(parsed.model[0], parsed.size, parsed.micro_batch, parsed.ranks, parsed.repeats, parsed.steps, names)
    command = f"bloodcell bench engine --model {sizes.model} --size {sizes.size} --micro-batch {sizes.micro_batch}"
    command += f" --ranks {sizes.ranks} --repeats {sizes.repeats} --steps {sizes.steps}"
    return run(sizes, command + ("" if len(names) == len(STRATEGIES) else f" --strategies {' '.join(names)}"))


def run(sizes: Sizes, command: str) -> Result:
    """Draw images, let the ranks take turns, and return the rows.

    Raises:
        BadInput: a number is too small, or no such network.
        Fault: the ranks failed; with the last line that they wrote.
    """
    from jobs.bench.stall import stall_rows

    return Result(command, [*rows(steps(sizes)), *stall_rows(sizes.megabytes, sizes.repeats)])


def steps(sizes: Sizes) -> dict[str, Any]:
    """Draw images and let the ranks take turns; return what they measured, as `rows` takes it. Raises as `run` does."""
    from shards.pack import PackOptions, pack
    from shards.synth import SynthOptions, synthesise

    if min(sizes.ranks, sizes.steps, sizes.micro_batch) < 1 or sizes.repeats < 2:
        raise BadInput("a number is too small", "bench engine", "give at least 2 repeats, 1 of the others")
    with tempfile.TemporaryDirectory(prefix="bench-engine-") as scratch:
        place = Path(scratch)
        images = 4 * sizes.ranks * sizes.micro_batch
        synthesise(place / "images", SynthOptions(images=2 * images, size=sizes.size, patients=16), 2)
        options = PackOptions(split="50/50/0", table=str(place / "images" / "truth.csv"), group_column="patient")
        pack(place / "images", place / "set", options)
        return _measure(place, sizes)


def run_buckets(parsed: argparse.Namespace) -> Result:
    """Time our step under DDP with several sizes of gradient buckets, beside torch's own. Raises as `run` does."""
    from bloodcell.config import TORCHS_BUCKET

    if min(parsed.buckets) < 1:
        raise BadInput("a bucket is too small", "--buckets", "give whole MiB from 1 on")
    buckets = tuple(dict.fromkeys([*parsed.buckets, TORCHS_BUCKET]))
    sizes = Sizes(parsed.model[0], parsed.size, parsed.micro_batch, parsed.ranks, parsed.repeats, parsed.steps)
    found = steps(replace(sizes, strategies=("ddp",), buckets=buckets))
    base, table = f"buckets of {TORCHS_BUCKET} MiB", []
    for title, unit in (("step", "CPU-ms/step"), ("wall", "ms/step")):
        against = [1000 * value for value in found[title][base]]
        for name, seconds in found[title].items():
            values = [1000 * value for value in seconds]
            table.append(measured(f"{name}, {title}", values, unit, f"{base}, {title}", against))
    command = f"bloodcell bench engine --buckets {' '.join(map(str, parsed.buckets))} --model {sizes.model}"
    command += f" --size {sizes.size} --micro-batch {sizes.micro_batch} --ranks {sizes.ranks}"
    return Result(f"{command} --repeats {sizes.repeats} --steps {sizes.steps}", table)


def _measure(place: Path, sizes: Sizes) -> dict[str, Any]:
    (place / "sizes.json").write_text(json.dumps(asdict(sizes)))
    launcher = [sys.executable, "-m", "jobs.torchrun", "--standalone", "--nproc-per-node", str(sizes.ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, "-m", "jobs.bench.engine_ranks", str(place)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "Error" in line or "Fault" in line] or ["no reason given"]
        raise Fault(f"the ranks ended with code {done.returncode}: {said[0].strip()[:300]}", "bench engine")
    found: dict[str, Any] = json.loads((place / "found.json").read_text())
    return found


def rows(found: dict[str, Any]) -> list[Row]:
    """Return the rows of what the ranks measured: {"step": {name: CPU-s}, "wall": ..., "other": ...}."""
    table = []
    for title, unit in (("step", "CPU-ms/step"), ("wall", "ms/step")):
        for name, seconds in found[title].items():
            # Under DeepSpeed the step to compare with is ours under DDP; under DDP it is the bare loop.
            base = None if name == BARE else BARE if name == "ddp" else "ddp"
            against = found[title][base] if base else None
            table.append(
                measured(
                    f"{name}, {title}",
                    [1000 * value for value in seconds],
                    unit,
                    base and f"{base}, {title}",
                    against and [1000 * value for value in against],
                )
            )
    low, middle, high = overhead(found["step"]["ddp"], found["step"][BARE])
    table.append(Row("ddp over bare, 95 % interval", middle, "%", low, high))
    for name, value, unit in found["other"]:
        table.append(Row(name, value, unit))
    return table


def overhead(ours: list[float], bare: list[float]) -> tuple[float, float, float]:
    """Return the mean paired difference in percent and its 95 % interval (Student's t): low, mean, high."""
    import numpy as np
    from scipy.stats import t

    logs = np.log(np.asarray(ours) / np.asarray(bare))
    half = t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5
    low, middle, high = (100 * np.expm1(logs.mean() + shift) for shift in (-half, 0.0, half))
    return float(low), float(middle), float(high)
