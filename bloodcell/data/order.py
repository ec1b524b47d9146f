"""The order of samples: a pure function of (seed, epoch, sampling plan), in constant memory, from any step on.

No permutation is stored. A keyed bijection of [0, n) takes a position in the epoch to a sample: a Feistel network
with modular halves (Black and Rogaway: Ciphers with Arbitrary Finite Domains, CT-RSA 2002, "generalised Feistel" and
"cycle walking"), with the SplitMix64 finaliser as its round function. It shuffles; it is no encryption.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from bloodcell.data.draws import GOLDEN, MASK, chain, mix
from shards.errors import BadInput, Fault

ROUNDS = 12  # 4 are enough for 10**8 samples; tiny sets need more until all orders are equally likely
BLOCK = 1 << 14  # positions worked on at a time: the arrays of a round stay in the processor's cache
DIGEST_MASK = (1 << 63) - 1

_ORDER, _LINEAGE = 1, 2  # first link of the hash chains: the order and the digest share no key
_S32 = np.uint64(32)


def permute(positions: np.ndarray, n: int, key: int) -> np.ndarray:
    """Return where the shuffle `key` of [0, n) takes each position: a bijection of [0, n).

    Args:
        positions: integers in [0, n), any shape.
        n: size of the set, 1 to 2**62.
        key: 64 bits that choose the shuffle.

    Returns:
        int64, same shape.

    Raises:
        Fault: a position lies outside [0, n).
    """
    return _shuffle(positions, n, key, backwards=False)


def unpermute(values: np.ndarray, n: int, key: int) -> np.ndarray:
    """Return the positions that `permute` takes to `values`; arguments, result and errors as there."""
    return _shuffle(values, n, key, backwards=True)


def _shuffle(positions: np.ndarray, n: int, key: int, backwards: bool) -> np.ndarray:
    positions = np.asarray(positions)
    if positions.size and not (positions.min() >= 0 and positions.max() < n <= 1 << 62):
        raise Fault(f"a position lies outside [0, {n})", "sample order")
    flat = positions.reshape(-1)
    found = np.empty(flat.size, dtype=np.int64)
    for begin in range(0, flat.size, BLOCK):
        part = slice(begin, begin + BLOCK)
        found[part] = _walk(flat[part].astype(np.uint64), n, key & MASK, backwards)
    return found.reshape(positions.shape)


def _walk(values: np.ndarray, n: int, key: int, backwards: bool) -> np.ndarray:
    # The network shuffles rows * columns >= n places. Who lands beyond n walks on: its cycle leads back into [0, n).
    values = _feistel(values, n, key, backwards)
    while (beyond := np.flatnonzero(values >= n)).size:
        values[beyond] = _feistel(values[beyond], n, key, backwards)
    return values


def _feistel(values: np.ndarray, n: int, key: int, backwards: bool) -> np.ndarray:
    rows, columns = _halves(n)
    left, right = np.divmod(values, np.uint64(columns))
    numbered = list(enumerate(_round_keys(key)))
    for number, word in reversed(numbered) if backwards else numbered:
        if number % 2 == 0:
            left = _turn(left, right, word, rows, backwards)
        else:
            right = _turn(right, left, word, columns, backwards)
    left *= np.uint64(columns)
    left += right
    return left


def _turn(half: np.ndarray, other: np.ndarray, word: np.uint64, size: int, backwards: bool) -> np.ndarray:
    # half + hash(other) modulo size. The 32 high bits of the hash are scaled to [0, size): no division.
    turn = mix(other + word)
    turn >>= _S32
    turn *= np.uint64(size)
    turn >>= _S32
    half = half - turn if backwards else half + turn
    # Unsigned numbers wrap: whichever of the two candidates left [0, size) is huge now.
    return np.minimum(half, half + np.uint64(size) if backwards else half - np.uint64(size))


def _halves(n: int) -> tuple[int, int]:
    # An even number of rows: with odd halves every round, so every shuffle, would be an even permutation.
    rows = math.isqrt(max(n - 1, 0)) + 1
    rows += rows % 2
    return rows, -(-n // rows)


@lru_cache(maxsize=64)
def _round_keys(key: int) -> tuple[np.uint64, ...]:
    words = np.array([key + GOLDEN * (number + 1) & MASK for number in range(ROUNDS)], dtype=np.uint64)
    return tuple(mix(words))


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
            "micro_batches",
            f"start one of {', '.join(fitting)} ranks, or make micro_batches a multiple of {max(world, 1)}",
        )


@dataclass(frozen=True, eq=False)
class BatchOrder:
    """The batches of a training run: steps of `micro_batches` micro-batches of `micro_batch` samples each.

    Steps are optimizer steps, counted from 0 over all epochs. Micro-batch j of a step goes to rank
    j // (micro_batches / world), slot j % (micro_batches / world): its samples do not depend on the world size.
    What does not fill a last step is left out, by the shuffle another part in each epoch.

    Raises:
        BadInput: a size is below 1, or the split has too few samples for one step.
    """

    plan: SamplingPlan
    seed: int
    micro_batch: int
    micro_batches: int

    def __post_init__(self) -> None:
        for name in ("micro_batch", "micro_batches"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}", name, "give a number of at least 1")
        if self.plan.length < self.global_batch:
            raise BadInput(
                f"{self.plan.length} training samples do not fill one step of {self.micro_batches} micro-batches "
                f"of {self.micro_batch}",
                f"{self.global_batch} samples a step",
                f"lower micro_batch or micro_batches so that their product is at most {self.plan.length}",
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
