"""What people have on disk as one list of (file, class, group): class folders, or a table beside the images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from shards.errors import BadInput, nearest
from shards.images import IMAGE_SUFFIXES

LABEL_COLUMNS = ("label", "class")
GROUP_COLUMNS = ("group", "patient", "patient_id", "slide")
PATH_COLUMNS = ("path", "file", "filename", "image")


@dataclass(frozen=True)
class Item:
    """One image file: where it is, its name below the packed folder, its class name and its group ("" if unknown).

    Names are text: bytes of a file name that are not UTF-8 are written as \\xNN in `source`; `path` keeps them.
    """

    path: Path
    source: str
    label: str
    group: str


@dataclass(frozen=True)
class Listing:
    """The images of one source in a fixed order, and how many other files were passed over."""

    items: list[Item]
    ignored: int


def list_folder(root: Path, group_pattern: str | None = None) -> Listing:
    """List `root/<class>/**/image`, sorted by path; each folder below `root` that holds images is a class.

    Args:
        root: the folder of class folders.
        group_pattern: a regular expression over the path below `root`; its first group (or the whole match) names
            the sample's group (patient, slide). Files it does not match have no group.

    Raises:
        BadInput: no such folder, unreadable, no images, images beside the class folders, or fewer than two classes.
    """
    pattern = _compile(group_pattern)
    files = sorted(_walk(root, root, set()), key=lambda entry: entry[1])
    images = [(path, source) for path, source in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise BadInput("no images here", root, "give the folder that holds one folder of images for each class")
    loose = [source for _, source in images if "/" not in source]
    if loose:
        raise BadInput(f"{len(loose)} images lie beside the class folders", root / loose[0], "move them into one")
    direct = {source.split("/")[0] for _, source in images if source.count("/") == 1}
    nested = {source.split("/")[0] for _, source in images} - direct
    if nested and not direct:
        inner = sorted({source.rsplit("/", 1)[0] for _, source in images})[0]
        raise BadInput(
            "the images lie two or more folders deep", root / inner, "give the folder that holds the class folders"
        )
    items = [Item(path, source, source.split("/")[0], _group(pattern, source)) for path, source in images]
    _check_classes(items, root)
    return Listing(items, len(files) - len(images))


def list_table(root: Path, table: Path, group_column: str | None = None) -> Listing:
    """List the images named in a CSV, TSV or parquet table with a path, a label and perhaps a group column.

    Args:
        root: the folder that relative paths in the table start from.
        table: the file.
        group_column: the column that names patient or slide; without it the first of GROUP_COLUMNS that exists.

    Raises:
        BadInput: the table cannot be read, lacks a column, names a file twice or a file that does not exist.
    """
    content = _read_table(table)
    path_column = _pick(content, PATH_COLUMNS, table, "image paths")
    label_column = _pick(content, LABEL_COLUMNS, table, "labels")
    if group_column is not None and group_column not in content.column_names:
        fix = nearest(group_column, content.column_names) or f"the columns are {', '.join(content.column_names)}"
        raise BadInput(f"no column {group_column!r}", table, fix)
    found = group_column or next((name for name in GROUP_COLUMNS if name in content.column_names), None)
    paths = [str(value) for value in content.column(path_column).to_pylist()]
    labels = content.column(label_column).to_pylist()
    groups = content.column(found).to_pylist() if found else [None] * len(paths)
    items = []
    for line, (source, label, group) in enumerate(zip(paths, labels, groups, strict=True), 2):
        if label is None or str(label) == "":
            raise BadInput("a row has no label", f"{table}:{line}", "give each image a label or leave its row out")
        if not (root / source).is_file():
            raise BadInput(f"the table names a file that does not exist: {source}", f"{table}:{line}", "mend the path")
        items.append(Item(root / source, source, str(label), "" if group is None else str(group)))
    doubled = len(items) - len({item.source for item in items})
    if doubled:
        raise BadInput(f"{doubled} paths stand in the table twice", table, "keep one row for each file")
    if not items:
        raise BadInput("the table has no rows", table, "give one row for each image")
    items.sort(key=lambda item: item.source)
    _check_classes(items, table)
    return Listing(items, 0)


def _walk(folder: Path, root: Path, above: set[tuple[int, int]]) -> Iterator[tuple[Path, str]]:
    """Yield (path, path below root) of every file, following links but never in a circle."""
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
        path = folder / entry.name
        if _is_folder(entry):
            yield from _walk(path, root, above | {identity})
        else:
            yield path, as_text(path.relative_to(root))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it as a file will say so
        return False


def as_text(path: Path) -> str:
    """Return a path with / between its parts as text that can be encoded: bytes that are not UTF-8 become \\xNN."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _compile(pattern: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern) if pattern else None
    except re.error as error:
        raise BadInput(f"not a regular expression: {error}", pattern, "mend --group-pattern") from error


def _group(pattern: re.Pattern[str] | None, source: str) -> str:
    match = pattern.search(source) if pattern else None
    if match is None:
        return ""
    return (match.group(1) if match.re.groups else match.group(0)) or ""


def _check_classes(items: list[Item], where: Path) -> None:
    classes = {item.label for item in items}
    if len(classes) < 2:
        raise BadInput(f"only one class ({next(iter(classes))!r})", where, "classification needs at least two")


def _read_table(table: Path) -> pa.Table:
    try:
        if table.suffix == ".parquet":
            return pyarrow.parquet.read_table(table)
        delimiter = "\t" if table.suffix in (".tsv", ".tab") else ","
        parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        with pyarrow.csv.open_csv(table, parse_options=parse) as reader:
            names = reader.schema.names
        # Everything is text: patient 007 is not patient 7, and a class may be called 1e3 or 2020-01-01.
        convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        return pyarrow.csv.read_csv(table, parse_options=parse, convert_options=convert)
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"the table cannot be read: {error}", table, "give a CSV, TSV or parquet file") from error


def _pick(content: pa.Table, names: tuple[str, ...], table: Path, what: str) -> str:
    for name in names:
        if name in content.column_names:
            return name
    raise BadInput(f"no column for {what}", table, f"name one of its columns {' or '.join(names)}")
