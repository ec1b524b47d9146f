"""Whole commands of `bloodcell bench gpu`: tests, the device's ceilings, a folder to a result, DeepSpeed's steps."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jobs.bench.gpu_parts import How
from jobs.bench.result import Row, measured
from jobs.bench.resuming import NotHereError
from shards.errors import CheckFailed, EnvironmentFault

TESTS = Path(__file__).resolve().parents[2] / "tests"

TEST_SECONDS = 560
"""A file of tests that takes longer is ended: a lent machine gives a command ten minutes."""

SPLIT = "75/5/20"

FITTING = ("--data.micro_batch", "64", "--optim.lr", "1.5e-3", "--train.epochs", "6")
"""What the recipe `quick` is changed by on a GPU, where a step of 64 images takes no longer than one of 32."""

REHEARSED = ("--data.size", "32", "--train.sizes", "", "--train.epochs", "1", "--data.micro_batch", "4")

ASKED_SECONDS, ASKED_ACCURACY = 60.0, 98.5


def test_files() -> list[Path]:
    """Return the files with tests marked `gpu`; none without a checkout."""
    marked = re.compile(r"pytest\.mark\.gpu\b")
    return [file for file in sorted(TESTS.rglob("test_*gpu*.py")) if marked.search(file.read_text(encoding="utf-8"))]


def tests(how: How, file: Path) -> list[Row]:
    """Run a file of tests that need a GPU.

    Raises:
        NotHereError: there is no GPU, or no pytest.
        CheckFailed: one of them failed; they are named.
    """
    if not how.gpu:
        raise NotHereError("there is no GPU")
    if importlib.util.find_spec("pytest") is None:
        raise NotHereError("pytest is not installed")
    # Not the project's own options: plugins that they name need not be installed here.
    words = [sys.executable, "-m", "pytest", "-q", "-rf", "-m", "gpu", "-o", "addopts=", str(file)]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, cwd=TESTS.parent, check=False, timeout=TEST_SECONDS
        )
    except subprocess.TimeoutExpired as late:
        raise CheckFailed(f"not done after {TEST_SECONDS} s", file.name, "run the file by hand") from late
    counts = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", done.stdout)}
    names = re.findall(r"^(?:FAILED|ERROR) \S*?::(\S+)", done.stdout, re.MULTILINE)
    if done.returncode:
        said = names or done.stdout.strip().splitlines()[-1:]
        raise CheckFailed(f"{counts.get('passed', 0)} passed, {len(names)} failed: {', '.join(said)}", file.name)
    return [Row(f"{file.stem}, {kind}", number, "tests") for kind, number in counts.items()]


def ceilings(how: How) -> list[Row]:
    """Return what the device reaches in a large matrix product and a large copy.

    Raises:
        NotHereError: there is no GPU.
    """
    from bloodcell.engine.efficiency import measured_ceiling

    rows = []
    for precision in ("bf16", "fp32"):
        found = measured_ceiling(how.device, precision)
        if found is None:
            raise NotHereError("there is no GPU, and nothing is measured of a CPU")
        rows.append(Row(f"matrix product, {precision}", found["tflops"], "TFLOP/s"))
        rows.append(Row(f"copy, {precision}", found["gb_per_s"], "GB/s"))
    return rows[:3]


def folder(how: How) -> list[Row]:
    """Time `bloodcell pack` and `bloodcell train` from a folder of images to the accuracy on the test split.

    Raises:
        NotHereError: no folder of images or no weights were named.
        EnvironmentFault: a command failed.
    """
    from jobs.bench.training import Trial, trial

    if how.gpu and (how.pictures is None or how.weights is None):
        raise NotHereError("name the images with --images DIR and weights with --weights FILE")
    packing: list[float] = []
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as place:
        pictures = how.pictures or _drawn(Path(place) / "images")
        for seed in range(min(how.repeats, 3)):
            packed = Path(place) / f"set{seed}"
            packing.append(_pack(pictures, packed))
            flags = ["--data", str(packed), "--run", str(Path(place) / f"run{seed}"), "--train.seed", str(seed)]
            flags += FITTING if how.gpu else REHEARSED
            flags += ["--model.weights", str(how.weights.resolve()) if how.weights else "none"]
            flags += ["--engine.device", how.device.type, "--tracking.wandb", "off", "--json"]
            trials.append(trial(["-m", "jobs.cli", "train", "quick", *flags]))
    whole = [one + other.wall for one, other in zip(packing, trials, strict=True)]
    name = "folder to result"
    rows = [measured(f"{name}, packing", packing, "s")]
    rows.append(measured(f"{name}, training and judging", [one.wall for one in trials], "s"))
    rows.append(measured(f"{name}, both (asked: {ASKED_SECONDS:.0f})", whole, "s"))
    right = [100 * one.test for one in trials]
    return [*rows, measured(f"{name}, accuracy on test (asked: {ASKED_ACCURACY})", right, "%")]


def _drawn(place: Path) -> Path:
    """Draw a folder of class folders for a rehearsal."""
    import csv

    from shards.synth import SynthOptions, synthesise

    synthesise(place / "all", SynthOptions(images=120, size=32, patients=12), 1)
    with open(place / "all" / "truth.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            target = place / "classes" / row["class"] / Path(row["path"]).name
            target.parent.mkdir(parents=True, exist_ok=True)
            (place / "all" / row["path"]).rename(target)
    return place / "classes"


def _pack(pictures: Path, target: Path) -> float:
    """Pack a folder; return the seconds of the whole command."""
    words = [sys.executable, "-m", "jobs.cli", "pack", str(pictures), str(target), "--split", SPLIT, "--seed", "1"]
    begin = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise EnvironmentFault(f"packing ended with {done.returncode}: {said[-1]}", pictures)
    return time.perf_counter() - begin


def zero(how: How) -> list[Row]:
    """Time the engine's step under ZeRO-1 and ZeRO-2 beside DDP and a bare loop, one process.

    Raises:
        NotHereError: DeepSpeed is not installed.
    """
    from jobs.bench.engine import Sizes, rows, steps

    if importlib.util.find_spec("deepspeed") is None:
        raise NotHereError("DeepSpeed is not installed")
    names, repeats = ("ddp", "zero1", "zero2"), max(2, how.repeats)
    if how.gpu:
        sizes = Sizes("resnet50", how.size, min(how.batch, 128), 1, repeats, 10, names, device="cuda")
    else:
        sizes = Sizes("cnn5", how.size, how.batch, 1, repeats, how.steps, names)
    kept = [row for row in rows(steps(sizes)) if row.unit == "ms/step"]
    title = f"{sizes.model}, batch {sizes.micro_batch}: "
    return [
        Row(title + row.name, row.value, row.unit, row.low, row.high, row.baseline and title + row.baseline, row.ratio)
        for row in kept
    ]
