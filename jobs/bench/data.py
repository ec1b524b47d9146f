"""`bloodcell bench data`: images a second of our loader and of what else one could use, on the same files, interleaved.

All give float32 batches [n, 3, size, size], normalised: random resized crop with antialiasing, and a horizontal flip.
A DataLoader is a process beside its workers; our loader likewise gets one decoding thread more than there are workers.
On a busy machine all of them share the same cores, and the figures for each CPU-second are the steadier ones.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.bench.peers import AREA, BATCH, MEAN, RATIO, STD, image_folder, pipeline_of_users
from jobs.bench.result import Result, Row, cpu_seconds, interleaved, measured
from shards.errors import BadInput
from shards.parallel import available_cores

if TYPE_CHECKING:
    import numpy as np

    from bloodcell.data.order import BatchOrder
    from bloodcell.data.reading import Reading
    from bloodcell.data.resident import EncodedCache, HostCache
    from bloodcell.data.shardset import ShardSet

FOLDER, V2 = "torchvision ImageFolder, PIL", "torchvision v2 decode_image"
DALI, POOL, KEPT = "bloodcell loader (DALI)", "bloodcell loader (cpu)", "bloodcell loader (cpu), resident, 2nd epoch"
PART, BYTES = "bloodcell loader (DALI), windows decoded alone", "bloodcell loader (cpu), encoded in memory, 2nd epoch"
SMALLER = "bloodcell loader (cpu), resident at {} pixels, 2nd epoch"
USERS = "webdataset, PIL, torchvision"
STREAM, LIBRARY = "bloodcell loader (cpu), stream", "bloodcell loader (cpu), webdataset"
WINDOW = 4096
"""Samples in a window of the sequential readers: the default of data.window."""
BESIDE = {KEPT: (FOLDER, V2), PART: (FOLDER, DALI), BYTES: (FOLDER, POOL)}
"""What a loader is compared with, if not with ImageFolder alone."""
WIDER = (8, 7)
"""The side at which images are kept smaller to the side of the output, as 256 to 224; rounded up to multiples of 32."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bloodcell bench data`."""
    parser.add_argument("set", type=Path, metavar="SET", help="shard set; its training images are used")
    parser.add_argument("--size", type=int, default=224, help="height and width of the output, pixels (224)")
    parser.add_argument("--images", type=int, default=4096, help="images in each repeat (4096)")
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="decoding threads, or DataLoader workers (all cores)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each (5)")
    parser.add_argument(
        "--policy",
        nargs="+",
        metavar="NAME",
        help="time our loader alone under each of these augmentation policies, by DALI and by the CPU backend",
    )
    parser.add_argument(
        "--resident",
        action="store_true",
        help="with --policy: images are decoded once, before all else, so that the operations alone are timed",
    )


def run_arguments(parsed: argparse.Namespace) -> Result:
    """Run the benchmark as the flags say; arguments and errors as in `run`."""
    if parsed.policy:
        from jobs.bench import policies

        counts = (parsed.size, parsed.images, parsed.workers, parsed.repeats)
        return policies.run(parsed.set, parsed.policy, *counts, resident=parsed.resident)
    if parsed.resident:
        raise BadInput("decoded images are one of the loaders here", "--resident", "leave it out, or give --policy")
    return run(parsed.set, parsed.size, parsed.images, parsed.workers, parsed.repeats)


