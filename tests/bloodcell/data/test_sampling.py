"""Sampling plans: the counts that were asked for, nobody twice before his turn, other pixels for a repeat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloodcell.config import Config, DataConfig, decode, encode, parse_flags, read_recipe
from bloodcell.data.members import Members
from bloodcell.data.order import BatchOrder, NaturalPlan, count, nth_ids, planned_digest, step_digest
from bloodcell.data.pipeline import View, build
from bloodcell.data.policies import find_policy
from bloodcell.data.reading import Reading
from bloodcell.data.request import Request
from bloodcell.data.sampling import ClassPlan, describe, sampling_plan
from bloodcell.data.shardset import ShardSet
from bloodcell.data.source import Source
from shards.errors import BadInput, Fault

MANY = settings(max_examples=50, deadline=None)
NAMES = ["ALL", "AML", "HEM", "Pro-B", "x"]


def plan_of(sampling: int | str, sizes: list[int], seed: int = 0, hole: int = 7) -> tuple[ClassPlan, np.ndarray]:
    """Return the plan over classes of these sizes, shuffled, in two ranges with a hole between; and all labels."""
    own = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    middle = len(own) // 3
    labels = np.concatenate([own[:middle], np.full(hole, len(sizes) - 1), own[middle:]]).astype(np.int32)
    ranges = np.array([[0, middle], [middle + hole, len(labels)]])
    plan = sampling_plan(sampling, ranges, labels, NAMES[: len(sizes)])
    assert isinstance(plan, ClassPlan)
    return plan, labels


@st.composite
def plans(draw: st.DrawFn) -> tuple[ClassPlan, np.ndarray]:
    sizes = draw(st.lists(st.integers(1, 400), min_size=1, max_size=5))
    weights = [f"{name}={draw(st.sampled_from(['0.5', '1', '3']))}" for name in NAMES[: len(sizes)]]
    sampling = draw(st.sampled_from(["balanced", 1, 7, 150, ",".join(weights)]))
    return plan_of(sampling, sizes, draw(st.integers(0, 9)), draw(st.integers(0, 20)))


@MANY
@given(made=plans(), seed=st.integers(0, 2**32), epoch=st.integers(0, 10**6))
def test_every_class_and_within_it_every_sample_comes_as_often_as_planned(
    made: tuple[ClassPlan, np.ndarray], seed: int, epoch: int
) -> None:
    plan, labels = made
    dealt = plan.samples(np.arange(plan.length), seed, epoch)
    assert dealt.ids.dtype == dealt.occurrences.dtype == np.int64
    np.testing.assert_array_equal(np.bincount(labels[dealt.ids], minlength=len(plan.quotas)), plan.quotas)
    everyone = nth_ids(plan.members.ranges, np.arange(count(plan.members.ranges)))
    assert np.isin(dealt.ids, everyone).all()
    times = np.bincount(dealt.ids, minlength=len(labels))
    for label in range(len(plan.quotas)):
        own = times[everyone[labels[everyone] == label]]
        assert own.max() - own.min() <= 1
    # The occurrence counts the earlier deals of the same sample, and nobody has his turn again before all others.
    before: dict[int, int] = {}
    rounds = dict.fromkeys(range(len(plan.quotas)), 0)
    for sample, occurrence in zip(dealt.ids.tolist(), dealt.occurrences.tolist(), strict=True):
        assert occurrence == before.get(sample, 0)
        before[sample] = occurrence + 1
        assert occurrence >= rounds[int(labels[sample])]
        rounds[int(labels[sample])] = occurrence


@MANY
@given(made=plans(), seed=st.integers(0, 99), epoch=st.integers(0, 99), data=st.data())
def test_any_positions_in_any_order_give_the_same(
    made: tuple[ClassPlan, np.ndarray], seed: int, epoch: int, data: st.DataObject
) -> None:
    plan, _ = made
    whole = plan.samples(np.arange(plan.length), seed, epoch)
    some = np.array(data.draw(st.lists(st.integers(0, plan.length - 1), min_size=4, max_size=4))).reshape(2, 2)
    again = plan.samples(some, seed, epoch)
    np.testing.assert_array_equal(again.ids, whole.ids[some])
    np.testing.assert_array_equal(again.occurrences, whole.occurrences[some])


@MANY
@given(made=plans(), step=st.integers(0, 10**6), micro_batch=st.integers(1, 3), micro_batches=st.sampled_from([4, 6]))
def test_ranks_share_a_step_and_its_digest(
    made: tuple[ClassPlan, np.ndarray], step: int, micro_batch: int, micro_batches: int
) -> None:
    plan, _ = made
    if plan.length < micro_batch * micro_batches:
        with pytest.raises(BadInput, match="do not fill one step"):
            BatchOrder(plan, 3, micro_batch, micro_batches)
        return
    order = BatchOrder(plan, 3, micro_batch, micro_batches)
    whole = order.step(step, 1, 0)
    assert len(set(zip(whole.ids.flat, whole.occurrences.flat, strict=True))) == whole.ids.size
    for world in (2, micro_batches):
        ranks = [order.step(step, world, rank) for rank in range(world)]
        np.testing.assert_array_equal(np.concatenate([r.ids for r in ranks]), whole.ids)
        np.testing.assert_array_equal(np.concatenate([r.occurrences for r in ranks]), whole.occurrences)
    assert planned_digest(order, step, step + 1) == step_digest(whole.ids, whole.occurrences, step)


def test_epochs_longer_than_a_block_keep_the_proportions_everywhere() -> None:
    plan, labels = plan_of("ALL=1,AML=2,HEM=5", [9000, 40, 3000])
    dealt = labels[plan.samples(np.arange(plan.length), 1, 3).ids]
    for begin in range(0, plan.length - 2048, 512):
        share = np.bincount(dealt[begin : begin + 2048], minlength=3) / 2048
        np.testing.assert_allclose(share, [1 / 8, 2 / 8, 5 / 8], atol=0.04)
    # Inside a block the classes are mixed: neighbours are of one class as often as by chance.
    same = (dealt[1:] == dealt[:-1]).mean()
    assert abs(same - (1 + 4 + 25) / 64) < 0.02


def test_a_class_larger_than_its_quota_shows_another_subset_each_epoch_and_all_of_it_in_turn() -> None:
    plan, labels = plan_of(30, [100, 12])
    epochs = [plan.samples(np.arange(plan.length), 5, epoch) for epoch in range(10)]
    subsets = [frozenset(e.ids[labels[e.ids] == 0].tolist()) for e in epochs]
    assert all(len(subset) == 30 for subset in subsets)
    assert len(set(subsets)) == 10
    times = np.bincount(np.concatenate([e.ids for e in epochs]), minlength=len(labels))
    own = nth_ids(plan.members.ranges, np.arange(count(plan.members.ranges)))
    assert set(times[own[labels[own] == 0]].tolist()) == {3}
    assert set(times[own[labels[own] == 1]].tolist()) == {25}
    assert not np.array_equal(epochs[0].ids, plan.samples(np.arange(plan.length), 6, 0).ids)


@pytest.mark.parametrize("classes", [3, 70])
def test_members_are_those_of_the_labels(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bloodcell.data.members.BUILT_AT_ONCE", 1 << 16)
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 200_000).astype(np.int32)
    labels[labels == 1] = 2
    ranges = np.array([[5, 70_001], [70_001, 70_001], [90_000, 199_999]])
    members = Members.of(labels, ranges, classes)
    ids = nth_ids(ranges, np.arange(count(ranges)))
    for label in range(classes):
        expected = ids[labels[ids] == label]
        assert members.counts[label] == len(expected)
        np.testing.assert_array_equal(members.ids(np.full(len(expected), label), np.arange(len(expected))), expected)
    assert members.nbytes < (1.2 if classes == 3 else 2.1) * len(ids)


def test_positions_outside_the_epoch_are_a_fault() -> None:
    plan, _ = plan_of("balanced", [5, 9])
    assert plan.length == 14
    for position in (-1, 14):
        with pytest.raises(Fault, match="outside"):
            plan.samples(np.array([position]), 0, 0)
    assert plan.samples(np.empty((0, 3), np.int64), 0, 0).ids.shape == (0, 3)


def test_balanced_rounds_and_weights_default_to_one() -> None:
    assert plan_of("balanced", [10, 1, 20])[0].quotas.tolist() == [10, 10, 10]
    assert plan_of("balanced", [10, 1, 21])[0].quotas.tolist() == [11, 11, 11]
    assert plan_of(" HEM = 2 ", [10, 10, 20])[0].quotas.tolist() == [10, 10, 20]
    assert plan_of("12", [10, 10, 20])[0].quotas.tolist() == [12, 12, 12]
    assert describe(plan_of(5, [10, 3])[0], NAMES[:2]) == "an epoch deals 10 samples: ALL 5 of 10, AML 5 of 3"
    natural = sampling_plan("natural", np.array([[0, 3]]), np.zeros(3), NAMES)
    assert isinstance(natural, NaturalPlan)
    assert describe(natural, NAMES) == ""


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ("balancd", "did you mean 'balanced'"),
        ("", "write natural, balanced"),
        ("HEN=2", "'HEN'.*did you mean 'HEM'"),
        ("ALL=0", "the weight of 'ALL' is '0'.*above 0"),
        ("ALL=-1", "weight of 'ALL'"),
        ("ALL=much", "weight of 'ALL'"),
        ("ALL=inf", "weight of 'ALL'"),
        ("ALL=1,ALL=2", "twice"),
        ("ALL=1,", "''"),
        ("ALL=1,AML=1,HEM=0.00001,Pro-B=100000", "deals .* of class 'Pro-B' an epoch, which has 3"),
        (0, "at least 1"),
        ("0", "at least 1"),
        (10**30, "at most 1,000 times"),
        (3001, "3,001 samples of class 'Pro-B' an epoch, which has 3"),
    ],
)
def test_what_makes_no_sense_is_one_clear_line(sampling: int | str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        plan_of(sampling, [2000, 1000, 1000, 3])


def test_a_class_without_a_training_sample_cannot_be_dealt() -> None:
    with pytest.raises(BadInput, match="'AML' has no training sample"):
        plan_of("balanced", [10, 0, 10], hole=0)


def test_the_field_is_a_number_or_a_word_in_a_recipe_and_on_the_command_line(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    for text, value in (("200", 200), ('"balanced"', "balanced"), ('"ALL=1,HEM=2"', "ALL=1,HEM=2")):
        recipe.write_text(f"[data]\nsampling = {text}\n")
        config = read_recipe(recipe)
        assert config.data.sampling == value
        assert parse_flags(["--data.sampling", text.strip('"')]) == {"data.sampling": value}
        assert decode(encode(config)) == config == Config(data=DataConfig(sampling=value))
    for bad in ("0", "true", "2.5"):
        recipe.write_text(f"[data]\nsampling = {bad}\n")
        with pytest.raises(BadInput, match="sampling"):
            read_recipe(recipe)


def test_a_repeat_has_other_pixels_and_the_same_deal_the_same(small_set: Path) -> None:
    shards = ShardSet.open(small_set)
    label = shards.index["label"]
    plan = sampling_plan(200, shards.ranges("train"), label, shards.info.classes)
    dealt = plan.samples(np.arange(plan.length), 0, 0)
    sample = dealt.ids[np.argmax(dealt.occurrences)]
    mine = np.flatnonzero(dealt.ids == sample)
    occurrences = dealt.occurrences[mine]
    assert occurrences.tolist() == list(range(len(mine)))
    assert len(mine) >= 3
    ids = np.array([sample] * 4)
    drawn = np.append(occurrences[:3], 0)
    request = Request(ids, drawn, 0, np.ones(4, bool))
    view = View(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), find_policy("light"), 0, False)
    source = Source(shards, iter([request]), view, Reading())
    images = np.asarray(build(source, 4, 1, None).run()[0].as_tensor())
    first, second, third, again = images
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)
