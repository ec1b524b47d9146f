"""What every source yields: an item for each image; how names are read, spelled and grouped."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from shards.errors import BadInput

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Folder names (as `spelling` gives them) that are taken for the parts of an existing split."""

FIXED = "fixed_test"
"""Part of the images of a test set that is kept apart, whatever becomes of the others (--test-from)."""

_FOLD = re.compile(r"fold(\d+)")


@dataclass(frozen=True, slots=True)
class Item:
    """One image file: where it is, its name below the packed folder, its class name and its group ("" if unknown).

    Names are text: bytes of a file name that are not UTF-8 are written as \\xNN in `source`; `path` keeps them.
    `part` is where an existing split has it (train, val, test, fold0, ...), "" if there is none. `origin` is where it
    comes from as a whole: the hospital, the microscope, the published set; "" if unknown.
    """

    path: Path
    source: str
    label: str
    group: str
    part: str = ""
    origin: str = ""


def as_text(path: Path) -> str:
    """Return a path with / between its parts as text that can be encoded: bytes that are not UTF-8 become \\xNN."""
    return name_as_text(path.as_posix())


def name_as_text(name: str) -> str:
    """Return a file's name as `as_text` does its path."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@lru_cache(maxsize=4096)
def spelling(name: str) -> str:
    """Return a name without case, blanks and punctuation, so that `[Malignant] early Pre-B` meets its variants."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def split_part(name: str) -> str:
    """Return the part that a folder name stands for (`TRAIN` -> train, `fold_2` -> fold2), "" if for none."""
    fold = _FOLD.fullmatch(spelling(name))
    return f"fold{int(fold.group(1))}" if fold else SPLIT_NAMES.get(spelling(name), "")


def compile_pattern(pattern: str | None, where: str = "--group-pattern") -> re.Pattern[str] | None:
    """Compile a group pattern; raises BadInput that names where it stands."""
    try:
        return re.compile(pattern) if pattern else None
    except re.error as error:
        raise BadInput(f"not a regular expression: {error}", pattern, f"mend {where}") from error


def find_group(pattern: re.Pattern[str] | None, source: str) -> str:
    """Return the first group of the pattern's match in a path, or the whole match; "" without one."""
    match = pattern.search(source) if pattern else None
    if match is None:
        return ""
    return (match.group(1) if match.re.groups else match.group(0)) or ""
