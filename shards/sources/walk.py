"""The walk through folders that finds the files, and which of them are taken for images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shards.errors import BadInput
from shards.images import IMAGE_SUFFIXES
from shards.sources.items import Item, name_as_text
from shards.sources.listing import Items


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
    """Return the files that are called like images."""
    return files.taken(np.flatnonzero(list(map(_is_image, files.each("source")))))


def _is_image(source: str) -> bool:
    stem, dot, suffix = source.rpartition("/")[2].rpartition(".")  # a Path for each would take most of a listing's time
    return stem != "" and (dot + suffix).lower() in IMAGE_SUFFIXES


def _walk(folder: Path, below: str, above: set[tuple[int, int]]) -> Iterator[tuple[Path, str]]:
    """Yield the files of a folder whose path below the root is `below`, which ends in "/" or is empty."""
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        raise BadInput("no such folder", folder, "check the path") from None
    except NotADirectoryError:
        raise BadInput("not a folder", folder, "give the folder that holds the class folders") from None
    except OSError as error:
        raise BadInput(f"the folder cannot be read: {error.strerror}", folder, "check its permissions") from error
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    for entry in entries:
        path, source = folder / entry.name, below + name_as_text(entry.name)
        if _is_folder(entry):
            yield from _walk(path, f"{source}/", above | {identity})
        else:
            yield path, source


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it as a file will say so
        return False
