"""A copy of the program for one submission: what is edited while a job waits does not reach it."""

from __future__ import annotations

import shutil
from pathlib import Path

from shards.atomic import new_folder

PACKAGES = ("shards", "bloodcell", "jobs", "slurm")


def snapshot(target: Path) -> Path:
    """Copy the packages that run here to the folder `target`, in place of an older copy; return it."""
    root = Path(__file__).resolve().parents[2]
    with new_folder(target, replace=True) as partial:
        for name in PACKAGES:
            shutil.copytree(root / name, partial / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    return target
