"""A run judged again from its tables alone: the same result, the right validation split, no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bloodcell.evaluation.predictions import write_predictions
from bloodcell.evaluation.recompute import judge_split, recompute
from shards.errors import BadInput
from tests.bloodcell.evaluation.drawing import drawn, validation

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with tables of its validation and test splits, and of another set."""
    folder = tmp_path / "run"
    for name, table in (("val", validation(rows=80)), ("test", drawn(0, 90, patients=9))):
        write_predictions(folder / "predictions" / f"{name}.parquet", table)
    other = drawn(5, 70, fingerprint="f99")
    write_predictions(folder / "external" / "other" / "predictions" / "test.parquet", other)
    return folder


def test_every_table_is_judged_with_the_runs_own_validation(run: Path) -> None:
    found = recompute(run)
    assert list(found) == ["test", "val"]
    assert found["test"]["calibration"]["temperature"]["fitted_on"][0]["split"] == "val"
    assert found["test"] == judge_split(run, drawn(0, 90, patients=9), "test")
    assert found["val"]["calibration"]["temperature"]["left_out"] == "the validation split itself is judged"
    assert recompute(run) == found


def test_another_set_is_judged_with_what_was_chosen_at_home(run: Path) -> None:
    found = recompute(run, run / "external" / "other")["test"]
    assert found["samples"] == 70
    assert found["calibration"]["temperature"]["fitted_on"][0]["fingerprint"] == "f00"


def test_validation_that_is_not_the_runs_is_not_used(run: Path) -> None:
    path = run / "predictions" / "val.parquet"
    for table, reason in (
        (validation(rows=80, run="another"), "is of another run (another)"),
        (validation(rows=80, classes=4), "is of another run"),
        (validation(rows=0), "the validation split is empty"),
    ):
        write_predictions(path, table)
        assert reason in judge_split(run, drawn(0, 50), "test")["conformal"]["left_out"]
    path.unlink()
    assert "has no predictions/val.parquet" in judge_split(run, drawn(0, 50), "test")["conformal"]["left_out"]
    path.write_text("not parquet")
    with pytest.raises(BadInput):
        judge_split(run, drawn(0, 50), "test")


def test_a_folder_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no tables of predictions"):
        recompute(tmp_path)


def test_judging_loads_no_torch() -> None:
    code = "import sys, bloodcell.evaluation.recompute; assert not {'torch', 'sklearn', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