def run(folder: Path, size: int, images: int, workers: int, repeats: int) -> Result:
    """Time the loaders over `images` images a repeat.

    Raises:
        BadInput: the set cannot be opened, or a number is too small.
    """
    import torch

    from bloodcell.data.shardset import ShardSet

    if min(size, workers, repeats) < 1 or images < 2 * BATCH:
        raise BadInput("a number is too small", "bench data", f"give at least {2 * BATCH} images")
    shards = ShardSet.open(folder)
    torch.set_num_threads(1)  # as in a DataLoader's workers: decoding is parallel over images
    with tempfile.TemporaryDirectory() as place:
        extract(shards, Path(place))
        cases = _cases(shards, Path(place), size, images, workers)
        wall: dict[str, list[float]] = {name: [] for name in cases}
        cpu: dict[str, list[float]] = {name: [] for name in cases}
        timed: dict[str, Callable[[], float]] = {
            name: partial(_time, name, case, wall, cpu) for name, case in cases.items()
        }
        interleaved(timed, repeats, warmups=1)
    rows = request_rows(shards)
    for title, unit, figures in (("wall", "images/s", wall), ("cpu", "images/CPU-s", cpu)):
        for name in cases:
            for base in BESIDE.get(name, (FOLDER,)):
                values, against = figures[name][1:], figures[base][1:]
                rows.append(measured(f"{name}, {title}", values, unit, f"{base}, {title}", against))
    command = f"bloodcell bench data {folder} --size {size} --images {images} --workers {workers} --repeats {repeats}"
    return Result(command, rows)


def _cases(
    shards: ShardSet, place: Path, size: int, images: int, workers: int
) -> dict[str, Callable[[], Iterator[Any]]]:
    """Return what is timed, by name; the training images lie as files in `place`."""
    from bloodcell.data.decoder import Decoder
    from bloodcell.data.reading import Reading

    loader = partial(ours, shards, size, workers + 1, images)
    whole, side = kept(shards, workers), -(-size * WIDER[0] // WIDER[1] // 32) * 32
    cases: dict[str, Callable[[], Iterator[Any]]] = {
        FOLDER: partial(image_folder, place, size, workers, images, decode_v2=False),
        V2: partial(image_folder, place, size, workers, images, decode_v2=True),
        USERS: partial(pipeline_of_users, shards, training_split(shards), size, workers, images),
        DALI: partial(loader, "dali"),
        PART: partial(loader, "dali", Reading(decoder=Decoder(roi=True))),
        POOL: partial(loader, "cpu"),
        BYTES: partial(loader, "cpu", Reading(cache=kept_bytes(shards))),
        STREAM: partial(loader, "cpu", Reading(reader="stream")),
        LIBRARY: partial(loader, "cpu", Reading(reader="webdataset")),
        KEPT: partial(loader, "cpu", Reading(cache=whole)),
    }
    smaller = kept(shards, workers, side)
    if smaller.layout.bytes < whole.layout.bytes:
        cases[SMALLER.format(side)] = partial(loader, "cpu", Reading(cache=smaller, side=side))
    return cases


def _time(
    name: str, case: Callable[[], Iterator[Any]], wall: dict[str, list[float]], cpu: dict[str, list[float]]
) -> float:
    """Time a loader from its first batch on (what comes before is start-up); its processor time counts as a whole."""
    before = cpu_seconds()
    batches = case()
    count, first = 0, len(next(batches))
    begin = time.perf_counter()
    for batch in batches:
        count += len(batch)
    seconds = time.perf_counter() - begin
    wall[name].append(count / seconds)
    cpu[name].append((count + first) / (cpu_seconds() - before))
    return wall[name][-1]


def extract(shards: ShardSet, place: Path, limit: int | None = None) -> int:
    """Write the training images (the first `limit`) as files, one folder for each class; return how many."""
    import numpy as np

    from bloodcell.data.order import nth_ids
    from bloodcell.data.shardset import Reader

    name = training_split(shards)
    ranges = shards.ranges(name)
    table = shards.table(["key", "class", "format"])
    reader = Reader(shards)
    count = min(shards.info.count(name), limit or shards.info.count(name))
    for sample in nth_ids(ranges, np.arange(count)):
        row = {column: table.column(column)[int(sample)].as_py() for column in table.column_names}
        path = place / str(row["class"]) / f"{row['key']}.{str(row['format']).lower()}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(reader.read(int(sample)).tobytes())
    reader.close()
    return count


def kept(shards: ShardSet, threads: int, side: int = 0) -> HostCache:
    """Return the training images decoded in memory, as they are from the second epoch of a run with this side on."""

    from bloodcell.data.decoding import pixels_of
    from bloodcell.data.layout import Layout
    from bloodcell.data.resident import HostCache
    from bloodcell.data.shardset import Reader

    layout, reader = Layout(shards, training_ids(shards), side), Reader(shards)
    cache = HostCache(layout, HostCache.create())
    read = [(int(sample), reader.read(int(sample))) for sample in layout.ids]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda one: cache.put(one[0], pixels_of(shards, one[0], one[1], side)), read))
    reader.close()
    return cache


