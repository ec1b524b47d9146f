"""The figures of `jobs.bench.stall`: both ways of saving are measured, in pairs."""

from __future__ import annotations

from pathlib import Path

from jobs.bench.stall import stall_rows


def test_both_ways_are_measured_and_nothing_is_left(tmp_path: Path) -> None:
    rows = stall_rows(megabytes=1, repeats=2, folder=tmp_path)
    assert [row.unit for row in rows] == ["s"] * 5
    assert rows[0].baseline == rows[1].name
    assert all(row.value > 0 for row in rows)
    assert not list(tmp_path.iterdir())
