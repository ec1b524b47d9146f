"""`bloodcell bench order`: the sample order of a huge training run, checked and timed beside a stored permutation.

For the owner of the command line: `add_arguments(parser)` declares the flags, `run_arguments(args)` returns the Result.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from bloodcell.data.order import BatchOrder, NaturalPlan
from jobs.bench.result import Result, Row, interleaved, measured
from shards.console import progress
from shards.errors import CheckFailed

SEED = 0
EPOCH = 1  # not the first: starting anywhere must cost nothing
CHUNK = 64  # micro-batches of a walk that are asked for at a time
MIB = 2**20

STORED = "numpy permutation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bloodcell bench order`."""
    parser.add_argument("--ranks", type=int, default=1024, help="ranks to simulate (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=10**8, help="samples in the set (default: %(default)s)")
    parser.add_argument("--micro-batch", type=int, default=32, help="samples a rank and step (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each timing (default: %(default)s)")


def run_arguments(args: argparse.Namespace) -> Result:
    """Run the benchmark as the flags say; arguments and errors as in `run`."""
    return run(args.ranks, args.samples, args.micro_batch, args.repeats)


def run(ranks: int = 1024, samples: int = 10**8, micro_batch: int = 32, repeats: int = 5) -> Result:
    """Check and time the order of `samples` samples dealt to `ranks` ranks, one micro-batch a rank and step.

    Raises:
        CheckFailed: the order deals a sample twice, leaves one out or depends on the number of ranks.
        BadInput: the samples do not fill one step.
    """
    order = BatchOrder(NaturalPlan(np.array([[0, samples]], dtype=np.int64)), SEED, micro_batch, ranks)
    rows = [*_check_ranks(order, ranks), *_check_epoch(order)]
    rows += [*_time(order, ranks, repeats), *_memory(order, ranks)]
    command = f"bloodcell bench order --ranks {ranks} --samples {samples} --micro-batch {micro_batch}"
    return Result(f"{command} --repeats {repeats}", rows)


def _check_ranks(order: BatchOrder, ranks: int) -> list[Row]:
    """Ask every rank of several world sizes for sampled steps: together they hold the step, whoever deals it."""
    steps = _sampled_steps(order, 3)
    worlds = sorted({1, ranks} | {ranks // part for part in (2, 4, 8) if ranks % part == 0})
    for step in progress(steps, "union over ranks", len(steps)):
        whole = np.stack([order.micro(step, micro).ids for micro in range(order.micro_batches)])
        for world in worlds:
            dealt = np.concatenate([order.step(step, world, rank).ids for rank in range(world)])
            if not np.array_equal(dealt, whole):
                raise CheckFailed(f"{world} ranks do not deal the micro-batches of the step", f"step {step}")
    return [
        Row("steps whose ranks were compared", len(steps), "steps"),
        Row(f"world sizes compared ({', '.join(map(str, worlds))})", len(worlds), "sizes"),
    ]


def _check_epoch(order: BatchOrder) -> list[Row]:
    """Walk a whole epoch, every step of every rank: no sample twice, and as many as planned."""
    seen = np.zeros(order.plan.length, dtype=bool)
    dealt = order.steps_per_epoch * order.global_batch
    width = max(order.global_batch, 1 << 18)
    chunks = range(0, dealt, width)
    for begin in progress(chunks, "walking an epoch", len(chunks)):
        positions = np.arange(begin, min(begin + width, dealt), dtype=np.int64)
        seen[order.plan.samples(positions, SEED, EPOCH).ids] = True
    distinct = int(np.count_nonzero(seen))
    if distinct != dealt:
        raise CheckFailed(f"an epoch deals {dealt} times, but only {distinct} different samples", f"epoch {EPOCH}")
    return [
        Row("different samples dealt in the epoch", distinct, "samples"),
        Row("samples dealt twice", dealt - distinct, "samples"),
        Row("samples left out (another tail each epoch)", order.plan.length - dealt, "samples"),
    ]


def _sampled_steps(order: BatchOrder, how_many: int) -> list[int]:
    """Return steps from the beginning, the middle and the end of the epoch."""
    first = EPOCH * order.steps_per_epoch
    return sorted({first + int(place) for place in np.linspace(0, order.steps_per_epoch - 1, how_many)})


def _time(order: BatchOrder, ranks: int, repeats: int) -> list[Row]:
    """Time one step of one rank, the first one after a start in mid-epoch, and long walks."""
    middle = EPOCH * order.steps_per_epoch + order.steps_per_epoch // 2
    walk = np.arange(min(CHUNK * order.micro_batch, order.plan.length), dtype=np.int64)
    rounds = 50
    cases: dict[str, Callable[[], float]] = {
        "step": lambda: _seconds(lambda: order.step(middle, ranks, ranks - 1), rounds) * 1e6,
        "walk": lambda: walk.size / _seconds(lambda: order.plan.samples(walk, SEED, EPOCH), rounds),
    }
    figures = interleaved(cases, repeats, warmups=1)
    per_step = figures["step"]
    epoch = [figure * order.steps_per_epoch / 1e6 for figure in per_step]
    stored = [_seconds(lambda: _stored(order.plan.length), 1)]
    return [
        measured("one step of one rank, from any step on", per_step, "us"),
        measured("ids a second, step by step", [order.micro_batch / figure * 1e6 for figure in per_step], "ids/s"),
        measured(f"ids a second, {walk.size} at a time", figures["walk"], "ids/s"),
        measured("order of a whole epoch, one rank", epoch, "s", f"{STORED}, time", stored),
        measured("before the first step of an epoch", [f / 1e6 for f in per_step], "s", f"{STORED}, time", stored),
        measured(f"{STORED}, time", stored, "s"),
    ]


def _memory(order: BatchOrder, ranks: int) -> list[Row]:
    """Measure the memory that one rank allocates for its order (numpy reports its arrays to tracemalloc)."""
    steps = _sampled_steps(order, 5)
    ours = _peak(lambda: [None for step in steps if order.step(step, ranks, 0).ids.size < 0])
    stored = _peak(lambda: _stored(order.plan.length))
    return [
        measured("peak memory, one rank", [ours / MIB], "MiB", f"{STORED}, peak memory", [stored / MIB]),
        measured(f"{STORED}, peak memory", [stored / MIB], "MiB"),
    ]


def _stored(length: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[SEED, EPOCH])).permutation(length)


def _seconds(work: Callable[[], object], rounds: int) -> float:
    begin = time.perf_counter()
    for _ in range(rounds):
        work()
    return (time.perf_counter() - begin) / rounds


def _peak(work: Callable[[], object]) -> int:
    """Return the most bytes that `work` held at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
