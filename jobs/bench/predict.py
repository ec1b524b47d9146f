"""`bloodcell bench predict`: a run on a folder of images, by `predict` and by the loop that one writes with timm.

Both start from the same files and the same network, which is loaded already, and end with a table on the disk. The
loop is that of timm's inference.py: ImageFolder, a DataLoader with a process for each core, fp32, softmax, the best
class of each image. `predict` does more meanwhile: it checks each file, hashes it, looks it up in the run's own set.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.bench.data import extract
from jobs.bench.result import Result, Row, cpu_seconds, interleaved, measured
from shards.errors import BadInput
from shards.parallel import available_cores

if TYPE_CHECKING:
    from bloodcell.predict import Classifier

OURS, LOOP = "bloodcell predict", "timm-style loop"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bloodcell bench predict`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("set", type=Path, metavar="SET", help="shard set; its training images are predicted")
    parser.add_argument("--images", type=int, default=2048, help="at most so many of them (2048)")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes of the loop (all cores)")
    parser.add_argument("--threads", type=int, default=available_cores(), help="torch threads of both (all cores)")
    parser.add_argument("--batch", type=int, default=64, help="images at once, in both (64)")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each (3)")


def run_arguments(parsed: argparse.Namespace) -> Result:
    """Run the benchmark.

    Raises:
        BadInput: no run, no set, or a number is too small.
    """
    if min(parsed.images, parsed.workers, parsed.threads, parsed.batch, parsed.repeats) < 1:
        raise BadInput("a number is too small", "bench predict", "give 1 or more")
    from bloodcell.data.shardset import ShardSet
    from bloodcell.predict import open_classifier
    from bloodcell.ranks import set_threads

    shards = ShardSet.open(parsed.set)
    classifier = open_classifier(parsed.run, batch=parsed.batch)
    set_threads(parsed.threads)
    wall: dict[str, list[float]] = {OURS: [], LOOP: []}
    cpu: dict[str, list[float]] = {OURS: [], LOOP: []}
    with tempfile.TemporaryDirectory() as place:
        images, tables = Path(place) / "images", {OURS: Path(place) / "ours.csv", LOOP: Path(place) / "loop.csv"}
        images.mkdir()
        count = extract(shards, images, parsed.images)
        cases = {
            OURS: partial(ours, classifier, parsed.run, images, tables[OURS]),
            LOOP: partial(timm_style, classifier, images, tables[LOOP], parsed.batch, parsed.workers),
        }
        timed: dict[str, Callable[[], float]] = {
            name: partial(_time, case, count, wall[name], cpu[name]) for name, case in cases.items()
        }
        interleaved(timed, parsed.repeats, warmups=1)
        alike = _alike(images, tables)
    rows = []
    for title, unit, figures in (("wall", "images/s", wall), ("cpu", "images/CPU-s", cpu)):
        against = figures[LOOP][1:]
        rows += [measured(f"{name}, {title}", figures[name][1:], unit, f"{LOOP}, {title}", against) for name in cases]
    rows.append(Row("images with the same class in both tables", 100 * alike, "%"))
    flags = f"--images {count} --workers {parsed.workers} --threads {parsed.threads}"
    flags += f" --batch {parsed.batch} --repeats {parsed.repeats}"
    return Result(f"bloodcell bench predict {parsed.run} {parsed.set} {flags}", rows)


def ours(classifier: Classifier, run: Path, images: Path, table: Path) -> None:
    """Predict a folder as the verb does."""
    from bloodcell.predict import predict
    from bloodcell.predict.classifier import ALONE

    predict(classifier, run, [images], tuple, table, ALONE)


def timm_style(classifier: Classifier, images: Path, table: Path, batch: int, workers: int) -> None:
    """Write the best class and its probability of each image of a folder of class folders."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    from bloodcell.engine.setup import make_view

    view = make_view(classifier.config)
    steps = [
        v2.Resize(view.size, antialias=True),
        v2.CenterCrop(view.size),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(view.mean, view.std),
    ]
    files = ImageFolder(images, v2.Compose(steps))
    loader = DataLoader(files, batch, num_workers=workers, pin_memory=classifier.device.type == "cuda")
    layout = torch.channels_last if view.channels_last else torch.contiguous_format
    best: list[tuple[float, int]] = []
    with torch.inference_mode():
        for pictures, _ in loader:
            shown = pictures.to(classifier.device, non_blocking=True).to(memory_format=layout)
            sure, found = classifier.model(shown).softmax(1).max(1)
            best += zip(sure.cpu().tolist(), found.cpu().tolist(), strict=True)
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("source", "prediction", "confidence"))
        for (path, _), (sure, found) in zip(files.samples, best, strict=True):
            writer.writerow((path, classifier.classes[found], sure))


def _time(case: Callable[[], None], images: int, wall: list[float], cpu: list[float]) -> float:
    """Run a case from the files to the table; its worker processes have ended by then."""
    used, begin = cpu_seconds(), time.perf_counter()
    case()
    wall.append(images / (time.perf_counter() - begin))
    cpu.append(images / (cpu_seconds() - used))
    return wall[-1]


def _alike(images: Path, tables: dict[str, Path]) -> float:
    """Return the share of images to which both tables give one class."""
    found = []
    for table in tables.values():
        with table.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            found.append({str(Path(row["source"]).relative_to(images)): row["prediction"] for row in rows})
    first, second = found
    return sum(first[name] == second[name] for name in first) / max(len(first), 1)
