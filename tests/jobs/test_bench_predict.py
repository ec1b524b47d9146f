"""`bench predict`: both loops judge the same files with the same network, and say the same of nearly all."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.bench.predict import LOOP, OURS
from shards.errors import BadInput
from tests.jobs.conftest import verb


def test_both_loops_judge_the_same_files(runs: Path, small_set: Path) -> None:
    words = ("--images", 60, "--workers", 1, "--batch", 16, "--repeats", 1)
    found = verb("bench", "predict", runs / "one", small_set, *words)
    rows = {row["name"]: row for row in found["rows"]}
    assert "--images 60" in found["command"]
    for title in ("wall", "cpu"):
        assert rows[f"{OURS}, {title}"]["value"] > 0
        assert rows[f"{LOOP}, {title}"]["ratio"] == 1
    # Another program scales the images: those on the edge between two classes may fall on the other side.
    assert rows["images with the same class in both tables"]["value"] >= 90


def test_numbers_that_are_too_small_are_bad_input(runs: Path, small_set: Path) -> None:
    with pytest.raises(BadInput, match="too small"):
        verb("bench", "predict", runs / "one", small_set, "--images", 0)
