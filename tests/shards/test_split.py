"""Splits: groups stay whole, shares are kept, the draw depends on names only."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import BadInput
from shards.split import parse_fractions, split

FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}


def test_single_samples_are_shared_out_exactly() -> None:
    labels = np.repeat([0, 1], [500, 100])
    result = split(labels, [""] * 600, [f"k{i}" for i in range(600)], FRACTIONS, 0, ["a", "b"])
    counts = [[int(((result.assignment == part) & (labels == c)).sum()) for c in (0, 1)] for part in range(3)]
    assert counts == [[400, 80], [50, 10], [50, 10]]
    assert result.deviation < 1e-9


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), min_size=30, max_size=60), st.integers(0, 99))
def test_groups_are_never_cut_and_every_class_is_everywhere(units: list[tuple[int, int]], seed: int) -> None:
    labels, groups = [], []
    for number, (label, size) in enumerate(units):
        labels += [label] * size
        groups += [f"g{number}"] * size
    labels += [0, 0, 0, 1, 1, 1, 2, 2, 2]
    groups += [""] * 9
    keys = [f"k{i}" for i in range(len(labels))]
    result = split(labels, groups, keys, FRACTIONS, seed, ["a", "b", "c"])
    for name in set(groups) - {""}:
        assert len({result.assignment[i] for i in range(len(groups)) if groups[i] == name}) == 1
    for label in range(3):
        assert set(result.assignment[np.array(labels) == label]) == {0, 1, 2}


def test_large_groups_come_as_near_to_the_shares_as_scikit_learn() -> None:
    from sklearn.model_selection import StratifiedGroupKFold

    rng = np.random.default_rng(3)
    sizes = rng.integers(9, 200, 73)
    labels = np.repeat((np.arange(73) >= 47).astype(int), sizes)
    groups = np.repeat([f"p{i}" for i in range(73)], sizes)
    folds = {f"fold{k}": 0.2 for k in range(5)}
    ours = split(labels, list(groups), [f"k{i}" for i in range(len(labels))], folds, 0, ["all", "hem"])
    theirs = np.zeros(len(labels), dtype=int)
    kfold = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    for number, (_, test) in enumerate(kfold.split(labels, labels, groups)):
        theirs[test] = number

    def worst(assignment: np.ndarray) -> float:
        shares = [[((assignment == k) & (labels == c)).sum() / (labels == c).sum() for c in (0, 1)] for k in range(5)]
        return float(np.abs(np.array(shares) - 0.2).max())

    assert worst(ours.assignment) <= worst(theirs)


def test_the_order_of_the_samples_does_not_matter() -> None:
    labels = np.tile([0, 1], 50)
    keys = [f"k{i}" for i in range(100)]
    first = split(labels, [""] * 100, keys, FRACTIONS, 7, ["a", "b"]).assignment
    order = np.random.default_rng(0).permutation(100)
    second = split(labels[order], [""] * 100, [keys[i] for i in order], FRACTIONS, 7, ["a", "b"]).assignment
    assert (first[order] == second).all()
    assert (first != split(labels, [""] * 100, keys, FRACTIONS, 8, ["a", "b"]).assignment).any()


def test_too_few_groups_for_the_parts_is_refused() -> None:
    with pytest.raises(BadInput, match="class 'rare' has 40 images in 2 groups, too few for 3 parts: p1 20, p2 20"):
        split(
            [0] * 60 + [1] * 40,
            [""] * 60 + ["p1"] * 20 + ["p2"] * 20,
            [f"k{i}" for i in range(100)],
            FRACTIONS,
            0,
            ["common", "rare"],
        )


@pytest.mark.parametrize("text", ["80/10", "80/10/20", "a/b/c", "-10/60/50", ""])
def test_bad_fractions(text: str) -> None:
    with pytest.raises(BadInput, match="three shares"):
        parse_fractions(text)


def test_an_empty_part_is_left_out() -> None:
    assert parse_fractions("0/0/100") == {"test": 1.0}


def test_a_thin_class_is_in_some_parts_only_if_that_is_allowed() -> None:
    labels = [0] * 30 + [1] * 10
    groups = [""] * 30 + ["a"] * 6 + ["b"] * 4
    keys = [f"k{i}" for i in range(40)]
    folds = {f"fold{k}": 1 / 3 for k in range(3)}
    with pytest.raises(BadInput, match="--allow-thin"):
        split(labels, groups, keys, folds, 0, ["many", "few"])
    found = split(labels, groups, keys, folds, 0, ["many", "few"], thin=True)
    few = found.assignment[30:]
    assert len(set(few[:6])) == len(set(few[6:])) == 1
    assert few[0] != few[-1]
    assert np.bincount(found.assignment[:30]).tolist() == [10, 10, 10]
