"""One listing from all that was asked for: several roots, archives, a table, a definition, a map of labels."""

from __future__ import annotations

import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from shards.console import say, warn
from shards.definitions import Definition, read_definition
from shards.errors import BadInput, nearest
from shards.heap import give_back
from shards.images import IMAGE_SUFFIXES
from shards.sources.archive import encoder, unpack
from shards.sources.defined import list_defined, warn_of_counts
from shards.sources.fixed import is_table, mark
from shards.sources.folder import MOST_NAMED, list_classes
from shards.sources.items import as_text
from shards.sources.listing import Items, Listing, check_classes
from shards.sources.origin import with_origins
from shards.sources.table import list_table, read_table


@dataclass(frozen=True)
class Request:
    """What to list. Empty texts ask for nothing.

    Attributes:
        roots: folders, or `.npz` archives.
        scratch: an existing folder in which archives are unpacked for the while.
        table, group_column, group_pattern, trees: as `list_table`, `list_folder` and `list_defined` take them.
        dataset: name or path of a definition.
        labels: a table with the columns `label` (as found) and `class` (as wanted; empty leaves the images out).
        keep_splits, merge_splits: what becomes of a split that the images lie in.
        source_column, source_pattern: what names each image's origin; without them it is the name of its root.
        test_from: which images are a test set that is kept apart, as `shards.fixedtest.mark` takes it.
        any_splits: keep each image's part if it has one, and ask no question.
        one_class: whether images of a single class will do.
    """

    roots: tuple[Path, ...]
    scratch: Path
    table: str = ""
    group_column: str = ""
    group_pattern: str = ""
    dataset: str = ""
    trees: str = ""
    labels: str = ""
    keep_splits: bool = False
    merge_splits: bool = False
    source_column: str = ""
    source_pattern: str = ""
    test_from: str = ""
    any_splits: bool = False
    one_class: bool = False

    @property
    def where(self) -> Path:
        """The first root, for messages."""
        return self.roots[0]


@contextmanager
def gathered(request: Request) -> Iterator[Listing]:
    """Give the listing of all roots, sorted by name; unpacked archives last as long as the context.

    With several roots, each item's source begins with the name of its root (`name-2` where two share one).

    Raises:
        BadInput: what was asked for contradicts itself or the files; a split that is neither kept nor merged.
    """
    _check(request)
    definition = read_definition(request.dataset) if request.dataset else None
    with ExitStack() as stack:
        if request.table:
            listing = list_table(
                request.where,
                Path(request.table),
                request.group_column or None,
                request.keep_splits or (bool(request.test_from) and not is_table(request.test_from)),
                request.source_column or None,
            )
        else:
            listing = _joined([_list(root, request, definition, stack) for root in request.roots], request.roots)
        if request.table:
            _warn_of_unlabelled(listing.items)
        listing = with_origins(listing, definition, request.source_pattern)
        if not request.test_from or request.test_from not in listing.items.distinct("part"):
            listing = _with_split(listing, request)
        if request.test_from:
            listing = mark(listing, request.test_from, len(request.roots))
        if definition:
            warn_of_counts(listing.items, definition)
            for note in definition.notes:
                say(f"{definition.name}: {note}")
        if request.labels:
            listing = _relabelled(listing, Path(request.labels))
        _warn_of_twins(listing.items, "label", "classes though their names look alike: --labels makes them one")
        _warn_of_twins(listing.items, "group", "patients or slides though their names look alike: are they one?")
        _check_groups(listing.items, request, definition)
        if not request.one_class:
            check_classes(listing.items, request.where)
        listing = replace(listing, items=listing.items.filed(request.scratch))
        give_back()  # columns of the listings that this one was made from
        yield listing


def _check(request: Request) -> None:
    if request.keep_splits and request.merge_splits:
        raise BadInput("a split is kept or merged, not both", "--keep-splits, --merge-splits", "choose one")
    if request.table and (request.dataset or len(request.roots) > 1):
        raise BadInput(
            "a table names all images itself", "--table", "leave out --also and --dataset, or put all rows in one table"
        )
    if request.source_column and not request.table:
        raise BadInput("a column is read from a table only", "--source-column", "name it with --table")
    if request.trees and not request.dataset:
        raise BadInput("trees are known from a definition only", "--trees", "name it with --dataset")


def _list(root: Path, request: Request, definition: Definition | None, stack: ExitStack) -> Listing:
    archive = _archive(root, definition)
    if archive:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".unpacked-", dir=request.scratch)))
        unpack(archive, folder)
        root = folder
    if definition is None:
        listing = list_classes(root, request.group_pattern or None)
    else:
        listing = list_defined(root, definition, request.trees, request.group_pattern)
    return replace(listing, encoder=encoder()) if archive else listing


def _archive(root: Path, definition: Definition | None) -> Path | None:
    """Return the archive that a root is, or that the definition says lies in it."""
    if root.suffix.lower() == ".npz" and not root.is_dir():
        return root
    if definition is None or not definition.archive or not root.is_dir():
        return None
    found = sorted(root.glob(definition.archive))
    if len(found) > 1:
        said = ", ".join(path.name for path in found)
        raise BadInput(f"several archives: {said}", root, "give one of them in place of the folder")
    return found[0] if found else None


