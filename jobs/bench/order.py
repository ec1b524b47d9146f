"""`bloodcell bench order`: the sample order of a huge training run, checked and timed beside a stored permutation.

For the owner of the command line: `add_arguments(parser)` declares the flags, `run_arguments(args)` returns the Result.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from bloodcell.data.order import BLOCK, BatchOrder, NaturalPlan
from bloodcell.data.sampling import ClassPlan, sampling_plan
from bloodcell.data.streaming import StreamPlan, check_sampling
from jobs.bench.result import Result, Row, interleaved, measured
from shards.console import progress
from shards.errors import BadInput, CheckFailed

SEED = 0
EPOCH = 1  # not the first: starting anywhere must cost nothing
WALK = 512  # micro-batches of a long walk
CALLS = 50  # of each timed piece of work, in a repeat
MIB = 2**20

STORED = "numpy permutation"
STORED_MEMORY = "numpy permutation, memory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bloodcell bench order`."""
    parser.add_argument("--ranks", type=int, default=1024, help="ranks to simulate (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=10**8, help="samples in the set (default: %(default)s)")
    parser.add_argument("--micro-batch", type=int, default=32, help="samples a rank and step (default: %(default)s)")
    parser.add_argument(
        "--sampling",
        default="natural",
        help="as data.sampling; others than natural deal from drawn labels, class a half, b a quarter, ... "
        "(default: %(default)s)",
    )
    parser.add_argument("--reader", choices=["plan", "stream"], default="plan", help="as data.reader (%(default)s)")
    parser.add_argument("--shards", type=int, default=10**4, help="for stream: shards of the set (%(default)s)")
    parser.add_argument("--window", type=int, default=4096, help="for stream: as data.window (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each timing (default: %(default)s)")


def run_arguments(args: argparse.Namespace) -> Result:
    """Run the benchmark as the flags say; arguments and errors as in `run`."""
    if args.reader == "stream":
        check_sampling(args.sampling, args.reader)
        return stream(args.ranks, args.samples, args.micro_batch, args.repeats, args.shards, args.window)
    return run(args.ranks, args.samples, args.micro_batch, args.repeats, args.sampling)


def stream(ranks: int, samples: int, micro_batch: int, repeats: int, shards: int, window: int) -> Result:
    """Check and time the order of the reader `stream` in the same way, and what it mixes; errors as of `run`."""
    if min(ranks, samples, micro_batch, repeats, window) < 1 or not 1 <= shards <= samples:
        raise BadInput("a number is too small", "bench order", "give at least 1, and a sample for each shard")
    edges = np.linspace(0, samples, shards + 1).astype(np.int64)
    plan = StreamPlan(np.stack([edges[:-1], edges[1:]], axis=1), micro_batch, ranks, window)
    order = BatchOrder(plan, SEED, micro_batch, ranks, plan.window_steps)
    rows = [*_check_ranks(order, ranks), *_check_epoch(order), *_mixing(order, edges), *_costs(order, ranks, repeats)]
    command = f"bloodcell bench order --reader stream --ranks {ranks} --samples {samples} --micro-batch {micro_batch}"
    return Result(f"{command} --shards {shards} --window {window} --repeats {repeats}", rows)


def _mixing(order: BatchOrder, edges: np.ndarray) -> list[Row]:
    """Walk an epoch of the first rank: which shards it reads, and who meets in its micro-batches."""
    first = EPOCH * order.steps_per_epoch
    dealt = np.stack([order.micro(first + step, 0).ids for step in range(order.steps_per_epoch)])
    near = np.diff(np.sort(dealt, axis=1), axis=1) == 1
    read = len(np.unique(np.searchsorted(edges, dealt, side="right")))
    share = near.sum() / dealt.size
    chance = (order.micro_batch - 1) / max(order.window_steps * order.micro_batch - 1, 1)
    return [
        Row("shards that a rank reads in an epoch", read, "shards"),
        Row("neighbours in a tar that meet in a micro-batch", float(share), "of all"),
        Row("as it would be by chance inside a window", chance, "of all"),
    ]


def run(
    ranks: int = 1024, samples: int = 10**8, micro_batch: int = 32, repeats: int = 5, sampling: str = "natural"
) -> Result:
    """Check and time the order of `samples` samples dealt to `ranks` ranks, one micro-batch a rank and step.

    Raises:
        CheckFailed: the order deals a sample twice, leaves one out or depends on the number of ranks.
        BadInput: the samples do not fill one step, a number is below 1, or there is no such sampling.
    """
    if min(ranks, samples, micro_batch, repeats) < 1:
        raise BadInput("a number is below 1", "bench order", "give numbers of at least 1")
    ranges = np.array([[0, samples]], dtype=np.int64)
    if sampling == "natural":
        order = BatchOrder(NaturalPlan(ranges), SEED, micro_batch, ranks)
        rows = [*_check_ranks(order, ranks), *_check_epoch(order)]
    else:
        plan, made = _class_plan(sampling, ranges)
        order = BatchOrder(plan, SEED, micro_batch, ranks)
        rows = [*_check_ranks(order, ranks), *_check_counts(plan), *made]
    rows += _costs(order, ranks, repeats)
    command = f"bloodcell bench order --ranks {ranks} --samples {samples} --micro-batch {micro_batch}"
    command += "" if sampling == "natural" else f" --sampling {sampling}"
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
        Row("steps put together from all their ranks", len(steps), "steps"),
        Row(f"with world sizes {', '.join(map(str, worlds))}", len(worlds), "sizes"),
    ]


