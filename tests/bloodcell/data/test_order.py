"""The order of samples: exactly once, the same for any number of ranks, from any step on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloodcell.data.order import (
    DIGEST_MASK,
    BatchOrder,
    EvaluationOrder,
    NaturalPlan,
    Samples,
    check_world,
    nth_ids,
    planned_digest,
    step_digest,
)
from shards.errors import BadInput, Fault

MANY = settings(max_examples=60, deadline=None)


def ranges_of(*sizes: int) -> np.ndarray:
    """Return ranges of these sizes with holes of 10 ids before each."""
    firsts = np.cumsum([10, *(size + 10 for size in sizes)])[:-1]
    return np.array([[first, first + size] for first, size in zip(firsts, sizes, strict=True)], dtype=np.int64)


def ids_of(ranges: np.ndarray) -> np.ndarray:
    return np.concatenate([np.arange(first, last) for first, last in ranges])


def natural(size: int, micro_batch: int = 4, micro_batches: int = 6, seed: int = 0) -> BatchOrder:
    return BatchOrder(NaturalPlan(ranges_of(size)), seed, micro_batch, micro_batches)


def epoch_ids(order: BatchOrder, epoch: int) -> np.ndarray:
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    return np.concatenate([order.step(step, 1, 0).ids.ravel() for step in steps])


@st.composite
def orders(draw: st.DrawFn) -> BatchOrder:
    micro_batch, micro_batches = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    least = micro_batch * micro_batches
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=4))
    sizes[0] += max(least - sum(sizes), 0)
    return BatchOrder(NaturalPlan(ranges_of(*sizes)), draw(st.integers(-9, 2**64)), micro_batch, micro_batches)


@MANY
@given(order=orders(), epoch=st.integers(0, 10**6))
def test_each_id_at_most_once_an_epoch(order: BatchOrder, epoch: int) -> None:
    dealt = epoch_ids(order, epoch)
    assert len(dealt) == len(np.unique(dealt)) == order.steps_per_epoch * order.global_batch
    assert np.isin(dealt, ids_of(order.plan.ranges)).all()  # type: ignore[attr-defined]


@MANY
@given(order=orders(), step=st.integers(0, 10**9))
def test_micro_batches_do_not_depend_on_the_world_size(order: BatchOrder, step: int) -> None:
    micros = np.stack([order.micro(step, micro).ids for micro in range(order.micro_batches)])
    for world in range(1, order.micro_batches + 1):
        if order.micro_batches % world:
            with pytest.raises(BadInput):
                order.step(step, world, 0)
            continue
        slots = order.micro_batches // world
        for rank in range(world):
            dealt = order.step(step, world, rank)
            assert dealt.ids.shape == dealt.occurrences.shape == (slots, order.micro_batch)
            np.testing.assert_array_equal(dealt.ids, micros[rank * slots : (rank + 1) * slots])


@MANY
@given(order=orders(), first=st.integers(0, 50), count=st.integers(1, 20))
def test_starting_anywhere_equals_walking_there(order: BatchOrder, first: int, count: int) -> None:
    walked = [order.step(step, 1, 0).ids for step in range(first + count)][first:]
    again = BatchOrder(order.plan, order.seed, order.micro_batch, order.micro_batches)
    started = [again.step(step, 1, 0).ids for step in range(first, first + count)]
    np.testing.assert_array_equal(walked, started)


def test_epochs_and_seeds_differ_and_so_does_the_tail() -> None:
    order = natural(1000)
    everything = set(ids_of(order.plan.ranges).tolist())  # type: ignore[attr-defined]
    epochs = [epoch_ids(order, epoch) for epoch in range(6)]
    tails = [frozenset(everything - set(epoch.tolist())) for epoch in epochs]
    assert {len(tail) for tail in tails} == {1000 - order.steps_per_epoch * order.global_batch}
    assert len(set(tails)) == 6
    assert not np.array_equal(epochs[0], epoch_ids(natural(1000, seed=1), 0))
    # A random order keeps about one sample in its place.
    assert all((a == b).sum() < 8 for a, b in pairwise(epochs))


def test_steps_count_over_epochs() -> None:
    order = natural(100)
    assert order.steps_per_epoch == 4
    assert [order.epoch(step) for step in (0, 3, 4, 11)] == [0, 0, 1, 2]
    np.testing.assert_array_equal(np.sort(epoch_ids(natural(96), 2)), np.arange(10, 106))


def test_the_shuffle_mixes_all_ranges() -> None:
    plan = NaturalPlan(ranges_of(500, 1, 499))
    dealt = plan.samples(np.arange(1000), 0, 0)
    np.testing.assert_array_equal(np.sort(dealt.ids), ids_of(plan.ranges))
    assert not dealt.occurrences.any()
    assert 180 < (dealt.ids[:400] < 510).sum() < 220


def test_too_few_samples_say_how_many_and_what_to_lower() -> None:
    with pytest.raises(
        BadInput, match=r"23 training samples .* 6 micro-batches of 4 .*data.micro_batch or train"
    ) as bad:
        natural(23)
    assert "at most 23" in bad.value.fix
    assert natural(24).steps_per_epoch == 1


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (-1, 1)])
def test_sizes_below_one_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match="at least 1"):
        natural(100, *sizes)


def test_the_world_size_must_divide_and_the_error_names_those_that_do() -> None:
    for world in (1, 2, 3, 4, 6, 12):
        check_world(12, world)
    for world in (0, 5, 24):
        with pytest.raises(BadInput, match="1, 2, 3, 4, 6 or 12 ranks"):
            check_world(12, world)
    with pytest.raises(BadInput, match="start 1 rank,"):
        check_world(1, 2)


def test_faults_inside_are_loud() -> None:
    order = natural(100)
    with pytest.raises(Fault, match="no rank 2"):
        order.step(0, 2, 2)
    with pytest.raises(Fault, match="there is no step -1"):
        order.step(-1, 1, 0)
    with pytest.raises(Fault, match="no micro-batch 6"):
        order.micro(0, 6)


@pytest.mark.parametrize("ranges", [[[0, 5], [4, 9]], [[5, 3]], [[3, 3]], []])
def test_unusable_ranges_are_refused(ranges: list[list[int]]) -> None:
    rows = np.array(ranges, dtype=np.int64).reshape(-1, 2)
    with pytest.raises(BadInput):
        NaturalPlan(rows)
    with pytest.raises(BadInput):
        EvaluationOrder(rows, 4)


def test_nth_ids_counts_through_the_ranges() -> None:
    ranges = np.array([[10, 13], [5, 5], [20, 22]], dtype=np.int64)
    assert nth_ids(ranges, np.array([[0, 2], [3, 4]])).tolist() == [[10, 12], [20, 21]]


@MANY
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), batch=st.integers(1, 50), world=st.integers(1, 9))
def test_evaluation_deals_every_id_once(sizes: list[int], batch: int, world: int) -> None:
    order = EvaluationOrder(ranges_of(*sizes), batch)
    ids = ids_of(order.ranges)
    dealt = {}
    for rank in range(world):
        for index in range(order.batches_per_rank(world)):
            dealt[index * world + rank] = order.batch(index, world, rank)
    valid = np.concatenate([dealt[number][1] for number in sorted(dealt)])
    found = np.concatenate([dealt[number][0] for number in sorted(dealt)])
    assert len(dealt) == world * order.batches_per_rank(world)
    assert all(some.shape == mask.shape == (batch,) for some, mask in dealt.values())
    np.testing.assert_array_equal(found[valid], ids)
    np.testing.assert_array_equal(found[~valid], ids[-1])
    assert len(valid) - len(ids) < batch * world  # no rank runs a batch that none needs


def test_evaluation_refuses_batches_that_do_not_exist() -> None:
    order = EvaluationOrder(ranges_of(10), 4)
    assert order.batches_per_rank(2) == 2
    for index, rank in ((2, 0), (0, 2), (-1, 0)):
        with pytest.raises(Fault):
            order.batch(index, 2, rank)
    with pytest.raises(BadInput):
        EvaluationOrder(ranges_of(10), 0)


@dataclass(frozen=True)
class TwicePlan:
    """Deals each of `size` samples twice an epoch."""

    size: int

    @property
    def length(self) -> int:
        return 2 * self.size

    def samples(self, positions: np.ndarray, seed: int, epoch: int) -> Samples:
        return Samples(positions % self.size, positions // self.size)


@MANY
@given(order=orders(), first=st.integers(0, 40), count=st.integers(0, 20), data=st.data())
def test_the_planned_digest_is_what_any_ranks_consume(
    order: BatchOrder, first: int, count: int, data: st.DataObject
) -> None:
    sizes = [size for size in range(1, order.micro_batches + 1) if order.micro_batches % size == 0]
    total = 0
    for step in range(first, first + count):
        world = data.draw(st.sampled_from(sizes))  # the run may have gone on with another number of ranks
        for rank in data.draw(st.permutations(range(world))):
            for ids, occurrences in zip(*vars(order.step(step, world, rank)).values(), strict=True):
                total += step_digest(ids, occurrences, step)
    assert total & DIGEST_MASK == planned_digest(order, first, first + count)


def test_the_digest_notices_a_lost_a_repeated_and_a_misplaced_sample() -> None:
    order = natural(100)
    ids, none = order.step(2, 1, 0).ids.ravel(), np.zeros(24, dtype=np.int64)
    planned = planned_digest(order, 2, 3)
    assert step_digest(ids, none, 2) == planned
    assert step_digest(ids[::-1], none, 2) == planned
    assert step_digest(ids[1:], none[1:], 2) != planned
    assert step_digest(np.append(ids, ids[0]), np.zeros(25), 2) != planned
    assert step_digest(np.append(ids[1:], ids[1]), none, 2) != planned
    assert step_digest(ids, none + 1, 2) != planned
    assert step_digest(ids, none, 3) != planned


def test_the_digest_counts_occurrences_and_is_fixed_for_ever() -> None:
    order = BatchOrder(TwicePlan(8), 0, 2, 2)
    dealt = [order.step(step, 1, 0) for step in range(4)]
    consumed = sum(step_digest(some.ids, some.occurrences, step) for step, some in enumerate(dealt))
    assert consumed & DIGEST_MASK == planned_digest(order, 0, 4) == KNOWN_DIGEST
    assert natural(100).step(7, 2, 1).ids.tolist() == KNOWN_STEP


KNOWN_DIGEST = 3200890510657011493
KNOWN_STEP = [[42, 105, 84, 39], [104, 38, 45, 98], [11, 76, 72, 24]]
