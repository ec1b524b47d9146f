"""`bloodcell bench scan`: every detector is scored, and finds what was planted in a small set."""

from __future__ import annotations

import pytest

from jobs.bench.scan import run
from shards.errors import BadInput


@pytest.fixture(scope="module")
def figures() -> dict[str, float]:
    return {row.name: row.value for row in run(300, 64, 0, 1, []).rows}


@pytest.mark.parametrize(
    ("detector", "recall", "precision"),
    [
        ("exact duplicates (pairs)", 1.0, 1.0),
        ("undecodable files", 1.0, 1.0),
        ("contradicting labels", 1.0, 1.0),
        ("near-duplicates (pairs)", 0.95, 0.99),
        ("blurry", 0.9, 0.7),
        ("dark", 0.9, 0.9),
        ("bright", 0.9, 0.9),
        ("saturated", 0.9, 0.8),
        ("tiny", 1.0, 1.0),
        ("odd aspect", 1.0, 1.0),
        ("foreign pictures (outlier or crowd)", 0.9, 0.8),
        ("images of patients across the split", 1.0, 0.9),
        ("shortcut warnings, marked corner", 1.0, 1.0),
    ],
)
def test_detectors(figures: dict[str, float], detector: str, recall: float, precision: float) -> None:
    assert figures[f"{detector}, recall"] >= recall
    assert figures[f"{detector}, precision"] >= precision


def test_little_is_said_where_nothing_was_planted(figures: dict[str, float]) -> None:
    assert figures["shortcut warnings, none planted"] == 0
    assert figures["ordinary images with a flag"] < 0.05


def test_too_few_images() -> None:
    with pytest.raises(BadInput, match="too small"):
        run(100, 64, 0, 1, [])
