"""Get a public data set through kagglehub where that can work; where it cannot, say precisely how to get it by hand."""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from shards.atomic import disk_errors, new_folder
from shards.console import say
from shards.definitions import Definition
from shards.errors import BadInput, EnvironmentFault


def download(definition: Definition, name: str, target: Path) -> dict[str, Any]:
    """Get the set into the folder `target`, which appears whole or not at all.

    Args:
        definition: of the set.
        name: what `pack --dataset` is to be given.
        target: the folder to make.

    Returns:
        {"dataset", "folder", "files", "next": the pack command that follows}

    Raises:
        BadInput: `target` exists already.
        EnvironmentFault: it cannot be got from here; how to get it by hand was said on stderr.
    """
    if os.path.lexists(target):
        raise BadInput("the folder exists already", target, "pack it, or choose another with --to")
    missing = _missing(definition)
    if missing:
        raise _by_hand(definition, name, target, missing)
    try:
        fetched = Path(importlib.import_module("kagglehub").dataset_download(definition.kaggle))
    except Exception as error:  # kagglehub raises its own, requests' and the system's errors
        raise _by_hand(definition, name, target, f"kagglehub failed ({type(error).__name__}: {error})") from error
    return {
        "dataset": definition.name,
        "folder": str(target),
        "files": place(fetched, target),
        "next": pack_command(definition, name, target),
    }


def place(fetched: Path, target: Path) -> int:
    """Copy a folder to `target`, whole or not at all; return the number of files."""
    with new_folder(target) as folder, disk_errors(target):
        shutil.copytree(fetched, folder, dirs_exist_ok=True)
        return sum(path.is_file() for path in folder.rglob("*"))


def instructions(definition: Definition, name: str, target: Path) -> list[str]:
    """Return the lines that say how to get the set by hand, and what to do then."""
    lines = [
        f"{definition.name}: {definition.title}",
        f"  from:     {definition.page}",
        f"  get:      {definition.by_hand}",
        f"  put into: {target}",
        f"  then:     {pack_command(definition, name, target)}",
    ]
    optional = (("licence", definition.licence), ("cite", definition.citation))
    return [*lines, *(f"  {what + ':':<9} {text}" for what, text in optional if text)]


def pack_command(definition: Definition, name: str, target: Path) -> str:
    """Return the command that packs the set once it lies in `target`."""
    words = ["bloodcell", "pack", str(target), f"{target.name}-set", "--dataset", name]
    words += ["--merge-splits"] if definition.fold else ["--keep-splits"] if definition.splits else []
    words += ["--folds", "3"] if definition.fold else []
    return shlex.join(words)


def _missing(definition: Definition) -> str:
    """Return what kagglehub lacks to get the set, "" if nothing."""
    if not definition.kaggle:
        return "it is not on Kaggle"
    try:
        importlib.import_module("kagglehub")
    except ImportError:
        return "kagglehub is not installed"
    return "" if _has_credentials() else "there are no Kaggle credentials"


def _has_credentials() -> bool:
    """Whether kagglehub would find credentials, where its documentation says that it looks for them."""
    if os.environ.get("KAGGLE_API_TOKEN") or (os.environ.get("KAGGLE_USERNAME") and os.environ.get("KAGGLE_KEY")):
        return True
    folder = Path(os.environ.get("KAGGLE_CONFIG_DIR") or Path.home() / ".kaggle")
    return any((folder / name).is_file() for name in ("kaggle.json", "access_token"))


def _by_hand(definition: Definition, name: str, target: Path, why: str) -> EnvironmentFault:
    for line in instructions(definition, name, target):
        say(line)
    fix = f"get it by hand from {definition.page} into {target}, then {pack_command(definition, name, target)}"
    return EnvironmentFault(f"{definition.name} cannot be downloaded from here: {why}", "download", fix)
