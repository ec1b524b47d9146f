"""The order of samples: a pure function of (seed, epoch, sampling plan), in constant memory, from any step on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from bloodcell.data.draws import chain
from bloodcell.data.shuffle import permute
from shards.errors import BadInput, Fault

BLOCK = 1 << 14  # samples digested at a time
DIGEST_MASK = (1 << 63) - 1

_ORDER, _LINEAGE = 1, 2  # first link of the hash chains: the order and the digest share no key


@lru_cache(maxsize=64)
def epoch_key(seed: int, epoch: int) -> int:
    """Return the key of the shuffle of one epoch."""
    return int(chain(_ORDER, seed, epoch)[0])


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples in the order in which they are dealt.

    `ids`: sample ids, int64. `occurrences`: how often this id was dealt before in the same epoch, int64, same shape;
    0 where a plan has no repeats. A repeat gets other draws.
    """

    ids: np.ndarray
    occurrences: np.ndarray

    def reshape(self, *shape: int) -> Samples:
        """Return the same samples in another shape."""
        return Samples(self.ids.reshape(shape), self.occurrences.reshape(shape))


class SamplingPlan(Protocol):
    """Which samples an epoch deals, and how often; the same answer on every rank, for any positions in any order."""

    @property
    def length(self) -> int:
        """How many samples an epoch deals."""

    def samples(self, positions: np.ndarray, seed: int, epoch: int) -> Samples:
        """Return the samples at these positions (integers in [0, length)) of this epoch, same shape."""


@dataclass(frozen=True, eq=False)
class NaturalPlan:
    """Every sample once an epoch, shuffled over the whole split.

    Args:
        ranges: half-open ranges [first, last) of sample ids, shape (ranges, 2), as DatasetInfo.ranges returns them.

    Raises:
        BadInput: the ranges overlap or hold no sample.
    """

    ranges: np.ndarray

    def __post_init__(self) -> None:
        check_ranges(self.ranges)

    @property
    def length(self) -> int:
        """How many samples an epoch deals."""
        return count(self.ranges)

    def samples(self, positions: np.ndarray, seed: int, epoch: int) -> Samples:
        """Return the samples at these positions (integers in [0, length)) of this epoch, same shape."""
        shuffled = permute(positions, self.length, epoch_key(seed, epoch))
        return Samples(nth_ids(self.ranges, shuffled), np.zeros(shuffled.shape, dtype=np.int64))


def check_ranges(ranges: np.ndarray) -> None:
    """Raise BadInput if ranges of sample ids overlap, run backwards or hold no sample."""
    ordered = ranges[np.argsort(ranges[:, 0])]
    if (ordered[:, 0] > ordered[:, 1]).any() or (ordered[1:, 0] < ordered[:-1, 1]).any():
        raise BadInput("the sample ids of the shards overlap", "dataset.json", "pack the set again")
    if count(ranges) == 0:
        raise BadInput("the split holds no sample", "dataset.json", "choose another split or pack the set again")


def count(ranges: np.ndarray) -> int:
    """Return how many ids the half-open ranges hold."""
    return int((ranges[:, 1] - ranges[:, 0]).sum())


