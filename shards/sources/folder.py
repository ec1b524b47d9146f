"""Class folders, also below the folders of an existing split: `<class>/image`, `TRAIN/<class>/image`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from shards.console import warn
from shards.errors import BadInput
from shards.sources.items import as_text, compile_pattern, find_group, spelling, split_part
from shards.sources.listing import Items, Listing, check_classes
from shards.sources.walk import images_among, walk

MOST_NAMED = 5
"""Folders that a warning names."""


def list_folder(root: Path, group_pattern: str | None = None) -> Listing:
    """List `root/<class>/**/image`, sorted by path; each folder below `root` that holds images is a class.

    Where `root` holds nothing but the folders of a split (train, val, test, fold0, ... in any spelling), the class
    folders are looked for in those, and each item says in which part it lies.

    Args:
        root: the folder of class folders.
        group_pattern: a regular expression over the path below `root`; its first group (or the whole match) names
            the sample's group (patient, slide). Files it does not match have no group.

    Raises:
        BadInput: no such folder, unreadable, no images, images beside the class folders, or fewer than two classes.
    """
    listing = list_classes(root, group_pattern)
    check_classes(listing.items, root)
    return listing


def list_classes(root: Path, group_pattern: str | None = None, splits: Mapping[str, str] | None = None) -> Listing:
    """Do as `list_folder`, but take a folder with one class (another root may bring the others).

    `splits` names further folders that are parts of a split: folder name -> part.
    """
    own = {spelling(name): part for name, part in (splits or {}).items()}

    def part_of(name: str) -> str:
        return own.get(spelling(name)) or split_part(name)

    pattern = compile_pattern(group_pattern)
    files = walk(root)
    images = images_among(files)
    if not images:
        raise BadInput("no images here", root, "give the folder that holds one folder of images for each class")
    split = _is_split(root, images, part_of)
    _warn_of_empty(root, images, split)

    def folders(depth: int) -> Iterator[str]:
        return (source.split("/")[depth] for source in images.each("source"))

    known: dict[str, Iterator[str]] = {"label": folders(1 if split else 0)}
    if split:
        known["part"] = map(part_of, folders(0))
    if pattern:
        known["group"] = (find_group(pattern, source) for source in images.each("source"))
    return Listing(images.replaced(**known), len(files) - len(images))


def _warn_of_empty(root: Path, images: Items, split: bool) -> None:
    """Say which folders stand where classes do and hold no image: a class would be missing without a word."""
    depth = 2 if split else 1
    held = {"/".join(source.split("/")[:depth]) for source in images.each("source")}
    places = [root / top for top in sorted({name.split("/")[0] for name in held})] if split else [root]
    there = [path for place in places for path in sorted(place.iterdir()) if os.path.isdir(path)]
    names = [as_text(path.relative_to(root)) for path in there if not path.name.startswith(".")]
    empty = [name for name in names if name not in held]
    if empty:
        more = f" and {len(empty) - MOST_NAMED:,} more" if len(empty) > MOST_NAMED else ""
        warn(f"folders without an image are no classes: {', '.join(empty[:MOST_NAMED])}{more}")


def _is_split(root: Path, images: Items, part_of: Callable[[str], str]) -> bool:
    """Whether the images lie in the class folders of split folders; raises BadInput where they lie in neither."""
    loose = [source for source in images.each("source") if "/" not in source]
    if loose:
        raise BadInput(f"{len(loose)} images lie beside the class folders", root / loose[0], "move them into one")
    folders = sorted({source.rpartition("/")[0] for source in images.each("source")})
    tops = sorted({folder.split("/")[0] for folder in folders})
    direct = [folder for folder in folders if "/" not in folder]
    parts = [name for name in tops if part_of(name)]
    if len(parts) == len(tops) and direct:
        raise BadInput(
            f"the split folder {direct[0]!r} holds images but no class folders",
            root / direct[0],
            "give each split folder one folder for each class, or use --table",
        )
    if len(parts) == len(tops):
        return True
    if direct:
        return False
    if parts:
        other = next(name for name in tops if name not in parts)
        raise BadInput(
            f"{other!r} lies beside split folders ({', '.join(parts)}) and is none",
            root / other,
            "call it train, val, test or fold0, fold1, ..., move it away, or describe the data set with --dataset",
        )
    raise BadInput(
        "the images lie two or more folders deep", root / folders[0], "give the folder that holds the class folders"
    )
