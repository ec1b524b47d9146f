"""The shuffle: a bijection for every size, and no order is preferred, also for tiny sets."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloodcell.data.order import epoch_key
from bloodcell.data.shuffle import BLOCK, permute, permute_each, unpermute
from shards.errors import Fault

KEYS = [0, 1, 2**64 - 1, epoch_key(0, 0), epoch_key(-5, 3)]


def chi_square_z(counts: np.ndarray, expected: float) -> float:
    """Return how many standard deviations the chi-square of equally likely cells lies above its mean."""
    free = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - free) / math.sqrt(2 * free))


@pytest.mark.parametrize("n", [*range(1, 21), 64, 1000, BLOCK + 1, 100_003])
def test_bijective_with_inverse(n: int) -> None:
    everywhere = np.arange(n)
    for key in KEYS:
        shuffled = permute(everywhere, n, key)
        np.testing.assert_array_equal(np.sort(shuffled), everywhere)
        np.testing.assert_array_equal(unpermute(shuffled, n, key), everywhere)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 2**62), key=st.integers(0, 2**64 - 1), data=st.data())
def test_any_size_stays_in_range_and_comes_back(n: int, key: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20)))
    shuffled = permute(positions, n, key)
    assert shuffled.dtype == np.int64
    assert shuffled.min() >= 0
    assert shuffled.max() < n
    np.testing.assert_array_equal(unpermute(shuffled, n, key), positions)


def test_order_is_fixed_for_ever() -> None:
    assert permute(np.arange(10), 10, 0).tolist() == KNOWN_TEN
    assert permute(np.array([0, 1, 99_999_999]), 10**8, epoch_key(0, 1)).tolist() == KNOWN_LARGE


def test_shape_is_kept_and_wrong_positions_are_refused() -> None:
    assert permute(np.arange(12).reshape(3, 4), 12, 5).shape == (3, 4)
    assert permute(np.empty(0, dtype=np.int64), 12, 5).shape == (0,)
    for wrong in (-1, 12):
        with pytest.raises(Fault):
            permute(np.array([wrong]), 12, 5)


@pytest.mark.parametrize(("n", "epochs"), [(2, 2000), (3, 2000), (4, 3000), (5, 4000)])
def test_all_orders_of_a_tiny_set_are_equally_likely(n: int, epochs: int) -> None:
    seen = Counter(tuple(permute(np.arange(n), n, epoch_key(1, epoch))) for epoch in range(epochs))
    orders = list(itertools.permutations(range(n)))
    assert chi_square_z(np.array([seen[order] for order in orders]), epochs / len(orders)) < 4


@pytest.mark.parametrize("n", [7, 13, 20])
def test_places_and_neighbours_are_equally_likely(n: int) -> None:
    epochs = 2000
    places, neighbours = np.zeros((n, n)), np.zeros((n, n))
    for epoch in range(epochs):
        order = permute(np.arange(n), n, epoch_key(2, epoch))
        places[np.arange(n), order] += 1
        neighbours[order[:-1], order[1:]] += 1
    assert chi_square_z(places.ravel(), epochs / n) < 4
    other = ~np.eye(n, dtype=bool)
    assert chi_square_z(neighbours[other], epochs * (n - 1) / (n * (n - 1))) < 4


def test_odd_and_even_orders_are_equally_likely() -> None:
    epochs, n = 2000, 9
    even = 0
    for epoch in range(epochs):
        order = permute(np.arange(n), n, epoch_key(3, epoch))
        inversions = sum(a > b for a, b in itertools.combinations(order.tolist(), 2))
        even += inversions % 2 == 0
    assert abs(even - epochs / 2) < 4 * math.sqrt(epochs) / 2


@pytest.mark.parametrize("n", [64, 1000, 100_000])
def test_a_large_set_keeps_no_structure(n: int) -> None:
    first, second = (permute(np.arange(n), n, epoch_key(4, epoch)) for epoch in (0, 1))
    limit = 4.5 / math.sqrt(n)
    assert abs(np.corrcoef(first, np.arange(n))[0, 1]) < limit
    assert abs(np.corrcoef(first, second)[0, 1]) < limit
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < limit
    still = int((np.diff(first) == 1).sum())  # neighbours that stayed neighbours: one is expected
    assert still < 8
    cells = min(n // 8, 100)
    steps = np.diff(first) % n * cells // n  # no favourite distance from one sample to the next
    assert chi_square_z(np.bincount(steps, minlength=cells), (n - 1) / cells) < 4.5
    joint = np.bincount(first * 4 // n * 4 + second * 4 // n, minlength=16)
    assert chi_square_z(joint, n / 16) < 4.5


KNOWN_TEN = [8, 6, 2, 3, 0, 4, 5, 9, 7, 1]
KNOWN_LARGE = [61613463, 24517331, 10308864]


@settings(deadline=None)
@given(
    asked=st.lists(st.tuples(st.integers(1, 400), st.integers(0, 2**64 - 1), st.integers(0, 399)), min_size=1),
    large=st.integers(1, 2**62),
)
def test_many_sets_at_once_are_shuffled_as_one_by_one(asked: list[tuple[int, int, int]], large: int) -> None:
    sizes = np.array([n for n, _, _ in asked] + [large])
    keys = np.array([key for _, key, _ in asked] + [1], dtype=np.uint64)
    positions = np.array([place for _, _, place in asked] + [large - 1]) % sizes
    each = permute_each(positions, sizes, keys)
    alone = [int(permute(np.array([p]), int(n), int(k))[0]) for p, n, k in zip(positions, sizes, keys, strict=True)]
    assert each.tolist() == alone
    with pytest.raises(Fault, match="outside its set"):
        permute_each(sizes, sizes, keys)