def nth_ids(ranges: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the ids with these numbers (counted from 0 through the ranges, row by row): int64, shape of `numbers`."""
    ends = np.cumsum(ranges[:, 1] - ranges[:, 0])
    row = np.searchsorted(ends, numbers, side="right")
    return (numbers + (ranges[:, 1] - ends)[row]).astype(np.int64)


def check_world(micro_batches: int, world: int) -> None:
    """Raise BadInput, naming the world sizes that fit, unless `world` ranks can share `micro_batches` equally."""
    if world < 1 or micro_batches % world:
        fitting = [str(size) for size in range(1, micro_batches + 1) if micro_batches % size == 0]
        raise BadInput(
            f"{micro_batches} micro-batches cannot be dealt equally to {world} ranks",
            "train.micro_batches",
            f"start {_either(fitting)}, or make train.micro_batches a multiple of {max(world, 1)}",
        )


def _either(sizes: list[str]) -> str:
    return f"{', '.join(sizes[:-1])} or {sizes[-1]} ranks" if len(sizes) > 1 else f"{sizes[0]} rank"


@dataclass(frozen=True, eq=False)
class BatchOrder:
    """The batches of a training run: steps of `micro_batches` micro-batches of `micro_batch` samples each.

    Steps are optimizer steps, counted from 0 over all epochs. Micro-batch j of a step goes to rank
    j // (micro_batches / world), slot j % (micro_batches / world): its samples do not depend on the world size.
    What does not fill a last step is left out, by the shuffle another part in each epoch. `window_steps`: so many steps
    of an epoch hold neighbours in the tars, for readers that read these together.

    Raises:
        BadInput: a size is below 1, or the split has too few samples for one step.
    """

    plan: SamplingPlan
    seed: int
    micro_batch: int
    micro_batches: int
    window_steps: int = 1

    def __post_init__(self) -> None:
        for name in ("micro_batch", "micro_batches"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}", name, "give a number of at least 1")
        if self.plan.length < self.global_batch:
            raise BadInput(
                f"{self.plan.length} training samples do not fill one step of {self.micro_batches} micro-batches "
                f"of {self.micro_batch}",
                f"{self.global_batch} samples a step",
                f"lower data.micro_batch or train.micro_batches so that their product is at most {self.plan.length}",
            )

    @property
    def global_batch(self) -> int:
        """Samples that one optimizer step uses, over all ranks."""
        return self.micro_batch * self.micro_batches

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps in an epoch."""
        return self.plan.length // self.global_batch

    def epoch(self, step: int) -> int:
        """Return the epoch that a step belongs to, counted from 0."""
        return step // self.steps_per_epoch

    def window(self, step: int) -> int:
        """Return the window that a step belongs to, counted from 0 over all epochs."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return epoch * -(-self.steps_per_epoch // self.window_steps) + within // self.window_steps

    def step(self, step: int, world: int, rank: int) -> Samples:
        """Return what `rank` of `world` ranks trains on in `step`: shape (micro_batches / world, micro_batch).

        Raises:
            BadInput: the ranks cannot share the micro-batches equally.
            Fault: there is no such rank or step.
        """
        check_world(self.micro_batches, world)
        if not 0 <= rank < world:
            raise Fault(f"no rank {rank} among {world}", "sample order")
        slots = self.micro_batches // world
        return self._deal(step, rank * slots, slots).reshape(slots, self.micro_batch)

    def micro(self, step: int, micro_index: int) -> Samples:
        """Return micro-batch number `micro_index` of `step`: shape (micro_batch,). Raises Fault if there is none."""
        if not 0 <= micro_index < self.micro_batches:
            raise Fault(f"no micro-batch {micro_index} among {self.micro_batches}", "sample order")
        return self._deal(step, micro_index, 1)

    def _deal(self, step: int, first: int, how_many: int) -> Samples:
        if step < 0:
            raise Fault(f"there is no step {step}", "sample order")
        epoch, within = divmod(step, self.steps_per_epoch)
        begin = within * self.global_batch + first * self.micro_batch
        positions = np.arange(begin, begin + how_many * self.micro_batch, dtype=np.int64)
        return self.plan.samples(positions, self.seed, epoch)


@dataclass(frozen=True, eq=False)
class EvaluationOrder:
    """Every sample of a split once, in the order of ids, in batches of one fixed shape.

    Batch b goes to rank b % world. The last batch, and whole batches where the ranks do not come out even, are filled
    with the last id, marked as not valid: every rank runs the same number of batches of the same shape.

    Args:
        ranges: half-open ranges [first, last) of sample ids, shape (ranges, 2).
        batch_size: samples in a batch.

    Raises:
        BadInput: the ranges overlap or hold no sample, or the batch size is below 1.
    """

    ranges: np.ndarray
    batch_size: int

    def __post_init__(self) -> None:
        check_ranges(self.ranges)
        if self.batch_size < 1:
            raise BadInput(f"the batch size is {self.batch_size}", "evaluation", "give a number of at least 1")

    @property
    def length(self) -> int:
        """Samples in the split."""
        return count(self.ranges)

    def batches_per_rank(self, world: int) -> int:
        """Return how many batches each of `world` ranks runs."""
        return -(-self.length // (self.batch_size * world))

    def batch(self, index: int, world: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Return batch `index` of this rank: ids int64 and valid bool, both of shape (batch_size,)."""
        if not (0 <= rank < world and 0 <= index < self.batches_per_rank(world)):
            raise Fault(f"no batch {index} for rank {rank} of {world}", "evaluation order")
        begin = (index * world + rank) * self.batch_size
        numbers = np.arange(begin, begin + self.batch_size, dtype=np.int64)
        return nth_ids(self.ranges, np.minimum(numbers, self.length - 1)), numbers < self.length


def step_digest(ids: np.ndarray, occurrences: np.ndarray, step: int | np.ndarray) -> int:
    """Return the lineage digest of samples consumed in `step`: a sum of hashes modulo 2**63.

    Sums of digests taken modulo 2**63 (`& DIGEST_MASK`) do not depend on how samples were shared between ranks, slots
    and restarts, so each rank adds up its own and the sums are added at the end.

    Args:
        ids: sample ids, integers.
        occurrences: as in Samples, same shape.
        step: the optimizer step, counted from 0; an array gives one per sample.
    """
    words = chain(_LINEAGE, np.asarray(step), np.asarray(ids), np.asarray(occurrences))
    return int(words.sum(dtype=np.uint64)) & DIGEST_MASK


def planned_digest(order: BatchOrder, first_step: int, last_step: int) -> int:
    """Return the digest of all samples that the steps [first_step, last_step) deal over all ranks."""
    total = 0
    for begin, end in _within_epochs(order, first_step, last_step):
        epoch, within = divmod(begin, order.steps_per_epoch)
        first = within * order.global_batch
        positions = np.arange(first, first + (end - begin) * order.global_batch, dtype=np.int64)
        dealt = order.plan.samples(positions, order.seed, epoch)
        steps = np.repeat(np.arange(begin, end), order.global_batch)
        total += step_digest(dealt.ids, dealt.occurrences, steps)
    return total & DIGEST_MASK


def _within_epochs(order: BatchOrder, first_step: int, last_step: int) -> Iterator[tuple[int, int]]:
    # Runs of steps that do not cross into another epoch and hold about BLOCK samples.
    most = max(BLOCK // order.global_batch, 1)
    step = first_step
    while step < last_step:
        end = min(last_step, step + most, (order.epoch(step) + 1) * order.steps_per_epoch)
        yield step, end
        step = end
