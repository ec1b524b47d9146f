"""Cross-validation in one command: train every fold one after another, then judge them as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bloodcell.config import Config, Flat, override
from jobs.groups import grouped
from shards.errors import BadInput
from shards.format import read_dataset

POOLED = "pooled"


def train_folds(base: Config, recipe: str, flags: Flat, path: Path | None) -> tuple[dict[str, Any], list[str]]:
    """Train all folds in DIR/fold0, DIR/fold1, … and pool them in DIR/pooled; what is finished is only judged again.

    Args:
        base: the recipe.
        recipe: its short name.
        flags: config fields of the command line.
        path: DIR, or None for runs/<recipe>-<hash>.

    Raises:
        BadInput: no set, a set without folds, a fold named as well, or what training raises.
    """
    from bloodcell.engine.subject import open_subject
    from bloodcell.ranks import choose_device, discover, process_group, set_threads
    from bloodcell.runfolder import default_path
    from jobs.together import together
    from jobs.train import train

    wanted = override(base, flags)
    if not wanted.data.set:
        raise BadInput("no shard set is named", "command line", "add --data SET")
    if wanted.data.fold >= 0:
        raise BadInput("all folds and one fold are asked for", "--folds, --data.fold", "choose one")
    data = Path(wanted.data.set)
    info = read_dataset(data)
    count = len({split.split("/")[0] for split in info.splits if "/" in split})
    if not count:
        raise BadInput("the set has no folds", data, "pack it with --folds K, or leave --folds out")
    folder = path or default_path(recipe, wanted, info.fingerprint)
    if (folder / "config.json").exists():
        raise BadInput("a single run lies where the folds shall go", folder, "choose another --run")
    runs = [folder / f"fold{fold}" for fold in range(count)]
    ranks = discover()
    with process_group(ranks, choose_device(ranks, wanted.engine.device), wanted.engine.timeout):
        for fold, run in enumerate(runs):
            train(base, recipe, {**flags, "data.fold": fold, **grouped(wanted, folder, "fold")}, run)
        subjects = [open_subject(run, data, None, 1, wanted.engine.device, ranks) for run in runs]
        set_threads(subjects[0].config.engine.threads)
        return together(subjects, ["test"], False, folder / POOLED)