def kept_bytes(shards: ShardSet) -> EncodedCache:
    """Return the files of the training images in memory."""
    from bloodcell.data.layout import EncodedLayout
    from bloodcell.data.resident import EncodedCache
    from bloodcell.data.shardset import Reader

    cache, reader = EncodedCache(EncodedLayout(shards, training_ids(shards)), EncodedCache.create()), Reader(shards)
    for sample in cache.layout.ids.tolist():
        cache.put(sample, reader.read(sample))
    reader.close()
    return cache


def training_ids(shards: ShardSet) -> np.ndarray:
    """Return the ids of the training images, int64 [n], ascending."""
    import numpy as np

    from bloodcell.data.order import nth_ids

    name = training_split(shards)
    return np.sort(nth_ids(shards.ranges(name), np.arange(shards.info.count(name))))


def training_split(shards: ShardSet) -> str:
    """Return the full name of the first training split."""
    return next(split for split in shards.info.splits if split.endswith("train"))


def order_of(shards: ShardSet, reader: str) -> BatchOrder:
    """Return the order of the training images with a reader, one micro-batch a step."""
    from bloodcell.data.order import BatchOrder, NaturalPlan
    from bloodcell.data.streaming import StreamPlan

    name = training_split(shards)
    if reader == "plan":
        return BatchOrder(NaturalPlan(shards.ranges(name)), 0, BATCH, 1)
    plan = StreamPlan(shards.pieces(name), BATCH, 1, WINDOW)
    return BatchOrder(plan, 0, BATCH, 1, plan.window_steps)


def request_rows(shards: ShardSet) -> list[Row]:
    """Return how often an epoch asks the file system for bytes: once a sample, or once a run of a window."""
    import numpy as np

    from bloodcell.data.loader import training_requests
    from bloodcell.data.runs import make_runs
    from bloodcell.data.windows import together

    order = order_of(shards, "stream")
    windows = together(training_requests(order, 1, 0, 0, order.steps_per_epoch))
    runs = sum(len(make_runs(shards.index, np.concatenate([one.ids for one in group]))) for group in windows)
    return [
        Row("file requests of an epoch, plan", order.steps_per_epoch * order.global_batch, "requests"),
        Row("file requests of an epoch, stream and webdataset", runs, "requests"),
    ]


def ours(
    shards: ShardSet, size: int, threads: int, images: int, backend: str, how: Reading | None = None
) -> Iterator[Any]:
    """Yield image batches of our loader."""
    import torch

    from bloodcell.data.loader import Loader, training_requests
    from bloodcell.data.operations import Crop, Flip
    from bloodcell.data.pipeline import View
    from bloodcell.data.policies import Policy
    from bloodcell.data.reading import Reading

    how = how or Reading()
    order = order_of(shards, how.reader)
    view = View(size, MEAN, STD, Policy("bench", (Crop(AREA, RATIO), Flip(0.5, 0.0))), 0, backend=backend)
    requests = training_requests(order, 1, 0, 0, images // BATCH)
    with Loader(shards, requests, view, BATCH, threads, torch.device("cpu"), how) as loader:
        for batch in loader:
            yield batch.images
