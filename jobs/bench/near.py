"""`bloodcell bench near`: the near-duplicate search among very many drawn cells, with planted copies to be found.

Copies are turned into all eight orientations, cropped by up to 3 % at each edge and encoded again. What is found is
confirmed on the pixels, so precision is that of the pairs which packing would group. The audit of a split then looks
for the copies that were put into different parts.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time

import numpy as np
from numpy.typing import NDArray

from jobs.bench.result import Result, Row, interleaved, measured
from jobs.bench.watched import Look
from shards.errors import BadInput
from shards.parallel import available_cores

MIB = 2**20
QUICK = 2_000  # images
SHARES = (0.8, 0.1, 0.1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bloodcell bench near`."""
    parser.add_argument("--images", type=int, default=10**6, help="drawn cells (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=0, help="planted copies; 0 is one for each 100 images (0)")
    parser.add_argument("--repeats", type=int, default=1, help="repeats of the search (default: %(default)s)")
    parser.add_argument("--audit", action="store_true", help="audit a split of the images too; minutes at 10^6")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} images, once, and the audit")


def run_arguments(parsed: argparse.Namespace) -> Result:
    """Run the benchmark as the flags say; errors as in `run`."""
    if parsed.quick:
        return run(QUICK, QUICK // 100, 1, True, "bloodcell bench near --quick")
    pairs = parsed.pairs or parsed.images // 100
    command = f"bloodcell bench near --images {parsed.images} --pairs {pairs} --repeats {parsed.repeats}"
    return run(parsed.images, pairs, parsed.repeats, parsed.audit, command + (" --audit" if parsed.audit else ""))


def run(images: int, copies: int, repeats: int, audited: bool, command: str) -> Result:
    """Draw `images` cells, the last `copies` of them copies of the first, and search.

    Raises:
        BadInput: a number is below 1, or there are more copies than originals.
    """
    from shards.duplicates import connected, near_pairs
    from shards.planted import planted_features

    if min(images, copies, repeats) < 1 or 2 * copies > images:
        raise BadInput("a number is too small, or too many pairs", "bench near", "plant at most half of the images")
    rows = [_load("before")]
    features, wanted, _ = planted_features(images, copies)
    drawn = _peak_mib()
    cpu: list[float] = []
    held: list[float] = []
    found: list[NDArray[np.void]] = []

    def search() -> float:
        with Look(os.getpid()) as look:
            before, begin = time.process_time(), time.perf_counter()
            found[:] = [near_pairs(features, all_pairs=0, workers=available_cores())]  # by hashes, however few
            took = time.perf_counter() - begin
        cpu.append(time.process_time() - before + sum(look.below.values()))
        held.append(look.held / MIB)
        return took

    wall = interleaved({"search": search}, repeats)["search"]
    peak, pairs = _peak_mib(), found[0]
    known, listed = _codes(wanted[:, 0], wanted[:, 1], images), _codes(pairs["a"], pairs["b"], images)
    right = int(np.isin(listed, known).sum())
    rows += [
        Row("images", images, "images"),
        Row("planted pairs", copies, "pairs"),
        Row("planted pairs found", right / copies, "share"),
        Row("pairs found that were planted, after the pixel check", right / max(len(listed), 1), "share"),
        measured("search, wall", wall, "s"),
        measured("search, cpu", cpu, "s"),
        Row("peak memory, drawing and the features included", peak, "MiB"),
        measured("peak memory of its worker processes", held, "MiB"),
        Row("peak memory before the search", drawn, "MiB"),
        Row("features", features.nbytes / MIB, "MiB"),
        Row("largest cluster", int(np.bincount(connected(images, pairs)).max()), "images"),
    ]
    if audited:
        rows += _audit(features["thumbnail"], wanted)
    return Result(command, [*rows, _load("after")])


def _audit(thumbnails: NDArray[np.uint8], wanted: NDArray[np.int64]) -> list[Row]:
    """Split the images without regard to the copies, and see which of those that cross the audit finds."""
    from shards.audit import audit

    part = np.random.default_rng(1).choice(len(SHARES), len(thumbnails), p=SHARES)
    crossing = wanted[part[wanted[:, 0]] != part[wanted[:, 1]]]
    names = np.array(["train", "val", "test"])[part].tolist()
    with Look(os.getpid()) as look:
        before, begin = time.process_time(), time.perf_counter()
        result = audit(
            names, [""] * len(part), [str(row) for row in range(len(part))], thumbnails, workers=available_cores()
        )
        wall = time.perf_counter() - begin
    cpu = time.process_time() - before + sum(look.below.values())
    listed = np.array([(leak.a, leak.b) for leak in result.leaks], np.int64).reshape(-1, 2)
    known = _codes(crossing[:, 0], crossing[:, 1], len(part))
    right = int(np.isin(_codes(listed[:, 0], listed[:, 1], len(part)), known).sum())
    return [
        Row("audit: planted pairs across parts", len(crossing), "pairs"),
        Row("audit: of them found", right / max(len(crossing), 1), "share"),
        Row("audit: pairs found that were planted", right / max(len(listed), 1), "share"),
        Row("audit: its own trial copies that it found", result.found / max(result.trials, 1), "share"),
        Row("audit, wall", wall, "s"),
        Row("audit, cpu", cpu, "s"),
        Row("audit: peak memory", _peak_mib(), "MiB"),
    ]


def _codes(a: NDArray[np.int64], b: NDArray[np.int64], images: int) -> NDArray[np.int64]:
    return np.minimum(a, b) * images + np.maximum(a, b)


def _load(when: str) -> Row:
    return Row(f"load average of the last minute, {when}", os.getloadavg()[0], "processes")


def _peak_mib() -> float:
    """Return the most memory that this process has held so far."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / MIB
