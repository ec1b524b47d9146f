"""Definitions of known data sets: one small TOML file each, in `shards/datasets/` or of your own, as a dataclass."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from shards.errors import BadInput, nearest

FOLDER = Path(__file__).parent / "datasets"


@dataclass(frozen=True)
class Release:
    """A published version of the set: what it is called and how many images it has of each class."""

    name: str
    counts: dict[str, int]


@dataclass(frozen=True)
class LabelFile:
    """A table with the labels of images whose folder does not tell their class.

    Attributes:
        file: name of the table, with `*` and `?`; where there is none below the folder, its images have no label.
        folder: images below a folder of this name are looked up in it.
        image: the column with the file name of the image.
        label: the column with the label.
        values: label in the table -> class.
        original: the column with the name that the file had before, in which groups are looked for; "" for none.
    """

    file: str
    folder: str
    image: str
    label: str
    values: dict[str, str]
    original: str = ""


@dataclass(frozen=True)
class Definition:
    """What is known of a data set.

    Folder names are compared without case, blanks and punctuation, wherever they stand in a path; of several that
    would do the deepest counts.

    Attributes:
        title: the set in a few words.
        page: where it is described: the page's name, a DOI.
        by_hand: how to get it without a program: what to press, what comes out.
        citation: whom to cite.
        licence: as its page states it.
        kaggle: its handle on Kaggle, owner/name; "" if it is not there.
        archive: name of the `.npz` that holds the set; "" where it is a folder of images.
        notes: what one must know before a result is believed; shown when it is packed.
        classes: folder name -> class; empty: each folder is a class under its own name.
        groups: regular expressions over the path; the first that matches gives the group, `name-value` for each of its
            named parts, so that names are namespaces: `patient-11` is not `healthy-11`. Case does not matter.
        fold: regular expression over the path with a named part `fold`: the number of the official fold.
        source: regular expression over the path with a named part `source`: the hospital, device or set that an image
            comes from as a whole.
        splits: folder name -> part of the official split.
        trees: folders that hold the same pictures in several versions; the first is taken unless others are asked for.
        labels: tables for images whose folder does not tell their class.
        releases: the counts that are known; another count is a warning.
        name: of the definition.
    """

    title: str
    page: str = ""
    by_hand: str = ""
    citation: str = ""
    licence: str = ""
    kaggle: str = ""
    archive: str = ""
    notes: list[str] = field(default_factory=list)
    classes: dict[str, str] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    fold: str = ""
    source: str = ""
    splits: dict[str, str] = field(default_factory=dict)
    trees: list[str] = field(default_factory=list)
    labels: list[LabelFile] = field(default_factory=list)
    releases: list[Release] = field(default_factory=list)
    name: str = ""

    def group(self, path: str) -> str:
        """Return the group that a path tells, such as `patient-11` or `healthy-3`; "" if it tells none."""
        for pattern in self.groups:
            match = re.search(pattern, path, re.IGNORECASE)
            if match:
                named = {name: value for name, value in match.groupdict().items() if value}
                return ",".join(f"{name}-{value.casefold()}" for name, value in named.items())
        return ""

    def differences(self, counts: Mapping[str, int]) -> str:
        """Return how the counts differ from every known release, "" if they are those of one or none is known."""
        if not self.releases or any(release.counts == counts for release in self.releases):
            return ""

        def said(of: Mapping[str, int]) -> str:
            return ", ".join(f"{name} {of[name]:,}" for name in sorted(of))

        known = "; ".join(f"{release.name}: {said(release.counts)}" for release in self.releases)
        return f"{self.name} has other counts here ({said(counts)}) than in any known release ({known})"


def names() -> list[str]:
    """Return the names of the definitions that come with the program."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_definition(name: str) -> Definition:
    """Read a definition by its name, or from a file of one's own.

    Raises:
        BadInput: no such definition, a key that does not exist, a value of the wrong type, a bad regular expression.
    """
    own = name.endswith(".toml") or "/" in name
    path = Path(name) if own else FOLDER / f"{name}.toml"
    if not own and name not in names():
        fix = nearest(name, names()) or f"the known ones are {', '.join(names())}; or give a .toml file"
        raise BadInput(f"no data set {name!r} is known", "--dataset", fix)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"the definition cannot be read: {error.strerror}", path, "check the path") from error
    except ValueError as error:
        raise BadInput(f"not TOML: {error}", path, "mend the file") from error
    _check_keys(content, Definition, path)
    for key, kind in (("labels", LabelFile), ("releases", Release)):
        entries = content.get(key)
        for entry in entries if isinstance(entries, list) else []:
            _check_keys(entry, kind, path)
    try:
        definition = msgspec.convert(content, Definition)
    except msgspec.ValidationError as error:
        raise BadInput(f"{error}", path, "see shards/definitions.py for what each key means") from error
    _check_patterns(definition, path)
    return dataclasses.replace(definition, name=path.stem)


def _check_keys(content: Any, kind: type, path: Path) -> None:
    known = [leaf.name for leaf in dataclasses.fields(kind) if not (kind is Definition and leaf.name == "name")]
    for key in content if isinstance(content, dict) else ():
        if key not in known:
            raise BadInput(f"no key {key!r}", path, nearest(key, known) or f"the keys are {', '.join(known)}")


def _check_patterns(definition: Definition, path: Path) -> None:
    for pattern in (*definition.groups, definition.fold, definition.source):
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise BadInput(f"not a regular expression: {error}", path, f"mend {pattern!r}") from error
        if pattern and not compiled.groupindex:
            raise BadInput(f"{pattern!r} has no named part", path, "write (?P<patient>...) around what is wanted")
    for name, pattern, fix in (
        ("fold", definition.fold, r"(?P<fold>\d+)"),
        ("source", definition.source, "(?P<source>...)"),
    ):
        if pattern and name not in re.compile(pattern).groupindex:
            raise BadInput(f"the pattern of the {name} has no part named {name}", path, f"write {fix}")
