"""A fixed test set: the images that --test-from names are marked, all others belong to no part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shards.errors import BadInput, nearest
from shards.sources.items import FIXED
from shards.sources.listing import Items, Listing
from shards.sources.table import PATH_COLUMNS, read_table

TABLES = (".csv", ".tsv", ".tab", ".parquet")


def mark(listing: Listing, name: str, roots: int) -> Listing:
    """Return the listing with the images of the fixed test set in the part FIXED and all others in none.

    Args:
        listing: all images; with several roots their sources begin with the name of the root.
        name: a table of paths as they stand in `source` (or below the only root), the name of a root, or a part of the
            split that the images lie in (test, fold0, ...).
        roots: how many roots the listing has.

    Raises:
        BadInput: there is no such table, root or part, a path of the table is no image, or nothing or all is chosen.
    """
    chosen = _listed(listing, Path(name)) if is_table(name) else _named(listing, name, roots)
    if len(chosen) == len(listing.items):
        raise BadInput("every image is in the fixed test set", "--test-from", "leave images to train on")
    items = (replace(item, part=FIXED if item.source in chosen else "") for item in listing.items)
    return replace(listing, items=Items.of(items))


def is_table(name: str) -> bool:
    """Whether --test-from names a table of paths, not a root or a part."""
    return Path(name).suffix.lower() in TABLES


def _named(listing: Listing, name: str, roots: int) -> set[str]:
    tops = {source.split("/")[0] for source in listing.items.each("source")} if roots > 1 else set()
    parts = set(listing.items.distinct("part")) - {""}
    if name in tops:
        return {source for source in listing.items.each("source") if source.startswith(f"{name}/")}
    if name in parts:
        return {item.source for item in listing.items if item.part == name}
    known = sorted(tops | parts)
    fix = nearest(name, known) or (f"choose one of {', '.join(known)}" if known else "give a .csv with a column path")
    raise BadInput(f"no root or part is called {name!r}", "--test-from", fix)


def _listed(listing: Listing, table: Path) -> set[str]:
    content = read_table(table)
    column = next((name for name in PATH_COLUMNS if name in content.column_names), None)
    if column is None:
        raise BadInput("no column for image paths", table, f"name one of its columns {' or '.join(PATH_COLUMNS)}")
    known = set(listing.items.each("source"))
    chosen = {str(value) for value in content.column(column).to_pylist()}
    missing = sorted(chosen - known)
    if missing:
        fix = nearest(missing[0], sorted(known)) or "give paths below the folder that is packed"
        raise BadInput(f"{len(missing)} paths are no images here, first {missing[0]}", table, fix)
    if not chosen:
        raise BadInput("the table names no image", table, "give one row for each image of the test set")
    return chosen