def _check_epoch(order: BatchOrder) -> list[Row]:
    """Walk all steps of an epoch, over all ranks: no sample twice, and as many as planned."""
    seen = np.zeros(order.plan.length, dtype=bool)
    first, count = EPOCH * order.steps_per_epoch, order.steps_per_epoch
    for step in progress(range(first, first + count), "walking an epoch", count):
        seen[order.step(step, 1, 0).ids] = True
    dealt = count * order.global_batch
    distinct = int(np.count_nonzero(seen))
    if distinct != dealt:
        raise CheckFailed(f"an epoch deals {dealt} times, but only {distinct} different samples", f"epoch {EPOCH}")
    return [
        Row("different samples dealt in a whole epoch", distinct, "samples"),
        Row("samples dealt twice", dealt - distinct, "samples"),
        Row("samples left out, others in each epoch", order.plan.length - dealt, "samples"),
    ]


def _class_plan(sampling: str, ranges: np.ndarray) -> tuple[ClassPlan, list[Row]]:
    """Make a plan over drawn labels: of each class half as many as of the one before."""
    samples, classes = int(ranges[0, 1]), "abcdefgh"
    drawn = np.random.Generator(np.random.Philox(key=[SEED, EPOCH])).random(samples, dtype=np.float32)
    labels = np.minimum(-np.log2(np.maximum(drawn, 1e-9)), len(classes) - 1).astype(np.int8)
    del drawn
    begin = time.perf_counter()
    plan = sampling_plan(sampling, ranges, labels, classes)
    seconds = time.perf_counter() - begin
    assert isinstance(plan, ClassPlan)
    held = plan.members.nbytes
    return plan, [
        Row("making the table of classes, once a rank", seconds, "s"),
        Row("memory of the table of classes", held / MIB, "MiB"),
        Row("bytes of the table for each sample", held / samples, "bytes"),
    ]


