"""A sweep as a file for W&B's own sweep server: `wandb sweep FILE`, then `wandb agent` wherever trials shall train."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from bloodcell.config import Flat
from jobs.sweep.settings import Settings
from jobs.sweep.space import Dimension
from shards.atomic import disk_errors, open_atomic

STARTS = {"random": "random", "hyperband": "random", "asha": "random", "tpe": "bayes"}
"""Our method -> how W&B draws; the two that pause trials get its early termination."""


def write_wandb_file(path: Path, recipe: str, data: Path, flags: Flat, settings: Settings) -> dict[str, Any]:
    """Write the file; return what it holds.

    W&B ends poor trials where `sweep` pauses them, and draws other values: the space and the objective are the same.

    Args:
        path: of the file.
        recipe: its name, or an absolute path.
        data: the shard set, as all agents see it.
        flags: config fields that all trials share.
        settings: what is searched.

    Raises:
        EnvironmentFault: the disk is full or fails.
    """
    fixed = {**flags, "train.epochs": settings.epochs, "train.monitor": settings.objective, "tracking.wandb": "online"}
    words = ["bloodcell", "train", recipe, "--data", str(data)]
    words += [word for name, value in fixed.items() for word in (f"--{name}", str(value))]
    found: dict[str, Any] = {
        "program": "bloodcell",
        "command": [*words, "${args}"],
        "method": STARTS[settings.method],
        "metric": {"name": settings.objective, "goal": "minimize" if settings.smaller_is_better else "maximize"},
        "run_cap": settings.trials,
        "parameters": {one.key: _parameter(one) for one in settings.space},
    }
    if settings.method in ("hyperband", "asha"):
        found["early_terminate"] = {"type": "hyperband", "min_iter": settings.min_epochs, "eta": settings.eta}
    heading = (
        f"# {shlex.join(['wandb', 'sweep', '--project', 'bloodcell', path.name])}\n# wandb agent ENTITY/bloodcell/ID\n"
    )
    with disk_errors(path), open_atomic(path, "w") as file:
        file.write(heading + yaml.safe_dump(found, sort_keys=False, allow_unicode=True))
    return found


def _parameter(one: Dimension) -> dict[str, Any]:
    if one.choices:
        return {"values": list(one.choices)}
    kind = "int_uniform" if one.whole else "uniform"
    if one.log:
        kind = "q_log_uniform_values" if one.whole else "log_uniform_values"
    return {"distribution": kind, "min": one.low, "max": one.high, **({"q": 1} if one.log and one.whole else {})}
