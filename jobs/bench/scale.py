"""`bloodcell bench scale`: how many GPUs are worth it? Images/s on 1 to 512, memory, requests to the file system.

Figures on paper: the step-time model of scaling.py with the public constants of scale.toml. What is measured here is
the model's error against published figures, and the memory that the index of a huge set takes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.bench.index_memory import MIB, measure
from jobs.bench.result import Result, Row
from jobs.bench.scaling import (
    Run,
    Work,
    constants,
    gpu,
    large_batch_rate,
    run_seconds,
    save_seconds,
    state_bytes,
    step,
    throughput,
    validation_seconds,
    worth,
    zoo_rate,
)
from shards.errors import BadInput

GPUS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
GAIN = 0.75
"""Share of a run's time that twice the GPUs may leave for them to be worth it; half would be ideal."""
UPDATES, LARGEST = 50, 8192
"""Updates that an epoch needs, and the largest global batch that is known to train as well as a small one (Goyal et
al., Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour, 2017)."""


@dataclass(frozen=True)
class Images:
    """A set, in numbers: images of training and validation, bytes of one, shards."""

    training: int
    validation: int
    bytes: float
    shards: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bloodcell bench scale`."""
    parser.add_argument(
        "--models", nargs="+", default=["resnet50"], metavar="NAME", help="of the zoo, or all (resnet50)"
    )
    parser.add_argument("--gpu", default="h200", help="h200, h100, a100 or rtx3090 (%(default)s)")
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS, metavar="N", help="how many (1 2 4 ... 512)")
    parser.add_argument("--batch", type=int, default=64, help="images of each GPU in a step (%(default)s)")
    parser.add_argument("--size", type=int, default=224, help="height and width, pixels (%(default)s)")
    parser.add_argument("--node-input", type=float, default=0, help="images/s that a node decodes (0: never too few)")
    parser.add_argument("--network", type=float, default=0, help="GB/s between nodes (0: the GPU's usual; see doctor)")
    parser.add_argument("--data", type=Path, metavar="SET", help="how many GPUs is this set worth?")
    parser.add_argument("--images", type=int, default=0, help="the same for so many training images")
    parser.add_argument("--epochs", type=int, default=30, help="of that training (%(default)s)")
    parser.add_argument(
        "--global-batch", type=int, default=0, help="of that training (0: an epoch is 50 steps or more)"
    )
    parser.add_argument("--index", type=int, default=10**8, help="rows of the simulated index; 0: none (%(default)s)")


def run_arguments(args: argparse.Namespace) -> Result:
    """Run as the flags say.

    Raises:
        BadInput: an unknown model or GPU, a number below 1, or no shard set.
    """
    if min(args.batch, args.epochs, args.size, *args.gpus) < 1 or min(args.images, args.index, args.global_batch) < 0:
        raise BadInput("a number is below 1", "bench scale", "give numbers of at least 1")
    models = _models(args.models)
    images = _images(args)
    rows: list[Row] = []
    for model in models:
        rate, estimated = zoo_rate(model, args.size, args.gpu)
        work = Work(rate, _parameters(model), args.gpu, args.node_input, args.network)
        rows += _speeds(f"{model} (rate estimated)" if estimated else model, work, args.gpus, args.batch)
        rows += _parts(model, work, max(args.gpus), args.batch)
        rows += _worth(model, work, args, images) if images else []
        rows += _memory(model, work)
    rows += _requests(images, rows[: len(args.gpus)], args.gpus)
    rows += published()
    rows += _index(args.index) if args.index else []
    given = [f"--models {' '.join(args.models)} --gpu {args.gpu} --batch {args.batch} --size {args.size}"]
    given += [f"--data {args.data}"] if args.data else [f"--images {args.images}"] if args.images else []
    given += [f"--node-input {args.node_input:g}"] if args.node_input else []
    given += [f"--network {args.network:g}"] if args.network else []
    return Result(" ".join(["bloodcell bench scale", *given]), rows)


def _models(names: list[str]) -> list[str]:
    from bloodcell.models import zoo

    if names == ["all"]:
        return [name for name in zoo.names() if name in constants()["rate"] or name in constants()["like"]]
    return [zoo.spec(name).name for name in names]


def _parameters(model: str) -> float:
    from bloodcell.models import zoo

    return float(zoo.spec(model).parameters or 0)


def _images(args: argparse.Namespace) -> Images | None:
    if args.data is None:
        return Images(args.images, args.images // 5, 20_000, 0) if args.images else None
    from shards.format import read_dataset

    info = read_dataset(args.data)
    fold = "fold0/" if any("/" in split for split in info.splits) else ""
    known = [split for split in (f"{fold}train", f"{fold}val") if split in info.splits]
    counts = [info.count(split) for split in known] + [0, 0]
    size = sum(shard.bytes for shard in info.shards) / max(info.total, 1)
    return Images(counts[0], counts[1], size, len(info.shards))


def _speeds(model: str, work: Work, gpus: list[int], batch: int) -> Iterator[Row]:
    """One row for each number of GPUs, beside so many times one GPU."""
    one = throughput(work, 1, batch)
    for count in gpus:
        found = throughput(work, count, batch)
        limit = step(work, count, batch).limit
        name = f"{model}, {count} GPU{'s' * (count > 1)}, mostly {limit}"
        yield Row(name, found, "images/s", baseline=f"{count} times one GPU", ratio=found / count / one)


def _parts(model: str, work: Work, count: int, batch: int) -> list[Row]:
    """Where the time of a step goes on the largest number of GPUs."""
    found = step(work, count, batch)
    named = (
        ("compute", found.compute),
        ("fixed", found.fixed),
        ("all-reduce that nothing hides", found.exchange),
        ("waiting for the slowest", found.spread),
        ("waiting for images", found.input_wait),
    )
    return [Row(f"{model}, a step on {count}: {name}", 1e3 * seconds, "ms") for name, seconds in named]


def _worth(model: str, work: Work, args: argparse.Namespace, images: Images) -> Iterator[Row]:
    """How many GPUs the training is worth, and how long it takes on one and on these."""
    batch = args.global_batch or min(LARGEST, 2 ** max(5, math.floor(math.log2(max(images.training / UPDATES, 1)))))
    run = Run(images.training, images.validation, args.epochs, batch)
    count = worth(work, run, GAIN)
    one = run_seconds(work, 1, run)
    about = f"{model}, {images.training:,} images, {args.epochs} epochs, batch {batch}"
    yield Row(f"{about}: worth", count, "GPUs")
    yield Row(f"{about}: on one GPU", one / 60, "min")
    yield Row("... each validation", 1e3 * validation_seconds(work, 1, run.validation), "ms")
    yield Row("... each checkpoint, as training waits for it", 1e3 * save_seconds(work), "ms")
    for few in sorted({count, min(count * 2, 512)} - {1}):
        took = run_seconds(work, few, run)
        yield Row(f"{about}: on {few}", took / 60, "min", baseline="one GPU", ratio=took / one)


def _memory(model: str, work: Work) -> Iterator[Row]:
    """What weights, gradients and Adam's state take on each GPU, as DDP has them and divided over 64 by ZeRO."""
    whole, alone = gpu(work.gpu)["memory_gb"] * 1e9, state_bytes(work.parameters, 0, 1)
    name, memory = f"{model}, state on each GPU, DDP", f"the memory of one {work.gpu}"
    yield Row(name, alone / 1e9, "GB", baseline=memory, ratio=alone / whole)
    for stage in (1, 2, 3):
        found = state_bytes(work.parameters, stage, 64)
        named = f"{model}, the same under ZeRO-{stage}, 64 GPUs"
        yield Row(named, found / 1e9, "GB", baseline=name, ratio=found / alone)
    yield Row(
        f"ZeRO pays (state fills half of a {work.gpu}) from", whole / 2 / state_bytes(1, 0, 1) / 1e6, "M parameters"
    )


def _requests(images: Images | None, speeds: list[Row], gpus: list[int]) -> Iterator[Row]:
    """What the file system is asked for while nothing is in memory: one read for each image."""
    size = images.bytes if images else 20_000
    for count, row in zip(gpus, speeds, strict=True):
        if count in (1, 8, 64, 512):
            name = f"reads from the file system, {count} GPU{'s' * (count > 1)}, first epoch"
            yield Row(name, row.value, "requests/s")
            yield Row(f"... of {size:,.0f} bytes each", row.value * size / 1e6, "MB/s")


def published() -> Iterator[Row]:
    """The model beside published figures: where the ratio is 1 they agree."""
    for figure in constants()["published"]:
        rows = zip(figure["batches"], figure["gpus"], figure["images_s"], figure["fitted"], strict=True)
        for batch, count, known, fitted in rows:
            rate = figure.get("large") or large_batch_rate(figure["one"], batch)
            input_ = figure.get("node_input", 0)
            work = Work(rate, figure["parameters"], figure["gpu"], input_, gradient_bytes=2)
            found = throughput(work, count, batch)
            name = f"{figure['what']}, {count} GPUs" + (" (fitted)" if fitted else "")
            yield Row(name, found, "images/s", baseline=f"published {known:,}", ratio=found / known)


def _index(samples: int) -> list[Row]:
    """The memory of one rank's index, measured on a simulated one."""
    found = measure(samples)
    touched = "... pages of the file that it touched in 300 steps, given back when they are needed"
    return [
        Row(f"index of {samples:,} images on disk, mapped once for all ranks of a node", found.disk / MIB, "MiB"),
        Row("... memory that a rank takes for itself", found.own / MIB, "MiB"),
        Row(touched, found.touched / MIB, "MiB"),
    ]
