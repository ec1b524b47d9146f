"""A sweep over real cells finds a learning rate within a factor 3 of the best of a fine grid."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.jobs.conftest import verb


@pytest.mark.slow
@pytest.mark.realdata
def test_a_sweep_finds_the_learning_rate_of_real_cells(real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    for folder in sorted((real_data / "all4").iterdir()):
        for file in sorted(folder.glob("*.jpg"))[:120] if folder.is_dir() else []:
            (tmp_path / "images" / folder.name).mkdir(parents=True, exist_ok=True)
            os.symlink(file, tmp_path / "images" / folder.name / file.name)
    verb("pack", tmp_path / "images", tmp_path / "set", "--split", "60/30/10")
    found = verb("bench", "sweep", tmp_path / "set", "--trials", 12)
    rows = {row["name"]: row for row in found["rows"]}
    assert sum(name.startswith("grid, ") for name in rows) >= 7  # the largest rates may not end
    assert 1 / 3 <= rows["sweep (tpe, 12 trials): learning rate"]["ratio"] <= 3
