"""Draws per sample: fixed for ever, uniform, independent of each other and of how samples are batched."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloodcell.data.draws import COLUMNS, TRIES, Draws, chain, mix


def draws(ids: np.ndarray, seed: int = 0, epoch: int = 0, occurrence: int = 0) -> Draws:
    return Draws(seed, epoch, ids, np.full(ids.shape, occurrence))


def test_the_finaliser_is_splitmix64() -> None:
    # The first outputs of the reference implementation (splitmix64.c, S. Vigna) for the state 0.
    states = np.array([0x9E3779B97F4A7C15, 0x3C6EF372FE94F82A, 0xDAA66D2C7DDF743F], dtype=np.uint64)
    assert [hex(word) for word in mix(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_numbers_are_fixed_for_ever() -> None:
    assert [hex(word) for word in chain(7, np.array([0, 1, 2**40]))] == KNOWN_CHAIN
    some = Draws(3, 5, np.array([0, 1, 10**9]), np.array([0, 0, 2]))
    for column, expected in KNOWN_UNIFORMS.items():
        assert some.uniform(column).tolist() == expected, column


def test_columns_are_appended_never_renumbered() -> None:
    assert list(COLUMNS.items())[: len(KNOWN_COLUMNS)] == KNOWN_COLUMNS


def test_columns_do_not_overlap() -> None:
    taken = [number for first, count in COLUMNS.values() for number in range(first, first + count)]
    assert len(taken) == len(set(taken))


def test_seed_epoch_id_and_occurrence_each_change_the_numbers() -> None:
    ids = np.arange(1000)
    first = draws(ids).uniform("angle")
    others = [draws(ids, seed=1), draws(ids, epoch=1), draws(ids, occurrence=1), draws(ids + 1000)]
    for other in others:
        assert not np.isin(other.uniform("angle"), first).any()
    assert not np.array_equal(draws(ids, seed=1).uniform("angle"), draws(ids, epoch=1).uniform("angle"))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(-(2**70), 2**70),
    epoch=st.integers(0, 10**6),
    ids=st.lists(st.integers(0, 2**62), min_size=1, max_size=40),
    cut=st.integers(0, 40),
)
def test_numbers_do_not_depend_on_the_batch(seed: int, epoch: int, ids: list[int], cut: int) -> None:
    whole = np.array(ids)
    together = Draws(seed, epoch, whole, whole % 3)
    for part in (slice(0, cut), slice(cut, None)):
        alone = Draws(seed, epoch, whole[part], whole[part] % 3)
        np.testing.assert_array_equal(alone.uniform("hue"), together.uniform("hue")[part])
        np.testing.assert_array_equal(alone.block("crop.y"), together.block("crop.y")[part])


def test_shapes_follow_the_ids_and_a_block_holds_its_columns() -> None:
    ids = np.arange(12).reshape(3, 4)
    some = Draws(0, 0, ids, np.zeros_like(ids))
    block = some.block("crop.area")
    assert some.uniform("angle").shape == (3, 4)
    assert block.shape == (3, 4, TRIES)
    for index in range(TRIES):
        np.testing.assert_array_equal(block[..., index], some.uniform("crop.area", index))
    assert draws(np.array(5)).uniform("angle").shape == ()
    with pytest.raises(IndexError):
        some.uniform("angle", 1)


def test_every_column_is_uniform() -> None:
    ids = np.arange(50_000)
    some = draws(ids, seed=11, epoch=4)
    for column in COLUMNS:
        block = some.block(column)
        assert block.min() >= 0
        assert block.max() < 1
        for values in block.T:
            counts = np.bincount((values * 100).astype(int), minlength=100)
            chi2 = ((counts - 500) ** 2 / 500).sum()
            assert abs(chi2 - 99) / np.sqrt(2 * 99) < 5, column


def test_columns_ids_epochs_and_seeds_are_uncorrelated() -> None:
    count = 100_000
    ids = np.arange(count)
    columns = np.concatenate([draws(ids).block(column) for column in ("crop.area", "crop.y", "angle", "hue")], axis=1)
    angle = columns[:, 2 * TRIES]
    others = [draws(ids, epoch=1), draws(ids, seed=1), draws(ids + 1), draws(ids, occurrence=1), draws(ids, 1, 1)]
    rows = np.concatenate([columns.T, [other.uniform("angle") for other in others]])
    correlation = np.corrcoef(rows) - np.eye(len(rows))
    assert np.abs(correlation).max() < 5 / np.sqrt(count)
    assert len(np.unique(angle)) == count


def test_helpers() -> None:
    some = draws(np.arange(20_000), seed=2)
    span = some.span("angle", -30, 30)
    assert -30 <= span.min() < -29.9
    assert 29.9 < span.max() <= 30
    assert not some.coin("flip.horizontal", 0).any()
    assert some.coin("flip.horizontal", 1).all()
    assert abs(some.coin("flip.horizontal", 0.3).mean() - 0.3) < 0.02
    choices = some.choice("randaugment.op", 7, index=2)
    assert choices.dtype == np.int64
    counts = np.bincount(choices)
    assert len(counts) == 7
    assert np.abs(counts / 20_000 - 1 / 7).max() < 0.02
    np.testing.assert_array_equal(some.choice("turn", 1), 0)


KNOWN_CHAIN = ["0x92724dc5e92cba0", "0x7a2f2c6320f84418", "0x3a0ae9e21e183d4b"]
KNOWN_UNIFORMS = {
    "crop.area": [0.6973494756629021, 0.17673500829003297, 0.13090347560574778],
    "angle": [0.48948559280219195, 0.34271832360857135, 0.5733218388471027],
    "noise.strength": [0.8193416931416257, 0.7750512145911581, 0.4735083071939086],
}
KNOWN_COLUMNS = [
    ("crop.area", (0, 10)),
    ("crop.ratio", (10, 10)),
    ("crop.y", (20, 10)),
    ("crop.x", (30, 10)),
    ("flip.horizontal", (40, 1)),
    ("flip.vertical", (41, 1)),
    ("turn", (42, 1)),
    ("angle.apply", (43, 1)),
    ("angle", (44, 1)),
    ("translate.y", (45, 1)),
    ("translate.x", (46, 1)),
    ("scale", (47, 1)),
    ("shear.y", (48, 1)),
    ("shear.x", (49, 1)),
    ("colour.apply", (50, 1)),
    ("brightness", (51, 1)),
    ("contrast", (52, 1)),
    ("saturation", (53, 1)),
    ("hue", (54, 1)),
    ("grey.apply", (55, 1)),
    ("erase.apply", (56, 1)),
    ("erase.area", (57, 10)),
    ("erase.ratio", (67, 10)),
    ("erase.y", (77, 10)),
    ("erase.x", (87, 10)),
    ("blur.apply", (97, 1)),
    ("blur.sigma", (98, 1)),
    ("sharpness", (99, 1)),
    ("randaugment.op", (100, 4)),
    ("randaugment.magnitude", (104, 4)),
    ("randaugment.sign", (108, 4)),
    ("augmix.op", (112, 12)),
    ("augmix.magnitude", (124, 12)),
    ("augmix.sign", (136, 12)),
    ("augmix.depth", (148, 3)),
    ("augmix.weight", (151, 3)),
    ("augmix.mix", (154, 2)),
    ("mix.apply", (156, 1)),
    ("mix.kind", (157, 1)),
    ("mix.lambda", (158, 2)),
    ("mix.partner", (160, 1)),
    ("mix.y", (161, 1)),
    ("mix.x", (162, 1)),
    ("stain.apply", (163, 1)),
    ("stain.scale", (164, 3)),
    ("stain.shift", (167, 3)),
    ("quality.apply", (170, 1)),
    ("quality", (171, 1)),
    ("noise.apply", (172, 1)),
    ("noise.strength", (173, 1)),
]
