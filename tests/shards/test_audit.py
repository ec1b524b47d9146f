"""The audit: finds what crosses parts whatever the split believed, and says how much it looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shards.audit import Leak, audit, summary
from shards.errors import BadInput
from shards.features import ORIENTATIONS
from shards.lowfrequency import describe, turned
from shards.planted import planted_features
from shards.trees import invariants

PARTS = ("train", "val", "test")


def digests(count: int) -> list[str]:
    """Return digests of files that all differ."""
    return [f"{place:064x}" for place in range(count)]


def crossing(parts: list[str], pairs: NDArray[np.int64]) -> set[tuple[int, int]]:
    """Return the pairs whose ends lie in different parts."""
    return {(a, b) for a, b in pairs.tolist() if parts[a] != parts[b]}


@pytest.fixture(scope="module")
def fields() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Thumbnails of 1,200 drawn fields of which 120 are copies of others, and those pairs."""
    features, pairs, _ = planted_features(1_200, 120, seed=2)
    return features["thumbnail"], pairs


def test_a_clean_split_has_no_leaks(fields: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    thumbnails = fields[0][:1_000]
    parts = [PARTS[place % 3] for place in range(1_000)]
    groups = [f"patient {place % 9}" for place in range(1_000)]  # nine patients, each in one part
    result = audit(parts, groups, digests(1_000), thumbnails)
    assert result.leaks == []
    assert result.exhaustive
    assert result.compared == result.pairs == 334 * 333 * 2 + 333 * 333
    assert result.found >= 0.95 * result.trials > 0


def test_groups_and_files_that_cross_are_named_once_for_each_further_part() -> None:
    parts = ["train", "train", "val", "val", "test", "test"]
    groups = ["p", "p", "p", "p", "", "p"]
    files = ["a", "b", "b", "c", "a", "d"]
    result = audit(parts, groups, files, np.zeros((6, 32, 32), np.uint8))
    assert [(leak.kind, leak.a, leak.b) for leak in result.leaks] == [
        ("group", 0, 2),
        ("group", 0, 5),
        ("exact", 1, 2),
        ("exact", 0, 4),
    ]
    assert result.leaks[0].detail == "group 'p', in train and val"


def test_rows_without_a_group_share_none() -> None:
    assert audit(["a", "b"], ["", ""], ["x", "y"], np.zeros((2, 32, 32), np.uint8)).leaks == []


def test_copies_that_cross_are_found_in_all_orientations(fields: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    thumbnails, pairs = fields
    parts = [PARTS[draw] for draw in np.random.default_rng(0).choice(3, len(thumbnails), p=[0.6, 0.2, 0.2])]
    result = audit(parts, [""] * len(parts), digests(len(parts)), thumbnails, correlation=0.85)
    wanted, found = crossing(parts, pairs), {(leak.a, leak.b) for leak in result.leaks}
    assert len(found & wanted) >= 0.98 * len(wanted)
    assert found <= wanted
    assert {leak.kind for leak in result.leaks} == {"near"}


def test_one_copy_moved_to_another_part_is_found(fields: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    thumbnails = np.concatenate([fields[0][:1_000], fields[0][7:8, ::-1]])
    parts = ["train"] * 1_001
    files = digests(1_001)
    assert audit(parts, [""] * 1_001, files, thumbnails).leaks == []
    parts[-1] = "test"
    leaks = audit(parts, [""] * 1_001, files, thumbnails).leaks
    assert [(leak.kind, leak.a, leak.b) for leak in leaks] == [("near", 7, 1_000)]


def test_equal_files_are_not_reported_as_near_as_well(fields: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    thumbnails = fields[0][[0, 1, 2, 0]]
    leaks = audit(["train", "train", "val", "val"], [""] * 4, ["a", "b", "c", "a"], thumbnails).leaks
    assert [(leak.kind, leak.a, leak.b) for leak in leaks] == [("exact", 0, 3)]


def test_what_is_too_large_to_compare_is_searched_in_cells_and_says_so(
    monkeypatch: pytest.MonkeyPatch, fields: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> None:
    thumbnails, pairs = fields
    monkeypatch.setattr("shards.audit._CELL", 16)
    parts = [PARTS[draw] for draw in np.random.default_rng(0).choice(3, len(thumbnails), p=[0.6, 0.2, 0.2])]
    result = audit(parts, [""] * len(parts), digests(len(parts)), thumbnails, correlation=0.85, affordable=1_000)
    wanted, found = crossing(parts, pairs), {(leak.a, leak.b) for leak in result.leaks}
    assert not result.exhaustive
    assert result.compared < result.pairs
    assert found <= wanted
    assert 0.95 * len(wanted) < len(found)
    assert abs(len(found) / len(wanted) - result.found / result.trials) < 0.15  # it knows how much it finds


def test_what_cells_are_made_of_does_not_turn_with_the_picture(
    fields: tuple[NDArray[np.uint8], NDArray[np.int64]],
) -> None:
    descriptors = describe(fields[0][:50])
    expected = invariants(descriptors)
    assert (expected < 0).any()  # what no orientation changes keeps its sign, which tells more pictures apart
    for orientation in range(ORIENTATIONS):
        assert (invariants(turned(descriptors, orientation)) == expected).all()


def test_summary_counts_all_leaks_and_is_json(fields: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    parts = ["train", "val"] * 30
    result = audit(parts, ["p"] * 2 + [""] * 58, ["x"] * 30 + digests(30), fields[0][:60])
    named = summary(result, [f"image {place}" for place in range(60)], examples=1)
    assert named["leaks"] == len(result.leaks) == 2
    assert named["leaks_by_kind"] == {"group": 1, "exact": 1, "near": 0}
    assert named["examples"] == [
        {"kind": "group", "a": "image 0", "b": "image 1", "detail": "group 'p', in train and val"}
    ]
    assert summary(result)["examples"][1]["a"] == 0
    assert named["exhaustive"]
    assert json.loads(json.dumps(named)) == named


@pytest.mark.parametrize("count", [0, 1])
def test_tiny_sets(count: int) -> None:
    result = audit(["train"] * count, [""] * count, ["x"] * count, np.zeros((count, 32, 32), np.uint8))
    assert result.leaks == []
    assert result.pairs == 0
    json.dumps(summary(result))


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(BadInput, match="2 parts, 1 groups"):
        audit(["a", "b"], [""], ["x", "y"], np.zeros((2, 32, 32), np.uint8))


def test_a_leak_is_a_value() -> None:
    assert Leak("exact", 0, 1, "") == Leak("exact", 0, 1, "")


def test_the_audit_does_not_load_the_search_that_it_checks() -> None:
    code = "import sys, shards.audit; print([m for m in ('shards.duplicates', 'shards.nearhash') if m in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
