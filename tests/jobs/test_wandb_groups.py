"""Runs that belong together are filed together: folds under the folder that they lie in, unless told otherwise."""

from __future__ import annotations

import json
from pathlib import Path

from bloodcell.config import Config, override
from jobs.groups import grouped


def test_folds_are_one_group(cross: Path) -> None:
    for fold in range(3):
        tracking = json.loads((cross / f"fold{fold}" / "config.json").read_text())["config"]["tracking"]
        assert (tracking["group"], tracking["job_type"]) == (cross.name, "fold")


def test_what_the_user_has_set_stays() -> None:
    given = override(Config(), {"tracking.group": "mine"})
    assert grouped(given, Path("runs/all"), "seed") == {"tracking.job_type": "seed"}
    assert grouped(Config(), Path("runs/all"), "seed")["tracking.group"] == "all"
