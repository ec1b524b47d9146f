"""The walk through folders that finds the files, and which of them are taken for images."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shards.console import warn
from shards.errors import BadInput
from shards.images import IMAGE_SUFFIXES, OTHER_PICTURES
from shards.sources.items import Item, name_as_text
from shards.sources.listing import Items

SYSTEMS_OWN = ("@eaDir", "__MACOSX")
"""Folders of a network disk's previews and of a Mac's archives; those that begin with a dot are known by that."""


def walk(root: Path) -> Items:
    """Return every file below `root`, following links but never in a circle, sorted; they have no class yet.

    Raises:
        BadInput: no such folder, not a folder, or one that cannot be read.
    """
    return Items.of(Item(path, source, "", "") for path, source in files_below(root)).by_source()


def files_below(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield (path, path below root) of every file as `walk` finds them, those of each folder in the order of names."""
    return _walk(root, "", set())


def images_among(files: Items) -> Items:
    """Return the files that are called like images; warn of other formats and of a system's own folders."""
    suffixes = [sys.intern(_suffix(source)) for source in files.each("source")]
    own = np.array([_is_systems_own(source) for source in files.each("source")], bool)
    others = Counter(suffix for suffix in suffixes if suffix in OTHER_PICTURES)
    if others:
        first = files[next(i for i, suffix in enumerate(suffixes) if suffix in OTHER_PICTURES)].source
        said = ", ".join(f"{n:,} {suffix}" for suffix, n in others.most_common())
        warn(f"pictures in formats that are not read are passed over ({said}), first {first}: convert them to PNG")
    found = np.array([suffix in IMAGE_SUFFIXES for suffix in suffixes], bool)
    hidden = np.flatnonzero(found & own)
    if len(hidden):
        first = files[int(hidden[0])].source
        warn(f"{len(hidden):,} images in hidden folders are passed over, first {first}: trash, previews, checkpoints")
    taken = found & ~own
    return files if taken.all() else files.taken(np.flatnonzero(taken))


def _is_systems_own(source: str) -> bool:
    """Whether a path lies in a folder that no person made: of a trash, of previews, of a notebook's checkpoints."""
    return any(folder.startswith(".") or folder in SYSTEMS_OWN for folder in source.split("/")[:-1])


def _suffix(source: str) -> str:
    """Return what the name of a file ends in, as `Path.suffix`, which would take most of a listing's time."""
    stem, dot, suffix = source.rpartition("/")[2].rpartition(".")
    return (dot + suffix).lower() if stem and suffix else ""


def _walk(folder: Path, below: str, above: set[tuple[int, int]]) -> Iterator[tuple[Path, str]]:
    """Yield the files of a folder whose path below the root is `below`, which ends in "/" or is empty."""
    try:
        status = folder.stat()
        entries = sorted((entry.name, _is_folder(entry)) for entry in os.scandir(folder))
    except FileNotFoundError:
        raise BadInput("no such folder", folder, "check the path") from None
    except NotADirectoryError:
        raise BadInput("not a folder", folder, "give the folder that holds the class folders") from None
    except OSError as error:
        raise BadInput(f"the folder cannot be read: {error.strerror}", folder, "check its permissions") from error
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    for name, is_folder in entries:
        path, source = folder / name, below + name_as_text(name)
        if is_folder:
            yield from _walk(path, f"{source}/", above | {identity})
        else:
            yield path, source


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it as a file will say so
        return False
