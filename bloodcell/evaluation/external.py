"""Another set under a run's classes: the label map, from the names of that set to the names the run knows."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.errors import BadInput, nearest

COLUMNS = ("label", "class")


@dataclass(frozen=True, eq=False)
class LabelMap:
    """How the classes of a set become those of a run.

    Attributes:
        classes: of the run, in index order.
        index: int32 [classes of the set], the class of the run, -1 where the images are left out.
        names: classes of the set, in index order.
    """

    classes: list[str]
    index: np.ndarray
    names: list[str]

    @property
    def digest(self) -> str:
        """Identity of the map; "" where it changes nothing."""
        if self.names == self.classes and np.array_equal(self.index, np.arange(len(self.names))):
            return ""
        text = "\n".join(f"{name}\t{place}" for name, place in zip(self.names, self.index.tolist(), strict=True))
        return hashlib.sha256(text.encode()).hexdigest()

    def kept(self, labels: np.ndarray) -> np.ndarray:
        """Return which samples have a class of the run, bool [samples], from the set's labels."""
        return self.index[labels] >= 0

    def left_out(self, labels: np.ndarray) -> dict[str, int]:
        """Return how many samples of each class of the set are left out, from the set's labels; none are not named."""
        counts = np.bincount(labels, minlength=len(self.names))
        return {
            name: int(count)
            for name, count, place in zip(self.names, counts, self.index, strict=True)
            if place < 0 and count
        }


def same_classes(classes: Sequence[str]) -> LabelMap:
    """Return the map of a set that has the run's own classes."""
    return LabelMap(list(classes), np.arange(len(classes), dtype=np.int32), list(classes))


def read_label_map(path: Path, of_set: Sequence[str], of_run: Sequence[str]) -> LabelMap:
    """Read a CSV file with the columns label (a class of the set) and class (of the run; empty: left out).

    Labels that the file does not name are left out.

    Raises:
        BadInput: the file cannot be read, lacks a column, names a label or class that does not exist, or a label twice.
    """
    known = {name: place for place, name in enumerate(of_set)}
    index = np.full(len(of_set), -1, dtype=np.int32)
    seen: set[str] = set()
    for line, label, name in _rows(path):
        where = f"{path}, line {line}"
        if label not in known:
            raise BadInput(f"the set has no class {label!r}", where, _choose(label, of_set))
        if label in seen:
            raise BadInput(f"label {label!r} stands there twice", where, "keep one line for each label")
        if name and name not in of_run:
            raise BadInput(f"the run knows no class {name!r}", where, _choose(name, of_run))
        seen.add(label)
        index[known[label]] = list(of_run).index(name) if name else -1
    if np.all(index < 0):
        raise BadInput("no label is mapped to a class", path, f"the run knows {', '.join(of_run)}")
    return LabelMap(list(of_run), index, list(of_set))


def _rows(path: Path) -> list[tuple[int, str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise BadInput(f"the label map has no column {missing[0]!r}", path, "its first line is: label,class")
            return [
                (reader.line_num, (row["label"] or "").strip(), (row["class"] or "").strip())
                for row in reader
                if any((value or "").strip() for value in (row["label"], row["class"]))
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"the label map cannot be read: {error}", path, "give a CSV file: label,class") from error


def _choose(name: str, known: Sequence[str]) -> str:
    return nearest(name, list(known)) or f"choose one of {', '.join(known)}"
