"""The notebooks of docs/ are as they were run, small, and run on the demo's files from an empty folder."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from tests.conftest import bloodcell
from tests.notebooks import NOTEBOOKS, carried_out, machine_paths, outputs


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_holds_its_outputs_and_no_path_of_a_machine(path: Path) -> None:
    assert path.stat().st_size < 300_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "python -m tests.notebooks FOLDER"
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert any("image/jpeg" in output.get("data", {}) for cell in code for output in cell.outputs)
    assert not machine_paths(path.read_text(encoding="utf-8"))


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["explore-a-set", "read-a-result"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_both_run_from_an_empty_folder_with_a_small_demo(tmp_path: Path) -> None:
    small = ("--images", 320, "--patients", 32, "--size", 48, "--epochs", 2, "--ranks", 1)
    done = bloodcell("demo", *small, cwd=tmp_path, timeout=600)
    assert done.code == 0, done.err
    said = [outputs(carried_out(path, tmp_path)) for path in NOTEBOOKS]
    assert "320 images" in said[0]
    assert "not an image" in said[1]
    assert not any(machine_paths(text) for text in said)
