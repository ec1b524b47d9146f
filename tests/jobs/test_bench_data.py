"""`bloodcell bench data`: every loader runs on the same set, and each has its figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.bench import data
from shards.errors import BadInput
from tests.jobs.conftest import verb


@pytest.mark.slow
def test_every_loader_is_timed(small_set: Path) -> None:
    """Images of 48 pixels are kept at 32 for an output of 24; a cache that they fit into anyway would have no row."""
    flags = ("--size", 24, "--images", 128, "--workers", 1, "--repeats", 1)
    result = verb("bench", "data", small_set, *flags)
    names = [
        *(data.FOLDER, data.V2, data.USERS, data.DALI, data.PART, data.POOL, data.BYTES),
        *(data.STREAM, data.LIBRARY, data.KEPT, data.SMALLER.format(32)),
    ]
    for unit in ("wall", "cpu"):
        rows = {row["name"]: row for row in result["rows"] if row["name"].endswith(f", {unit}")}
        assert list(rows) == [f"{name}, {unit}" for name in names]
        assert all(row["value"] > 0 and row["ratio"] > 0 for row in rows.values())
    assert data.SMALLER.format(64) not in {row["name"] for row in result["rows"]}


def test_decoded_images_are_asked_for_with_policies_only(small_set: Path) -> None:
    with pytest.raises(BadInput, match="one of the loaders"):
        verb("bench", "data", small_set, "--resident")
