"""`bloodcell stage`: copy the shards that a run reads to a disk of this node; where there is no room, they are left."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

from bloodcell.config import Config, override, parse_flags
from shards.atomic import new_folder
from shards.console import say
from shards.errors import BadInput, EnvironmentFault
from shards.format import DatasetInfo, read_dataset

TAKES_CONFIG = True
STAGED = "bloodcell-staged"
"""The only folder that is written to, and removed from, where BLOODCELL_SCRATCH points."""
SPARE = 1.1
"""Room that is asked for, as a multiple of what is copied."""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Take the arguments of `train`."""
    from jobs import train

    train.add_arguments("train", parser)


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Copy to the folder that BLOODCELL_SCRATCH names; training finds the copy there."""
    from bloodcell.runfolder import RunFolder
    from jobs.train import start_from

    target = os.environ.get("BLOODCELL_SCRATCH")
    if not target:
        raise BadInput("no folder is named", "BLOODCELL_SCRATCH", "set it to a folder of this node's own disk")
    base, _, path = start_from(parsed.recipe, parsed.run)
    flags = parse_flags(parsed.flags)
    config = RunFolder(path).config() if path is not None and RunFolder(path).exists else override(base, flags)
    source = Path(parsed.data or config.data.set)
    result = stage(source, Path(target), config)
    lines = [f"{result['shards']} of {result['of']} shards, {result['bytes']:,} bytes: {result['target'] or source}"]
    return result, [*lines, *([result["why"]] if result["why"] else [])]


def stage(source: Path, target: Path, config: Config) -> dict[str, Any]:
    """Copy the shards of the run's splits to TARGET/bloodcell-staged, with links to the others: a whole set.

    Returns:
        {"target", "shards", "of", "bytes", "why"}; the target is empty where nothing was copied, and "why" says so.
    """
    info = read_dataset(source)
    mine = needed(info, config.data.fold)
    size = sum((source / name).stat().st_size for name in mine)
    counts = {"shards": len([n for n in mine if n.endswith(".tar")]), "of": len(info.shards), "bytes": size}
    try:
        target.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target).free
        if free < size * SPARE:
            return {**counts, "target": "", "why": f"read from {source}: {target} has {free:,} bytes free"}
        with new_folder(target / STAGED, durable=False, replace=True) as partial:
            for file in source.iterdir():
                if file.name in mine:
                    shutil.copyfile(file, partial / file.name)
                elif file.is_file():
                    (partial / file.name).symlink_to(file.resolve())
    except (OSError, EnvironmentFault) as error:
        say(f"nothing is staged: {error}")
        return {**counts, "target": "", "why": f"read from {source}: {error}"}
    return {**counts, "target": str(target / STAGED), "why": ""}


def staged(info: DatasetInfo) -> Path | None:
    """Return the copy of this very set on this node, if there is one."""
    near = os.environ.get("BLOODCELL_SCRATCH")
    if not near or not (Path(near) / STAGED / "dataset.json").exists():
        return None
    copy = Path(near) / STAGED
    return copy if read_dataset(copy).fingerprint == info.fingerprint else None


def needed(info: DatasetInfo, fold: int) -> set[str]:
    """Return the files that a run of this fold reads: tables, and the tars of its training, validation and test."""
    splits = [name for name in info.splits if "/" not in name or fold < 0 or name.startswith(f"fold{fold}/")]
    files = {shard.file for split in splits for shard in info.shards_of(split)}
    return files | {f"{file.removesuffix('.tar')}.idx" for file in files} | {"samples.npy", "dataset.json"}