def _joined(listings: list[Listing], roots: tuple[Path, ...]) -> Listing:
    """Put the listings of several roots into one."""
    if len(listings) == 1:
        return replace(listings[0], items=listings[0].items.by_source())
    same = [path for path, n in Counter(root.resolve() for root in roots).items() if n > 1]
    if same:
        raise BadInput("one folder is given twice", same[0], "name it once")
    prefixes: list[str] = []
    seen: Counter[str] = Counter()
    for root in roots:
        name = as_text(Path(root.resolve().name)) or "root"
        seen[name] += 1
        prefixes.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    items = Items.of(
        replace(item, source=f"{prefix}/{item.source}", origin=prefix)
        for prefix, listing in zip(prefixes, listings, strict=True)
        for item in listing.items
    ).by_source()
    doubled = next((one for one, other in pairwise(items.each("source")) if one == other), None)
    if doubled:
        raise BadInput(f"two roots give one name to different images: {doubled}", "--also", "rename one of them")
    return Listing(items, sum(listing.ignored for listing in listings), max(listing.encoder for listing in listings))


def _warn_of_unlabelled(items: Items) -> None:
    """Say how many images lie in the folders of those that a table names, and stand in no row of it."""
    named = {item.path for item in items}
    beside = (path for folder in {path.parent for path in named} for path in _inside(folder))
    left = sorted(path for path in beside if path.suffix.lower() in IMAGE_SUFFIXES and path not in named)
    if left:
        warn(f"{len(left):,} images beside those of the table have no label, first {left[0]}: passed over")


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # one may enter a folder whose names one may not read
        return []


def _check_groups(items: Items, request: Request, definition: Definition | None) -> None:
    """Say which images have no patient though patients were asked for: they may end in any part of a split.

    Raises:
        BadInput: --group-pattern finds a group in no path.
    """
    asked = request.group_pattern or request.group_column or (definition.groups if definition else ())
    without = [source for source, group in zip(items.each("source"), items.each("group"), strict=True) if not group]
    if not asked or not without:
        return
    if len(without) == len(items) and request.group_pattern and not request.table:
        raise BadInput(
            f"the pattern {request.group_pattern!r} finds a group in no path, such as {without[0]}",
            "--group-pattern",
            "mend it: it is searched in paths below the folder, and its first (...) is the group",
        )
    warn(f"{len(without):,} of {len(items):,} images have no group, first {without[0]}: only copies are kept together")


def _warn_of_twins(items: Items, column: str, said: str) -> None:
    """Say which names look alike to a person: a slip of the keyboard makes a class, or a patient, of its own."""
    alike: dict[str, list[str]] = {}
    for name in items.distinct(column):
        plain = unicodedata.normalize("NFKC", name).casefold().replace("_", " ")
        alike.setdefault(" ".join(plain.split()), []).append(name)
    twins = [names for names in alike.values() if len(names) > 1]
    for names in twins[:MOST_NAMED]:
        warn(f"{' and '.join(map(ascii, names))} are {len(names)} {said}")
    if len(twins) > MOST_NAMED:
        warn(f"so it is with {len(twins) - MOST_NAMED:,} more names")


def _relabelled(listing: Listing, path: Path) -> Listing:
    """Return the listing with the classes of a label map; labels that the map leaves out are an error."""
    table = read_table(path)
    for column in ("label", "class"):
        if column not in table.column_names:
            raise BadInput(f"no column {column!r}", path, "give the columns label (as found) and class (as wanted)")
    labels, classes = (table.column(name).to_pylist() for name in ("label", "class"))
    known = {str(label): str(name or "") for label, name in zip(labels, classes, strict=True)}
    if len(known) < len(labels):
        raise BadInput("a label stands in the map twice", path, "keep one row for each label")
    for label in listing.items.distinct("label"):
        if label not in known:
            raise BadInput(
                f"the label {label!r} is not in the map", path, nearest(label, list(known)) or "add a row for it"
            )
    items = Items.of(replace(item, label=known[item.label]) for item in listing.items if known[item.label])
    left = len(listing.items) - len(items)
    if left:
        warn(f"{left:,} images are passed over: the map gives their labels no class")
    if not items:
        raise BadInput("the map gives no image a class", path, "fill its column class")
    return replace(listing, items=items, ignored=listing.ignored + left)


def _with_split(listing: Listing, request: Request) -> Listing:
    """Return the listing with its parts if they are to be kept, without them if they are to be merged."""
    if request.any_splits:
        return listing
    counts = Counter(listing.items.each("part"))
    found = sorted(part for part in counts if part)
    if found and not request.keep_splits and not request.merge_splits:
        raise BadInput(
            f"the images lie in a split ({', '.join(found)})",
            request.where,
            "say --keep-splits to keep it as it is or --merge-splits to divide all images anew",
        )
    if not request.keep_splits:
        return replace(listing, items=Items.of(replace(item, part="") for item in listing.items)) if found else listing
    if not found:
        raise BadInput("there is no split to keep", request.where, "leave out --keep-splits")
    if counts[""]:
        first = next(item.source for item in listing.items if not item.part)
        raise BadInput(
            f"{counts['']:,} images lie in no part of the split, first {first}",
            request.where,
            "move them into one or say --merge-splits",
        )
    return listing
