"""Duplicate search: exact groups, near pairs in all orientations by both routes, clusters that do not run together."""

from __future__ import annotations

import csv
import functools
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from shards import alignment, duplicates, nearhash
from shards.alignment import aligned_correlation
from shards.clean import bounds
from shards.duplicates import PAIR_DTYPE, connected, default_correlation, exact_groups, near_pairs
from shards.errors import BadInput
from shards.features import FEATURES_DTYPE, SIDE, compute, hashes, inverse
from shards.nearhash import candidates, default_distance
from shards.planted import planted_features

Planted = tuple[NDArray[np.void], NDArray[np.int64], NDArray[np.int64]]


@pytest.fixture(scope="module")
def planted() -> Planted:
    """2,000 drawn fields of which 100 are copies of others."""
    return planted_features(2_000, 100, seed=1)


def ends(pairs: NDArray[np.void]) -> set[tuple[int, int]]:
    """Return pairs as a set of (a, b)."""
    return set(zip(pairs["a"].tolist(), pairs["b"].tolist(), strict=True))


def test_exact_groups_are_the_positions_that_share_a_digest() -> None:
    assert exact_groups(["x", "y", "x", "z", "y", "x"]) == [[0, 2, 5], [1, 4]]
    assert exact_groups([]) == exact_groups(["x", "y"]) == []


@pytest.mark.parametrize("all_pairs", [10**9, 0])
def test_planted_copies_are_found_whichever_way_up(planted: Planted, all_pairs: int) -> None:
    features, wanted, turns = planted
    pairs = near_pairs(features, all_pairs=all_pairs)
    known = dict(zip(map(tuple, wanted.tolist()), turns.tolist(), strict=True))
    right = [pair for pair in pairs if (int(pair["a"]), int(pair["b"])) in known]
    assert len(right) >= 0.95 * len(known)
    assert len(right) >= 0.99 * len(pairs)
    for pair in right:  # the orientation is the one that undoes what was done to the copy
        assert pair["orientation"] == inverse(np.array(known[int(pair["a"]), int(pair["b"])]))
    assert set(turns.tolist()) == set(range(8))


@pytest.mark.parametrize("all_pairs", [10**9, 0])
def test_pairs_do_not_depend_on_the_number_of_workers(planted: Planted, all_pairs: int) -> None:
    features = planted[0][:600]
    one, three = (near_pairs(features, all_pairs=all_pairs, workers=workers) for workers in (1, 3))
    assert (one == three).all()
    assert (one["a"] < one["b"]).all()


@pytest.mark.parametrize("all_pairs", [10**9, 0])
def test_many_copies_of_one_picture_are_one_cluster(planted: Planted, all_pairs: int) -> None:
    features = planted[0].copy()
    copies = np.arange(3, 1_900, 5)
    features[copies] = features[3]
    labels = connected(len(features), near_pairs(features, all_pairs=all_pairs))
    assert set(labels[copies].tolist()) == {3}
    assert np.bincount(labels).max() <= len(copies) + 1  # the picture itself had one more planted copy


@pytest.mark.parametrize("all_pairs", [10**9, 0])
def test_pictures_that_show_nothing_are_never_paired(all_pairs: int) -> None:
    rng = np.random.default_rng(0)
    blank = [np.full((64, 64, 3), level, np.uint8) for level in (0, 0, 255, 255, 128)]
    dots = [np.zeros((64, 64, 3), np.uint8) for _ in range(6)]
    for dot in dots:
        dot[30:34, 30:34] = rng.integers(150, 250)
    features = np.array([compute(picture) for picture in blank + dots], FEATURES_DTYPE)
    assert len(near_pairs(features, all_pairs=all_pairs)) == 0


@pytest.mark.parametrize("count", [0, 1, 2])
def test_tiny_sets(count: int) -> None:
    features = planted_features(20, 0)[0][:count]
    for all_pairs in (10**9, 0):
        pairs = near_pairs(features, all_pairs=all_pairs)
        assert pairs.dtype == PAIR_DTYPE
        assert len(pairs) == 0
    twice = near_pairs(np.concatenate([features, features]))
    assert ends(twice) == {(i, i + count) for i in range(count)}


def test_candidates_are_codes_of_pairs_within_the_distance(planted: Planted) -> None:
    features = planted[0][:500]
    pairs, turns = np.divmod(candidates(features["hash"], distance=40)[0], 8)
    a, b = np.divmod(pairs, len(features))
    assert (a < b).all()
    assert b.max() < len(features)
    assert turns.max() < 8


def test_more_images_ask_for_more_likeness() -> None:
    sizes = [1, 5_000, 10_000, 10**5, 10**6, 10**7]
    assert [default_correlation(n) for n in sizes] == sorted(default_correlation(n) for n in sizes)
    assert [default_distance(n) for n in sizes] == sorted((default_distance(n) for n in sizes), reverse=True)
    assert default_correlation(10**9) <= 0.9


