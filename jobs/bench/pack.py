"""`bloodcell bench pack`: what packing costs, part by part, on drawn images that lie in the page cache.

Writing alone beside webdataset's ShardWriter and GNU tar on the same files, each with the wait for the disk; the full
examination of an image (decoding, hashes, features for the near-duplicate search), in one process and in two beside
each other, which is what two cores of this machine give at best; a whole `bloodcell pack` with one worker on one core
and with two on two; and the memory of one. What is compared is interleaved. On a busy machine the
figures for each CPU-second are the steadier ones, and the load average is among the results: with other work on the
cores, two workers cannot be judged.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jobs.bench.result import Result, Row, cpu_seconds, interleaved, measured
from shards.errors import BadInput

SIDE = 224  # pixels of the images that time is measured on
CLASSES = 4
MIB = 2**20
OURS, WEBDATASET = "bloodcell ShardWriter", "webdataset ShardWriter, then fsync"
TAR = "GNU tar, image files alone, then fsync"
PEAK, ANONYMOUS = "memory", "memory without mapped files"
EXAMINE = "decode, hashes and near-duplicate features"
BESIDE = f"{EXAMINE}, 2 processes"


@dataclass(frozen=True)
class Sizes:
    """How much is done: images of SIDE pixels, their side, repeats, and the tiny images whose memory is measured."""

    images: int = 10_000
    side: int = SIDE
    repeats: int = 5
    tiny: tuple[int, ...] = (10_000,)


FULL = (10_000, 100_000)
QUICK = Sizes(64, 64, 1, (64, 128))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bloodcell bench pack`."""
    parser.add_argument("--images", type=int, default=Sizes.images, help="images of 224 pixels (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=Sizes.repeats, help="repeats of each (default: %(default)s)")
    parser.add_argument(
        "--full", action="store_true", help="measure the memory at 100,000 tiny images too, beside 10,000; minutes more"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few tiny images, once: whether it works, not how fast it is"
    )


def run_arguments(parsed: argparse.Namespace) -> Result:
    """Run the benchmark as the flags say; errors as in `run`."""
    if parsed.quick:
        return run(QUICK, "bloodcell bench pack --quick")
    if parsed.images < 64 or parsed.repeats < 1:
        raise BadInput("a number is too small", "bench pack", "give at least 64 images and 1 repeat")
    sizes = Sizes(parsed.images, SIDE, parsed.repeats, FULL if parsed.full else Sizes.tiny)
    command = f"bloodcell bench pack --images {parsed.images} --repeats {parsed.repeats}"
    return run(sizes, command + (" --full" if parsed.full else ""))


def run(sizes: Sizes, command: str) -> Result:
    """Draw the images, measure, and return the rows.

    Raises:
        EnvironmentFault: the disk is full, or there is no `tar`.
        Fault: packing failed.
    """
    from shards.synth import SynthOptions, synthesise

    rows = [_load("before")]
    with tempfile.TemporaryDirectory(prefix="bench-pack-") as scratch:
        place = Path(scratch)
        folder = place / "images"
        synthesise(folder, SynthOptions(images=sizes.images, size=sizes.side), 2)
        rows += _writing(folder, place, sizes.repeats)
        rows += _examination(folder, sizes.repeats)
        rows += _whole(folder, place, sizes)
        rows += _memory(place, sizes.tiny)
    return Result(command, [*rows, _load("after")])


def _load(when: str) -> Row:
    return Row(f"load average of the last minute, {when}", os.getloadavg()[0], "processes")


class _Clock:
    """Images a second of several cases, on the clock and for each second of processor time, repeat by repeat."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def timed(self, name: str, work: Callable[[], object]) -> float:
        before, begin = cpu_seconds(), time.perf_counter()
        work()
        self.note(name, time.perf_counter() - begin, cpu_seconds() - before)
        return self.wall[name][-1]

    def note(self, name: str, wall: float, cpu: float) -> None:
        self.wall.setdefault(name, []).append(self.images / wall)
        self.cpu.setdefault(name, []).append(self.images / max(cpu, 1e-3))

    def rows(self, repeats: int, baseline: str | None = None) -> list[Row]:
        """Return two rows for each case, the last `repeats` figures of each; ratios are to `baseline`."""
        rows = []
        for title, unit, figures in (("wall", "images/s", self.wall), ("cpu", "images/CPU-s", self.cpu)):
            for name, values in figures.items():
                other = f"{baseline}, {title}" if baseline else None
                against = figures[baseline][-repeats:] if baseline else None
                rows.append(measured(f"{name}, {title}", values[-repeats:], unit, other, against))
        return rows


def _writing(folder: Path, place: Path, repeats: int) -> list[Row]:
    from jobs.bench.writers import sources, write_gnu_tar, write_ours, write_webdataset

    samples = sources(folder)
    clock = _Clock(len(samples))
    target = place / "written"
    writers = {OURS: write_ours, WEBDATASET: write_webdataset, TAR: write_gnu_tar}

    def case(name: str) -> float:
        target.mkdir()
        os.sync()  # all wait for the disk: none must pay for what others left unwritten
        try:
            return clock.timed(name, lambda: writers[name](samples, target))
        finally:
            shutil.rmtree(target)

    interleaved({name: partial(case, name) for name in writers}, repeats, warmups=1)
    return clock.rows(repeats, WEBDATASET)


def _examination(folder: Path, repeats: int) -> list[Row]:
    """Do what a worker of `pack` does with an image before it is written: on one core, and on two beside each other."""
    import numpy  # noqa: F401  its threads can be limited only where it is loaded
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    from shards.parallel import map_ordered

    paths = sorted(folder.glob("*/*.jpg"))
    clock = _Clock(len(paths))

    def alone() -> float:
        with threadpool_limits(1):
            clock.note(EXAMINE, *_examined(paths))
        return clock.wall[EXAMINE][-1]

    def beside() -> float:
        # Each measures itself: that a process starts and loads the program is not what the cores are asked about.
        walls, cpus = zip(*map_ordered(_examined, [paths[::2], paths[1::2]], 2), strict=True)
        clock.note(BESIDE, max(walls), sum(cpus))
        return clock.wall[BESIDE][-1]

    interleaved({EXAMINE: alone, BESIDE: beside}, repeats, warmups=1)
    return clock.rows(repeats, EXAMINE)


def _examined(paths: Sequence[Path]) -> tuple[float, float]:
    """Examine images as a worker of `pack` does; return the seconds on the clock and of the processor."""
    from shards.features import compute
    from shards.images import examine

    begin, before = time.perf_counter(), time.process_time()
    for path in paths:
        compute(examine(path.read_bytes()).rgb)
    return time.perf_counter() - begin, time.process_time() - before


def _whole(folder: Path, place: Path, sizes: Sizes) -> list[Row]:
    """Pack with one worker and with two, as a user would; each has a core of its own, also for numpy's threads."""
    from jobs.bench.watched import watched

    clock = _Clock(sizes.images)
    target = place / "set"

    def case(workers: int) -> float:
        cost = watched("pack", str(folder), str(target), "--workers", str(workers), cores=workers)
        shutil.rmtree(target)
        clock.note(_packing(workers), cost.wall, cost.cpu)
        return cost.wall

    interleaved({_packing(workers): partial(case, workers) for workers in (1, 2)}, sizes.repeats)
    return clock.rows(sizes.repeats, _packing(1))


def _packing(workers: int) -> str:
    return f"bloodcell pack, {workers} worker" + ("s on as many cores" if workers > 1 else " on 1 core")


def _memory(place: Path, counts: Sequence[int]) -> list[Row]:
    """Return the peak memory of packing tiny images with one worker: all of the work is then in one process."""
    from jobs.bench.watched import watched

    rows: list[Row] = []
    peaks: dict[str, list[float]] = {}
    for count in counts:
        folder, target = place / f"tiny-{count}", place / "tiny-set"
        _draw_tiny(folder, count)
        cost = watched("pack", str(folder), str(target), "--workers", "1")
        shutil.rmtree(target)
        shutil.rmtree(folder)
        for name, size in ((PEAK, cost.peak), (ANONYMOUS, cost.anonymous)):
            found = peaks.setdefault(name, [])
            baseline, against = (_peak(name, counts[0]), found[:1]) if found else (None, None)
            found.append(size / MIB)
            rows.append(measured(_peak(name, count), found[-1:], "MiB", baseline, against))
    if len(counts) > 1:
        for name, found in peaks.items():
            grown = (found[-1] - found[0]) * MIB / (counts[-1] - counts[0])
            rows.append(Row(f"{name} for each further image", grown, "bytes"))
    return rows


def _peak(name: str, count: int) -> str:
    return f"peak {name} of packing {count:,} tiny images, 1 worker"


def _draw_tiny(folder: Path, count: int) -> None:
    from PIL import Image

    from shards.atomic import disk_errors
    from shards.planted import jittered_fields

    with disk_errors(folder):
        for label in range(CLASSES):
            (folder / f"class{label}").mkdir(parents=True)
        for number, rgb in enumerate(jittered_fields(count)):
            Image.fromarray(rgb).save(folder / f"class{number % CLASSES}" / f"{number:07d}.jpg", quality=90)