def _check_counts(plan: ClassPlan) -> list[Row]:
    """Deal a whole epoch: each class as often as planned, its samples equally often, each deal with its own number."""
    times = np.zeros(int(plan.members.ranges[0, 1]), dtype=np.int32)
    starts = range(0, plan.length, BLOCK)
    for begin in progress(starts, "walking an epoch", len(starts)):
        dealt = plan.samples(np.arange(begin, min(begin + BLOCK, plan.length)), SEED, EPOCH)
        order = np.argsort(dealt.ids, kind="stable")
        ids = dealt.ids[order]
        again = np.arange(len(ids)) - np.searchsorted(ids, ids)  # times that the block dealt this id before
        if not np.array_equal(dealt.occurrences[order], times[ids] + again):
            raise CheckFailed("an occurrence is not the number of earlier deals", f"epoch {EPOCH}")
        np.add.at(times, ids, 1)
    spread = 0
    for label, quota in enumerate(plan.quotas.tolist()):
        numbers = np.arange(int(plan.members.counts[label]))
        own = times[plan.members.ids(np.full_like(numbers, label), numbers)]
        spread = max(spread, int(own.max() - own.min()))
        if int(own.sum()) != quota or spread > 1:
            raise CheckFailed(f"class {label} is dealt {int(own.sum())} times, not {quota}", f"epoch {EPOCH}")
    return [
        Row("samples dealt in a whole epoch", plan.length, "samples"),
        Row("most deals of one sample", int(times.max()), "deals"),
        Row("difference in deals inside a class, at most", spread, "deals"),
    ]


def _sampled_steps(order: BatchOrder, how_many: int) -> list[int]:
    """Return steps from the beginning, the middle and the end of the epoch."""
    first = EPOCH * order.steps_per_epoch
    return sorted({first + int(place) for place in np.linspace(0, order.steps_per_epoch - 1, how_many)})


def _costs(order: BatchOrder, ranks: int, repeats: int) -> list[Row]:
    """Time a rank's steps and long walks, measure what they hold, and do the same with a permutation stored once."""
    middle = EPOCH * order.steps_per_epoch + order.steps_per_epoch // 2
    walk = np.arange(min(WALK * order.micro_batch, order.plan.length), dtype=np.int64)
    cases: dict[str, Callable[[], float]] = {
        "step": lambda: _seconds(lambda: order.step(middle, ranks, ranks - 1)),
        "walk": lambda: _seconds(lambda: order.plan.samples(walk, SEED, EPOCH)),
    }
    figures = interleaved(cases, repeats, warmups=1)
    steps, walks = figures["step"], figures["walk"]
    per_rank = order.global_batch // ranks
    held = _peak(lambda: order.step(middle, ranks, 0))[1]
    held += order.plan.members.nbytes if isinstance(order.plan, ClassPlan) else 0
    held += 2 * order.plan.shards.nbytes if isinstance(order.plan, StreamPlan) else 0  # and the row of an epoch
    _stored(1)  # numpy loads its generators with the first
    stored_seconds, stored = _peak(lambda: _stored(order.plan.length))
    whole = [figure * order.steps_per_epoch for figure in steps]
    return [
        measured("a step of one rank, any step", [figure * 1e6 for figure in steps], "us"),
        measured("ids, step by step", [per_rank / figure for figure in steps], "ids/s"),
        measured(f"ids, {walk.size} at a time", [walk.size / figure for figure in walks], "ids/s"),
        measured("wait before an epoch's first step", steps, "s", STORED, [stored_seconds]),
        measured("all steps of an epoch, one rank", whole, "s", STORED, [stored_seconds]),
        measured(STORED, [stored_seconds], "s"),
        measured("peak memory of one rank's order", [held / MIB], "MiB", STORED_MEMORY, [stored / MIB]),
        measured(STORED_MEMORY, [stored / MIB], "MiB"),
    ]


def _stored(length: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[SEED, EPOCH])).permutation(length)


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    for _ in range(CALLS):
        work()
    return (time.perf_counter() - begin) / CALLS


def _peak(work: Callable[[], object]) -> tuple[float, int]:
    """Return the seconds that `work` took and the most bytes that it held at once (numpy reports its arrays)."""
    tracemalloc.start()
    try:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