def test_alignment_forgives_shift_stretch_and_light_but_not_another_picture() -> None:
    rng = np.random.default_rng(4)
    scene = np.asarray(Image.fromarray(rng.integers(0, 255, (30, 30), dtype=np.uint8)).resize((400, 400)))
    crops = [scene[20:340, 20:340], scene[34:346, 12:334], scene[60:380, 60:380]]
    first, moved, far = (np.asarray(Image.fromarray(crop).resize((32, 32), Image.Resampling.BOX)) for crop in crops)
    dimmer = (0.6 * moved + 30).astype(np.uint8)
    near, dim, other, flat = aligned_correlation(np.stack([first] * 4), np.stack([moved, dimmer, far, 0 * far]))
    assert near > 0.9
    assert dim > 0.9
    assert other < 0.6
    assert flat == 0


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_connected_is_the_smallest_member_of_the_component(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    images, pairs = drawn
    labels = connected(images, np.array(pairs, np.int64).reshape(-1, 2))
    expected = list(range(images))
    for _ in range(images):  # the smallest label spreads along the pairs
        for a, b in pairs:
            expected[a] = expected[b] = min(expected[a], expected[b])
    assert labels.tolist() == expected


@pytest.mark.parametrize("pair", [(0, 3), (-1, 2)])
def test_connected_refuses_images_that_do_not_exist(pair: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match=r"outside of 0\.\.2"):
        connected(3, np.array([pair]))


@functools.lru_cache
def real_features(folder: Path) -> tuple[NDArray[np.void], list[dict[str, str]]]:
    """Return the features of all images of a manifest that can be decoded, and its rows."""
    rows, records = [], []
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if not Path(row["path"]).name.startswith("."):
                rows.append(row)
                records.append(compute(np.asarray(Image.open(folder / row["path"]).convert("RGB"))))
    return np.array(records, FEATURES_DTYPE), rows


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "all_pairs"), [("all4", 10**9), ("all4", 0), ("pbc8", 10**9), ("pbc8", 0)])
def test_real_sets(real_data: Path, name: str, all_pairs: int) -> None:
    features, rows = real_features(real_data / name)
    pairs = near_pairs(features, all_pairs=all_pairs)
    labels = connected(len(rows), pairs)
    for column, share in (("sha256", 1.0), ("group", 0.95)):
        members = defaultdict(list)
        for place, row in enumerate(rows):
            members[row[column]].append(place)
        groups = [group for group in members.values() if len(group) > 1]
        assert groups
        assert sum(len(set(labels[group].tolist())) == 1 for group in groups) >= share * len(groups)
    assert np.bincount(labels).max() <= 3
    assert (pairs["orientation"] == 0).all()  # these sets were not augmented: another orientation would be chance
    assert len(pairs) == 17 if name == "pbc8" else 90 <= len(pairs) <= 102


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_images() -> None:
    features, wanted, _ = planted_features(1_000_000, 10_000)
    pairs = near_pairs(features)
    known = set(map(tuple, wanted.tolist()))
    found = ends(pairs)
    assert len(found & known) >= 0.95 * len(known)
    assert len(found & known) >= 0.99 * len(found)
    assert np.bincount(connected(len(features), pairs)).max() <= 4


def test_of_a_crowd_the_nearest_are_kept_whatever_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """More candidates than there is room for: how many threads look, and in what portions, must not be seen."""
    rng, images = np.random.default_rng(5), 1500
    words = np.tile(rng.integers(0, 2**63, 2).astype(np.uint64), (images, 1))
    for _ in range(6):
        bit = rng.integers(0, 128, images)
        words[np.arange(images), bit // 64] ^= np.uint64(1) << (bit % 64).astype(np.uint64)
    found = []
    for portion, workers in ((1 << 11, 1), (1 << 13, 3), (1 << 16, 2)):
        monkeypatch.setattr(nearhash, "_SLICE", portion)
        found.append(nearhash.candidates(words, workers=workers)[0])
    assert 0 < len(found[0]) <= 1 << 17
    assert all(np.array_equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("all_pairs", [10**9, 0])
def test_of_a_crowd_only_what_can_still_connect_is_compared(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, all_pairs: int
) -> None:
    """160 nearly equal pictures among 60 others: the same clusters from a fraction of the comparisons."""
    rng = np.random.default_rng(7)
    others = planted[0][:60]
    noise = rng.normal(0, 1, (160, SIDE, SIDE))
    crowd = np.repeat(planted[0][60:61], 160)
    crowd["thumbnail"] = np.rint(crowd["thumbnail"] + noise).clip(0, 255)
    crowd["hash"] = hashes(crowd["thumbnail"])
    features = np.concatenate([others, crowd])[rng.permutation(220)]
    compared: list[int] = []

    def compare(first: NDArray, a: NDArray, *rest: Any) -> NDArray:
        compared.append(len(a))
        return alignment.compare(first, a, *rest)

    monkeypatch.setattr(duplicates, "compare", compare)
    whole = connected(220, near_pairs(features, all_pairs=all_pairs))
    everything, compared = sum(compared), []
    monkeypatch.setattr(duplicates, "_PLENTY", 500)
    monkeypatch.setattr(duplicates, "_COMPARED", 256)
    left_out = duplicates.LeftOut()
    assert connected(220, near_pairs(features, all_pairs=all_pairs, left_out=left_out)).tolist() == whole.tolist()
    assert np.bincount(whole).max() >= 160
    assert sum(compared) + left_out.joined == everything
    assert sum(compared) < everything / 3
    assert bounds(left_out)["near_pairs_known"] == left_out.joined
    assert not bounds(duplicates.LeftOut())
