"""Runs that belong together are filed together in W&B: folds, seeds and trials under the name of their folder."""

from __future__ import annotations

from pathlib import Path

from bloodcell.config import Config, Flat


def grouped(config: Config, folder: Path, kind: str) -> Flat:
    """Return the config fields that file a run under `folder` as a `kind`, less those that the user has set."""
    wanted: Flat = {"tracking.group": folder.resolve().name, "tracking.job_type": kind}
    set_already = {"tracking.group": config.tracking.group, "tracking.job_type": config.tracking.job_type}
    return {name: value for name, value in wanted.items() if not set_already[name]}
