"""The order of `stream`: each sample once, on any number of ranks the same, near in the tars and yet well mixed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloodcell.data.order import BatchOrder, NaturalPlan
from bloodcell.data.streaming import StreamPlan, check_sampling
from shards.errors import BadInput, Fault

SEED = 5


def shards_of(*sizes: int, gap: int = 0) -> np.ndarray:
    """Return ranges of ids of shards with these sizes; `gap` ids of other splits lie between them."""
    firsts = np.cumsum([0, *[size + gap for size in sizes[:-1]]])
    return np.stack([firsts, firsts + sizes], axis=1).astype(np.int64)


def order_of(plan: StreamPlan, seed: int = SEED) -> BatchOrder:
    return BatchOrder(plan, seed, plan.micro_batch, plan.micro_batches, plan.window_steps)


def epoch_ids(plan: StreamPlan, epoch: int, seed: int = SEED) -> np.ndarray:
    return plan.samples(np.arange(plan.length), seed, epoch).ids


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=7),
    gap=st.integers(0, 3),
    micro_batch=st.integers(1, 9),
    micro_batches=st.integers(1, 6),
    window=st.integers(1, 80),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 9),
)
def test_an_epoch_deals_each_sample_once(
    sizes: list[int], gap: int, micro_batch: int, micro_batches: int, window: int, seed: int, epoch: int
) -> None:
    if not sum(sizes):
        return
    ranges = shards_of(*sizes, gap=gap)
    plan = StreamPlan(ranges, micro_batch, micro_batches, window)
    ids = epoch_ids(plan, epoch, seed)
    assert sorted(ids) == [sample for first, last in ranges for sample in range(first, last)]
    some = np.random.default_rng(0).permutation(plan.length)[:17]
    assert (plan.samples(some, seed, epoch).ids == ids[some]).all()  # of any positions, without the others


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_micro_batches_do_not_depend_on_the_ranks(world: int) -> None:
    plan = StreamPlan(shards_of(90, 90, 41), 4, 6, 12)
    order = order_of(plan)
    for step in (0, 4, order.steps_per_epoch, 2 * order.steps_per_epoch - 1):
        dealt = np.concatenate([order.step(step, world, rank).ids for rank in range(world)])
        assert (dealt == [order.micro(step, micro).ids for micro in range(6)]).all()


def test_epochs_and_seeds_differ_and_so_does_what_is_left_out() -> None:
    plan = StreamPlan(shards_of(70, 70, 70, 30), 8, 4, 24)
    order = order_of(plan)
    dealt = order.steps_per_epoch * order.global_batch
    epochs = [epoch_ids(plan, epoch) for epoch in range(60)]
    assert (epochs[0] == epochs[1]).mean() < 0.05
    assert (epochs[0] == epoch_ids(plan, 0, seed=SEED + 1)).mean() < 0.05
    left = np.concatenate([ids[dealt:] for ids in epochs])
    assert len(left) == 60 * (plan.length - dealt) > 0
    assert len(set(left.tolist())) > 0.9 * plan.length  # over the epochs it is everybody's turn


def test_a_rank_reads_the_stretches_of_its_lanes_and_no_others() -> None:
    """20 shards, 4 lanes: a lane is a stretch of five shards, a window of it one of as many samples."""
    plan = StreamPlan(shards_of(*[160] * 20, gap=7), 8, 4, 64)
    order = order_of(plan)
    whole = [order.step(step, 1, 0).ids for step in range(order.steps_per_epoch)]
    shard = lambda ids: np.unique(np.searchsorted(plan.shards[:, 1], ids, side="right"))  # noqa: E731
    for lane in range(4):
        ids = np.stack([dealt[lane] for dealt in whole])
        assert len(shard(ids)) <= 5 + 2  # two that it shares, or where the ring was cut open
        for first in range(0, order.steps_per_epoch, plan.window_steps):
            window = np.sort(ids[first : first + plan.window_steps].reshape(-1))
            assert np.count_nonzero(np.diff(window) != 1) <= 2
            assert {order.window(step) for step in range(first, min(first + 8, len(whole)))} == {first // 8}
    assert order.window(order.steps_per_epoch) == -(-order.steps_per_epoch // 8)  # an epoch begins a window


def test_the_quality_of_the_shuffle() -> None:
    """Neighbours in a tar meet in a micro-batch as rarely as chance in a window has it, and are spread all over it.

    Bounds: three standard errors and more of the stated shares over an epoch of 24,000 samples.
    """
    micro, window = 32, 1024
    plan = StreamPlan(shards_of(*[2000] * 12), micro, 2, window)
    order = order_of(plan)
    dealt = order.steps_per_epoch * order.global_batch
    batch = np.full((3, plan.length), -1)
    places = np.zeros((3, plan.length), dtype=np.int64)
    for epoch in range(3):
        ids = epoch_ids(plan, epoch)
        batch[epoch, ids[:dealt]] = np.arange(dealt) // micro
        places[epoch, ids] = np.arange(plan.length)
    together = [(row[1:] == row[:-1]).mean() for row in batch]
    assert max(abs(share - (micro - 1) / (window - 1)) for share in together) < 0.005
    # Who shared a micro-batch in one epoch does so in the next no more often than chance in a window has it.
    pairs = [members for members in (np.flatnonzero(batch[0] == number) for number in range(100)) if len(members)]
    again = np.mean([(batch[1, a[:, None]] == batch[1, a]).sum() - len(a) for a in pairs]) / (micro * (micro - 1))
    assert again < 1.5 * (micro - 1) / (window - 1)
    # Inside a window the place in the tar tells nothing about the turn.
    lane = np.stack([order.step(step, 1, 0).ids[0] for step in range(plan.window_steps)]).reshape(-1)
    assert abs(np.corrcoef(np.arange(len(lane)), lane.argsort().argsort())[0, 1]) < 0.1


def test_labels_of_a_micro_batch_are_as_mixed_as_in_a_plan_without_windows() -> None:
    """Where packing has shuffled a set, counts of a class in micro-batches spread as under the full shuffle (10 %)."""
    labels = np.random.default_rng(1).random(20_000) < 0.2
    stream, full = StreamPlan(shards_of(*[2000] * 10), 32, 4, 512), NaturalPlan(np.array([[0, 20_000]]))
    spread = []
    for plan in (stream, full):
        order = BatchOrder(plan, SEED, 32, 4)
        counts = [labels[order.step(step, 1, 0).ids].sum(axis=1) for step in range(order.steps_per_epoch)]
        spread.append(np.concatenate(counts).std())
    assert spread[0] == pytest.approx(spread[1], rel=0.1)


def test_memory_is_a_row_for_each_shard() -> None:
    """10^8 samples in 10,000 shards, 1,024 lanes: any step at once."""
    plan = StreamPlan(shards_of(*[10_000] * 10_000), 32, 1024, 4096)
    order = order_of(plan)
    step = 3 * order.steps_per_epoch + 1234
    dealt = order.step(step, 1024, 1023).ids
    assert (dealt == order.micro(step, 1023).ids).all()
    assert len(np.unique(dealt // 10_000)) <= 3


def test_what_cannot_be_is_refused() -> None:
    for sampling in ("balanced", 100, "a=2"):
        with pytest.raises(BadInput, match=r"stream goes through shards.*\(data.reader\): set data.reader to plan"):
            check_sampling(sampling, "stream")
    check_sampling("natural", "webdataset")
    plan = StreamPlan(shards_of(10), 4, 2, 8)
    with pytest.raises(Fault, match="outside"):
        plan.samples(np.array([10]), 0, 0)
    with pytest.raises(BadInput, match="do not fill one step"):
        order_of(StreamPlan(shards_of(7), 4, 2, 8))
    with pytest.raises(BadInput, match="overlap"):
        StreamPlan(np.array([[0, 5], [4, 9]]), 1, 1, 1)
