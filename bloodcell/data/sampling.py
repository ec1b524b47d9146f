"""Sampling plans other than the natural one: how often each class is dealt in an epoch, without copying a byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bloodcell.data.draws import chain
from bloodcell.data.members import Members
from bloodcell.data.order import NaturalPlan, Samples, SamplingPlan, check_ranges
from bloodcell.data.shuffle import permute_each
from shards.errors import BadInput, Fault, nearest

BLOCK = 1024
"""Positions of an epoch that hold each class in its proportion, mixed among themselves."""

MOST_REPEATS = 1000
"""A plan that deals one sample more often in an epoch is a mistake."""

_MIX, _PHASE, _ROUND, _CYCLE = 4, 5, 6, 7  # first links of the hash chains: 1 to 3 are the order's and the dropout's
_WORDS = ["natural", "balanced"]
_HOW = "write natural, balanced, a number of samples for each class, or weights such as 'ALL=1,HEM=2'"


@dataclass(frozen=True, eq=False)
class ClassPlan:
    """A fixed number of samples of each class in every epoch.

    Of the n samples of a class that is dealt q times, each is dealt q // n or q // n + 1 times, and none again before
    all others were (but for the last, incomplete round). Which samples get the one more follows a cycle through the
    class from epoch to epoch: over a whole run, too, each is dealt equally often, give or take one. A class larger than
    its quota shows another subset each epoch. An epoch consists of blocks of about 1,024 samples in which each class
    has its share, mixed.

    Args:
        members: the samples of each class.
        quotas: how often each class is dealt in an epoch, int64 [classes]; 0 where it has no sample.
    """

    members: Members
    quotas: np.ndarray

    @property
    def length(self) -> int:
        """How many samples an epoch deals."""
        return int(self.quotas.sum())

    def samples(self, positions: np.ndarray, seed: int, epoch: int) -> Samples:
        """Return the samples at these positions (integers in [0, length)) of this epoch, same shape.

        Costs a look at the 1,024 positions around those that are asked for.
        """
        positions = np.asarray(positions, dtype=np.int64)
        flat = positions.reshape(-1)
        if flat.size and not (flat.min() >= 0 and flat.max() < self.length):
            raise Fault(f"a position lies outside [0, {self.length})", "sampling plan")
        labels, deals = self._deals(flat, seed, epoch)
        numbers, occurrences = self._drawn(labels, deals, seed, epoch)
        ids = self.members.ids(labels, numbers)
        return Samples(ids.reshape(positions.shape), occurrences.reshape(positions.shape))

    def _deals(self, positions: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the class at each position and how often the class was dealt before it in the epoch."""
        labels, deals = np.empty_like(positions), np.empty_like(positions)
        if not positions.size:
            return labels, deals
        blocks = max(1, self.length // BLOCK)
        slack = len(self.quotas) // BLOCK + 1  # the classes round their shares of a block each for itself
        first = max(0, int(positions.min()) * blocks // self.length - slack)
        last = min(blocks, int(positions.max()) * blocks // self.length + 1 + slack)
        # Each class changes its rounded share in other blocks each epoch: no class is always in the tail.
        phases = chain(_PHASE, seed, epoch, np.arange(len(self.quotas))) % np.uint64(blocks)
        dealt = (np.arange(first, last + 1)[:, None] * self.quotas + phases.astype(np.int64)) // blocks
        edges = dealt.sum(axis=1)
        rows = np.searchsorted(edges, positions, side="right") - 1
        for row in np.unique(rows).tolist():
            mixed, before = _mixed(dealt[row + 1] - dealt[row], int(chain(_MIX, seed, epoch, first + row)[0]))
            mine = np.flatnonzero(rows == row)
            places = positions[mine] - edges[row]
            labels[mine] = mixed[places]
            deals[mine] = dealt[row][mixed[places]] + before[places]
        return labels, deals

    def _drawn(self, labels: np.ndarray, deals: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return which sample of its class each deal gives, and its round: how often that sample was dealt before."""
        sizes = self.members.counts[labels]
        whole, rest = np.divmod(self.quotas[labels], sizes)
        rounds, places = np.divmod(deals, sizes)
        among = np.where(rounds < whole, sizes, rest)
        numbers = permute_each(places, among, chain(_ROUND, seed, epoch, labels, rounds))
        part = np.flatnonzero(rounds == whole)  # the incomplete round takes its window of the cycle
        window = (epoch * rest[part] + numbers[part]) % sizes[part]
        numbers[part] = permute_each(window, sizes[part], chain(_CYCLE, seed, labels[part]))
        return numbers, rounds


def _mixed(counts: np.ndarray, key: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a shuffled sequence with so many of each class, and how many of its class stand before each entry."""
    size = int(counts.sum())
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = labels[np.argsort(chain(key, np.arange(size)), kind="stable")]
    before = np.empty(size, dtype=np.int64)
    before[np.argsort(labels, kind="stable")] = np.arange(size) - np.repeat(np.cumsum(counts) - counts, counts)
    return labels, before


def sampling_plan(sampling: int | str, ranges: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> SamplingPlan:
    """Return the plan that `data.sampling` asks for.

    Args:
        sampling: natural, balanced, samples of each class in an epoch, or weights such as 'ALL=1,HEM=2'.
        ranges: half-open ranges [first, last) of the ids of the training split, int64 (ranges, 2).
        labels: class index of every sample of the set by id.
        classes: class names in index order.

    Raises:
        BadInput: neither of these, an unknown class, a weight or number that makes no sense, a class without a sample.
    """
    if sampling == "natural":
        return NaturalPlan(ranges)
    weights = None if str(sampling).isdecimal() else parse_weights(str(sampling), classes)
    check_ranges(ranges)
    members = Members.of(labels, ranges, len(classes))
    for name, n in zip(classes, members.counts.tolist(), strict=True):
        if n == 0:
            raise BadInput(
                f"class {name!r} has no training sample that data.sampling could deal",
                "data.sampling",
                "choose natural, or pack a split that has the class in train",
            )
    if weights is None:
        quotas = [int(sampling)] * len(classes)
    else:
        exact = weights / weights.sum() * members.counts.sum()
        quotas = [max(1, int(quota)) for quota in np.floor(exact + 0.5)]
    _check_sense(quotas, members.counts.tolist(), classes)
    return ClassPlan(members, np.array(quotas, dtype=np.int64))


def parse_weights(text: str, classes: Sequence[str]) -> np.ndarray:
    """Return the weight of each class, float64 [classes], from 'balanced' or 'ALL=1,HEM=2'; 1 where none is named.

    Raises:
        BadInput: not weights, an unknown class (the nearest is named), one named twice, or a weight not above 0.
    """
    weights = np.ones(len(classes))
    if text == "balanced":
        return weights
    if "=" not in text:
        raise BadInput(f"data.sampling = {text!r} will not do", "data.sampling", nearest(text, _WORDS) or _HOW)
    named = set()
    for entry in text.split(","):
        name, _, value = (word.strip() for word in entry.rpartition("="))
        if name not in classes:
            fix = nearest(name, list(classes)) or f"the classes are {', '.join(classes)}"
            raise BadInput(f"data.sampling weighs a class {name!r} that the set does not have", "data.sampling", fix)
        if name in named:
            raise BadInput(f"data.sampling weighs the class {name!r} twice", "data.sampling", "keep one weight")
        named.add(name)
        weights[list(classes).index(name)] = _weight(name, value)
    return weights


def _weight(name: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise BadInput(f"the weight of {name!r} is {text!r}", "data.sampling", "give a number above 0")
    return weight


def _check_sense(quotas: list[int], counts: list[int], classes: Sequence[str]) -> None:
    for name, quota, n in zip(classes, quotas, counts, strict=True):
        if quota < 1:
            raise BadInput("data.sampling deals no sample of a class", "data.sampling", "give a number of at least 1")
        if quota > MOST_REPEATS * n:
            raise BadInput(
                f"data.sampling deals {quota:,} samples of class {name!r} an epoch, which has {n:,}",
                "data.sampling",
                f"a sample is dealt at most {MOST_REPEATS:,} times an epoch: ask for less of it",
            )


def dealt(plan: SamplingPlan, counts: list[int]) -> list[int]:
    """Return how many samples of each class an epoch deals; `counts`: how many there are."""
    return [int(quota) for quota in plan.quotas] if isinstance(plan, ClassPlan) else counts


def describe(plan: SamplingPlan, classes: Sequence[str]) -> str:
    """Return what an epoch of the plan deals, in one line; "" for the natural plan."""
    if not isinstance(plan, ClassPlan):
        return ""
    rows = zip(classes, plan.quotas.tolist(), plan.members.counts.tolist(), strict=True)
    told = ", ".join(f"{name} {quota:,} of {n:,}" for name, quota, n in rows)
    return f"an epoch deals {plan.length:,} samples: {told}"
