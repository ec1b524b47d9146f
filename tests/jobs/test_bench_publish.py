"""The pages of results: made from the files, and the ones in the repository are up to date."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.bench import publish
from jobs.bench.result import Result, Row, measured, plain
from shards.errors import BadInput
from tests.conftest import bloodcell

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        Row("theirs, wall", 100.0, "images/s", 90.0, 110.0),
        measured("ours, wall", [200.0, 300.0, 400.0], "images/s", "theirs, wall", [100.0] * 3),
        measured("ours, wall", [200.0, 300.0, 400.0], "images/s", "others | wall", [150.0] * 3),
        Row("accuracy", 0.9945, "share", 0.99, 0.997),
    ]
    result = Result("bloodcell bench x", rows, {"cpu": "CPU", "cores": 2}, {"python": "3.11"}, "2026-11-20")
    (tmp_path / "x-cpu.json").write_text(json.dumps(result.as_json()))
    return tmp_path


def test_the_index_has_every_row_with_command_day_and_machine(folder: Path) -> None:
    page = publish.index(folder)
    assert "## x-cpu\n\n`bloodcell bench x`  \nCPU, 2 cores; 2026-11-20  \npython 3.11\n" in page
    assert "| ours, wall | 300 (200–400) | images/s | 3× theirs, wall; 2× others \\| wall |" in page
    assert "| accuracy | 99.45 (99.00–99.70) | % |  |" in page


def test_marked_tables_of_a_page_are_made_anew_and_nothing_else(folder: Path) -> None:
    page = folder / "page.md"
    page.write_text("before\n<!-- bench x-cpu.json ours -->\nstale\n<!-- end -->\nbehind <!-- end -->\n")
    once = publish.filled(page, folder)
    assert once.startswith("before\n<!-- bench x-cpu.json ours -->\n\n| figure |")
    assert once.endswith("wall |\n\n<!-- end -->\nbehind <!-- end -->\n")
    assert "stale" not in once
    assert "accuracy" not in once
    page.write_text(once)
    assert publish.filled(page, folder) == once
    for mark in ("bench y-cpu.json", "bench x-cpu.json nothing"):
        page.write_text(f"<!-- {mark} -->\n<!-- end -->\n")
        with pytest.raises(BadInput):
            publish.filled(page, folder)


def test_the_pages_here_are_made_from_the_results() -> None:
    done = subprocess.run([sys.executable, "-m", "jobs.bench.publish", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "run make results"


def test_a_result_is_saved_and_names_no_place_of_this_machine(tmp_path: Path) -> None:
    assert plain("bloodcell bench data /home/me/SET --size 96") == "bloodcell bench data SET --size 96"
    assert plain("a SET; b 'c d'") == "a SET; b 'c d'"
    flags = ("--ranks", 2, "--samples", 4096, "--micro-batch", 8, "--repeats", 1)
    done = bloodcell("bench", "order", *flags, "--save", tmp_path / "order.json")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "order.json").read_text())
    assert found["rows"]
    assert found["date"]
    refused = bloodcell("bench", "order", *flags, "--save", tmp_path / "none" / "order.json")
    assert refused.code == 2, refused.err
