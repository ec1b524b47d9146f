"""Policies as data: what is drawn, what a file may say, and pixels that follow from the sample alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bloodcell.data.choosing import IDENTITY, AugMix, Hybrid, RandAugment, Trivial
from bloodcell.data.draws import Draws
from bloodcell.data.loader import Loader, training_requests
from bloodcell.data.operations import Affine, Arguments, Blur, Brightness, Colour, Crop, Erase, Operation, Stain
from bloodcell.data.order import BatchOrder, NaturalPlan
from bloodcell.data.pipeline import View
from bloodcell.data.policies import OPERATIONS, POLICIES, Policy, draw, find_policy
from bloodcell.data.request import Request
from bloodcell.data.shardset import ShardSet
from shards.errors import BadInput

CPU = torch.device("cpu")
MANY = np.arange(20_000)
SIDES = np.full(len(MANY), 100)


def drawn(operation: Operation, ids: np.ndarray = MANY) -> Arguments:
    sides = np.full(len(ids), 100)
    return operation.draw(Draws(5, 2, ids, np.zeros_like(ids)), sides, sides)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_a_draw_follows_from_the_sample_alone(name: str) -> None:
    """However samples are batched, each gets its own numbers."""
    operation = OPERATIONS[name]()
    whole, some = drawn(operation), np.array([19_999, 3, 777])
    for key, values in drawn(operation, some).items():
        assert len(whole[key]) == len(MANY)
        assert np.array_equal(values, whole[key][some])


def test_randaugment_chooses_all_operations_alike() -> None:
    arguments = drawn(RandAugment(levels=3, magnitude=7))
    assert arguments["op"].shape == (len(MANY), 3)
    assert set(arguments["bin"].ravel()) == {7}
    for level in range(3):
        shares = np.bincount(arguments["op"][:, level], minlength=14) / len(MANY)
        assert np.abs(shares - 1 / 14).max() < 0.01
    assert abs(arguments["sign"].mean() - 0.5) < 0.01
    assert abs(np.corrcoef(arguments["op"][:, 0], arguments["op"][:, 1])[0, 1]) < 0.02


def test_trivial_draws_the_magnitude_too() -> None:
    arguments = drawn(Trivial())
    assert set(arguments["bin"].ravel()) == set(range(31))
    assert set(arguments["op"].ravel()) == set(range(14))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
def test_augmix_weights_follow_their_distributions(alpha: float) -> None:
    """Of Beta(a, a): mean 1/2, variance 1 / (8a + 4); of a Dirichlet(a) of three: 1/3 and 2/9 / (3a + 1)."""
    arguments = drawn(AugMix(severity=3, alpha=alpha))
    weight = arguments["weight"].astype(float)
    assert np.abs(weight.sum(axis=1) - 1).max() < 1e-6
    own, shares = weight[:, 0], weight[:, 1:] / weight[:, 1:].sum(axis=1, keepdims=True)
    assert abs(own.mean() - 0.5) < 0.01
    assert abs(own.var() * (8 * alpha + 4) - 1) < 0.05
    assert np.abs(shares.mean(axis=0) - 1 / 3).max() < 0.01
    assert np.abs(shares.var(axis=0) * (3 * alpha + 1) / (2 / 9) - 1).max() < 0.06
    assert set(arguments["depth"].ravel()) == {1, 2, 3}
    assert (arguments["bin"].min(), arguments["bin"].max()) == (1, 30)
    assert set(arguments["op"].ravel()) == set(range(9))


def test_hybrid_gives_each_image_one_of_both() -> None:
    arguments = drawn(Hybrid(augmix=0.3))
    untouched = (arguments["rand_op"] == IDENTITY).all(axis=1)
    mixed = arguments["mix_depth"][:, 0] > 0
    assert abs(mixed.mean() - 0.3) < 0.01
    assert untouched[mixed].all()
    assert untouched[~mixed].mean() < 0.02  # twice the identity by chance: 1 / 196
    assert (arguments["mix_weight"][~mixed] == [1, 0, 0, 0]).all()


def test_erased_boxes_lie_inside_and_keep_to_their_range() -> None:
    arguments = drawn(Erase(area=(0.05, 0.3), ratio=(0.5, 2.0), probability=0.6))
    anchor, shape = arguments["anchor"], arguments["shape"]
    shown = shape[:, 0] > 0
    assert abs(shown.mean() - 0.6) < 0.01
    assert (anchor + shape).max() <= 1 + 1e-6
    area, ratio = shape[shown].prod(axis=1), shape[shown, 0] / shape[shown, 1]
    assert 0.0499 < area.min() < area.max() < 0.3001
    assert 0.499 < ratio.min() < 0.55
    assert 1.9 < ratio.max() < 2.001


def test_views_share_what_is_not_chosen() -> None:
    policy = Policy("p", (Crop(), Hybrid(), Brightness()))
    ids = np.arange(50)
    one = draw(policy, Draws(0, 0, ids, ids * 0), ids * 0 + 60, ids * 0 + 80)
    three = draw(policy, Draws(0, 0, ids, ids * 0), ids * 0 + 60, ids * 0 + 80, views=3)
    for place in (0, 2):
        for name, value in one[place].items():
            assert np.array_equal(three[place][name], np.concatenate([value] * 3))
    clean, first, second = (
        {key: value.reshape(3, 50, -1)[view] for key, value in three[1].items()} for view in (0, 1, 2)
    )
    assert (clean["rand_op"] == IDENTITY).all()
    assert (clean["mix_weight"] == [1, 0, 0, 0]).all()
    assert all(np.array_equal(first[name], value.reshape(50, -1)) for name, value in one[1].items())
    assert (first["rand_op"] != second["rand_op"]).any()
    assert (first["mix_weight"] != second["mix_weight"]).any()


@pytest.mark.parametrize("name", ["strong", "trivial", "hybrid"])
def test_pixels_follow_from_the_sample_alone(small_set: Path, name: str) -> None:
    """Another batch size, other threads, a restart in the middle and two ranks, all at once, change no bit."""
    shards = ShardSet.open(small_set)
    view = View(32, (0.5,) * 3, (0.25,) * 3, POLICIES[name], seed=3)

    def images(micro: int, k: int, world: int, threads: int, first: int) -> dict[tuple[int, int], torch.Tensor]:
        order = BatchOrder(NaturalPlan(shards.ranges("train")), view.seed, micro, k)
        requests = [r for rank in range(world) for r in training_requests(order, world, rank, first, 8)]
        with Loader(shards, iter(requests), view, micro, threads, CPU) as loader:
            return {
                (batch.request.epoch, int(sample)): image
                for batch in loader
                for sample, image in zip(batch.request.ids, batch.images, strict=True)
            }

    reference, other = images(16, 1, 1, 1, 0), images(4, 4, 2, 3, 3)
    assert len(other) == 80
    assert all(torch.equal(image, reference[place]) for place, image in other.items())


def test_an_occurrence_is_an_image_of_its_own(small_set: Path) -> None:
    shards = ShardSet.open(small_set)
    view = View(32, (0.0,) * 3, (1.0,) * 3, POLICIES["stain"], seed=3)
    request = Request(np.array([7, 7, 7]), np.array([0, 1, 0]), 0, np.ones(3, dtype=bool))
    with Loader(shards, iter([request]), view, 3, 1, CPU) as loader:
        (batch,) = loader
    assert torch.equal(batch.images[0], batch.images[2])
    assert not torch.equal(batch.images[0], batch.images[1])
    with Loader(shards, iter([request]), replace(view, seed=4), 3, 1, CPU) as loader:
        (other,) = loader
    assert not torch.equal(batch.images[0], other.images[0])


def test_every_operation_can_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "all.toml"
    path.write_text("".join(f'[[operation]]\nname = "{name}"\n\n' for name in OPERATIONS))
    policy = find_policy(str(path))
    assert policy.operations == tuple(kind() for kind in OPERATIONS.values())
    path.write_text('[[operation]]\nname = "blur"\nsigma = [1, 2.5]\nprobability = 1\n')
    assert find_policy(str(path)).operations == (Blur((1.0, 2.5), 1.0),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "randaugmnt"', "did you mean 'randaugment'"),
        ('name = "blur"\nprobability = 1.5', r"blur.probability = 1.5 will not do.*<= 1"),
        ('name = "blur"\nsigma = [3.0, 1.0]', r"blur.sigma runs from 3.0 to 1.0"),
        ('name = "blur"\nsigma = 2.0', r"blur.sigma = 2.0 will not do.*array"),
        ('name = "randaugment"\nmagnitude = 31', r"randaugment.magnitude = 31 will not do"),
        ('name = "randaugment"\nlevels = 5', r"randaugment.levels = 5 will not do"),
        ('name = "augmix"\nseverity = 11', r"augmix.severity = 11 will not do"),
        ('name = "erase"\nfill = 300', r"erase.fill = 300 will not do"),
        ('name = "affine"\nscale = [0.0, 1.0]', r"affine.scale = .* will not do"),
        ('name = "stain"\nscael = 0.1', "did you mean 'scale'"),
        ('name = "flip"\n[[operation]]\nname = "flip"', "flip is there twice"),
    ],
)
def test_what_a_file_gets_wrong_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"[[operation]]\n{text}\n")
    with pytest.raises(BadInput, match=message) as caught:
        find_policy(str(path))
    assert "mine" in str(caught.value)


def test_an_unknown_policy_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="did you mean 'hybrid'"):
        find_policy("hybird")


def test_operations_made_in_python_are_checked_too() -> None:
    for make in (lambda: Colour(hue=200.0), lambda: Stain(scale=-0.1), lambda: Affine(translate=2.0)):
        with pytest.raises(BadInput, match="will not do"):
            make()
