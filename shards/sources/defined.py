"""A folder that a definition describes: class, part and group of each image from the names along its path."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from shards.console import say, warn
from shards.definitions import Definition, LabelFile
from shards.errors import BadInput, nearest
from shards.sources.folder import list_classes
from shards.sources.items import Item, compile_pattern, find_group, spelling
from shards.sources.listing import Items, Listing
from shards.sources.table import read_table
from shards.sources.walk import images_among, walk


def list_defined(root: Path, definition: Definition, trees: str = "", group_pattern: str = "") -> Listing:
    """List the images below `root` as the definition says; files that it gives no class are passed over with a warning.

    Args:
        root: the folder as it was unpacked, or one above or below.
        definition: what is known of the set.
        trees: which of the definition's trees to take, `A,B` or `all`; "" is the first. Where several are taken, the
            versions of one picture (same folder, same file name without its extension) share a group.
        group_pattern: finds groups in place of the definition's own patterns.

    Raises:
        BadInput: unreadable, no image with a class, an unknown tree, or a label table that cannot be used.
    """
    if not definition.classes:
        listing = list_classes(root, group_pattern or None, definition.splits)
        named = (replace(i, group=i.group if group_pattern else definition.group(i.source)) for i in listing.items)
        return Listing(Items.of(replace(item, part=_part(item, definition)) for item in named), listing.ignored)
    pattern = compile_pattern(group_pattern)
    files = walk(root)
    images = images_among(files)
    present = {_deepest(source, definition.trees) for source in images.each("source")} - {""}
    wanted = _wanted_trees(definition, trees, present)
    labels = [(spelling(table.folder), _lookup(table, files)) for table in definition.labels]
    homeless: list[str] = []
    others: list[str] = []

    def wanted_items() -> Iterator[Item]:
        for path, source in ((file.path, file.source) for file in images):
            tree = _deepest(source, definition.trees)
            if present and tree not in wanted:
                others.append(source)
                continue
            label, original = _label(source, definition, labels)
            if not label:
                homeless.append(source)
                continue
            group = find_group(pattern, source) if pattern else definition.group(original)
            item = Item(path, source, label, group)
            item = replace(item, part=_part(item, definition))
            yield _paired(item, tree, original) if len(wanted & present) > 1 else item

    items = Items.of(wanted_items())
    if not items:
        known = ", ".join(definition.classes)
        raise BadInput(f"no image of {definition.name} here", root, f"the folders of its classes are called {known}")
    if others:
        taken = ", ".join(sorted(wanted & present))
        say(f"of {definition.name} {taken} is taken, {len(others):,} other images are not")
    if homeless:
        warn(f"{len(homeless):,} images have no class of {definition.name} and are passed over, first {homeless[0]}")
    return Listing(items, len(files) - len(items))


def warn_of_counts(items: Iterable[Item], definition: Definition) -> None:
    """Warn if the images of each class are not as many as in a known release; hidden files are not counted."""
    counts = Counter(item.label for item in items if not item.source.rsplit("/", 1)[-1].startswith("."))
    said = definition.differences(counts)
    if said:
        warn(said)


def _deepest(source: str, known: Iterable[str]) -> str:
    """Return the entry of `known` that is spelled like the deepest folder of the path that is in it; "" if none is."""
    spelled = {spelling(name): name for name in known}
    folders = reversed(source.split("/")[:-1])
    return next((spelled[spelling(folder)] for folder in folders if spelling(folder) in spelled), "")


def _part(item: Item, definition: Definition) -> str:
    """Return the part of the official split that the path tells."""
    found = re.search(definition.fold, item.source, re.IGNORECASE) if definition.fold else None
    if found:
        return f"fold{int(found.group('fold'))}"
    name = _deepest(item.source, definition.splits)
    return definition.splits[name] if name else item.part


def _paired(item: Item, tree: str, original: str) -> Item:
    """Return the item in the group of its pair, unless it has one (a patient holds all versions of its pictures)."""
    if item.group:
        return item
    spelled = spelling(tree)
    rest = "/".join(folder for folder in original.split("/") if spelling(folder) != spelled)
    return replace(item, group=f"pair-{rest.rsplit('.', 1)[0]}")


def _wanted_trees(definition: Definition, trees: str, present: set[str]) -> set[str]:
    if not trees:
        return set([name for name in definition.trees if name in present][:1])
    if trees == "all":
        return set(definition.trees)
    chosen = set()
    for name in trees.split(","):
        found = next((known for known in definition.trees if spelling(known) == spelling(name)), None)
        if found is None:
            known = ", ".join(definition.trees) or "none"
            fix = nearest(name, definition.trees) or f"the trees of {definition.name}: {known}"
            raise BadInput(f"no tree {name!r}", "--trees", fix)
        chosen.add(found)
    return chosen


def _label(
    source: str, definition: Definition, labels: list[tuple[str, dict[str, tuple[str, str]]]]
) -> tuple[str, str]:
    """Return the class of a path ("" if unknown) and the path in which its group is looked for."""
    folders = {spelling(folder) for folder in source.split("/")[:-1]}
    for folder, lookup in labels:
        if folder in folders:
            label, original = lookup.get(source.rsplit("/", 1)[-1], ("", ""))
            return label, original or source
    name = _deepest(source, definition.classes)
    return (definition.classes[name] if name else ""), source


def _lookup(table: LabelFile, files: Items) -> dict[str, tuple[str, str]]:
    """Return image name -> (class, original name) of a label table; empty where the table is not there."""
    found = [file.path for file in files if fnmatch(file.path.name.casefold(), table.file.casefold())]
    if not found:
        return {}
    content = read_table(found[0])
    columns = [table.image, table.label] + ([table.original] if table.original else [])
    for column in columns:
        if column not in content.column_names:
            raise BadInput(f"no column {column!r}", found[0], f"the columns are {', '.join(content.column_names)}")
    rows = [content.column(column).to_pylist() for column in columns]
    originals = rows[2] if table.original else [""] * len(rows[0])
    result = {}
    for line, (image, label, original) in enumerate(zip(rows[0], rows[1], originals, strict=True), 2):
        if str(label) not in table.values:
            known = ", ".join(table.values)
            raise BadInput(f"the label {label!r} has no meaning", f"{found[0]}:{line}", f"the known labels are {known}")
        result[str(image)] = (table.values[str(label)], str(original or ""))
    return result
