"""A table beside the images: CSV, TSV or parquet with a path, a label, perhaps a group and a split column."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from shards.errors import BadInput, nearest
from shards.sources.items import Item, split_part
from shards.sources.listing import Items, Listing, check_classes

LABEL_COLUMNS = ("label", "class")
GROUP_COLUMNS = ("group", "patient", "patient_id", "slide")
PATH_COLUMNS = ("path", "file", "filename", "image")
SPLIT_COLUMNS = ("split", "part", "fold")


def list_table(
    root: Path,
    table: Path,
    group_column: str | None = None,
    keep_splits: bool = False,
    source_column: str | None = None,
) -> Listing:
    """List the images named in a CSV, TSV or parquet table with a path, a label and perhaps a group column.

    Args:
        root: the folder that relative paths in the table start from.
        table: the file.
        group_column: the column that names patient or slide; without it the first of GROUP_COLUMNS that exists.
        source_column: the column that names what each image's `origin` shall be.
        keep_splits: read each row's part from the first of SPLIT_COLUMNS that exists; otherwise there are no parts.

    Raises:
        BadInput: the table cannot be read, lacks a column, names a file twice or a file that does not exist.
    """
    content = read_table(table)
    path_column = _pick(content, PATH_COLUMNS, table, "image paths")
    label_column = _pick(content, LABEL_COLUMNS, table, "labels")
    for asked in (group_column, source_column):
        if asked is not None and asked not in content.column_names:
            fix = nearest(asked, content.column_names) or f"the columns are {', '.join(content.column_names)}"
            raise BadInput(f"no column {asked!r}", table, fix)
    found = group_column or next((name for name in GROUP_COLUMNS if name in content.column_names), None)
    paths = [_text(value) for value in content.column(path_column).to_pylist()]
    labels = _texts(content, label_column)
    groups = _texts(content, found) if found else [""] * len(paths)
    parts = _parts(content, table) if keep_splits else [""] * len(paths)
    origins = _texts(content, source_column) if source_column else [""] * len(paths)
    items = []
    rows = zip(paths, labels, groups, parts, origins, strict=True)
    for line, (source, label, group, part, origin) in enumerate(rows, 2):
        if not label:
            raise BadInput("a row has no label", f"{table}:{line}", "give each image a label or leave its row out")
        _check_file(root, source, f"{table}:{line}")
        items.append(Item(root / source, source, label, group, part, origin))
    doubled = len(items) - len({item.source for item in items})
    if doubled:
        raise BadInput(f"{doubled} paths stand in the table twice", table, "keep one row for each file")
    if not items:
        raise BadInput("the table has no rows", table, "give one row for each image")
    listed = Items.of(items).by_source()
    check_classes(listed, table)
    return Listing(listed, 0)


def _texts(content: pa.Table, column: str) -> list[str]:
    """Return a column as text; what is missing is "". Blanks around a label or a patient are no part of it."""
    return [_text(value).strip() for value in content.column(column).to_pylist()]


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return "" if value is None or value != value else str(value)  # NaN, as pandas writes a missing cell, is not itself


def _check_file(root: Path, source: str, where: str) -> None:
    """Raise BadInput where a row of a table names no file."""
    try:
        if source and (root / source).is_file():
            return
        said = f"the table names a file that does not exist: {source}" if source else "a row has no path"
    except OSError as error:
        said = f"the table names a file that cannot be looked at: {source[:200]} ({os.strerror(error.errno or 0)})"
    fix = "mend the path"
    if "://" in source:
        fix = "fetch the images first and give their paths"
    elif "\\" in source:
        fix = "write / between the folders of a path"
    raise BadInput(said, where, fix)


def read_table(table: Path) -> pa.Table:
    """Read a CSV, TSV or parquet file; the cells of text files stay text. Raises BadInput if that fails."""
    try:
        if table.suffix.lower() == ".parquet":
            return _distinct(pyarrow.parquet.read_table(table), table)
        parse = pyarrow.csv.ParseOptions(delimiter=delimiter_of(table), newlines_in_values=True)
        with pyarrow.csv.open_csv(table, parse_options=parse) as reader:
            names = reader.schema.names
        # Everything is text: patient 007 is not patient 7, and a class may be called 1e3 or 2020-01-01.
        convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        return _distinct(pyarrow.csv.read_csv(table, parse_options=parse, convert_options=convert), table)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        fix = "give a CSV or TSV file in UTF-8, or a parquet file"
        raise BadInput(f"the table cannot be read: {error}", table, fix) from error


def delimiter_of(table: Path) -> str:
    """Return what stands between the cells of a text file, from its first line.

    Programs write semicolons where the comma is used in numbers.
    """
    with open(table, encoding="utf-8-sig", newline="") as file:
        first = file.readline(1 << 16)
    found = [mark for mark in ",\t;" if mark in first]
    return max(found, key=first.count) if found else ","


def _distinct(content: pa.Table, table: Path) -> pa.Table:
    """Return the table without columns that have no name; raises BadInput where two have the same."""
    content = content.select([place for place, name in enumerate(content.column_names) if name])
    names = content.column_names
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise BadInput(f"two columns are called {doubled!r}", table, "rename one of them")
    return content


def _parts(content: pa.Table, table: Path) -> list[str]:
    column = _pick(content, SPLIT_COLUMNS, table, "the split to keep")
    parts = []
    for line, value in enumerate(content.column(column).to_pylist(), 2):
        text = "" if value is None else str(value)
        part = split_part(f"fold{text}" if column == "fold" and text.isdecimal() else text)
        if not part:
            raise BadInput(f"{text!r} is no part of a split", f"{table}:{line}", "write train, val, test or fold0, ...")
        parts.append(part)
    return parts


def _pick(content: pa.Table, names: tuple[str, ...], table: Path, what: str) -> str:
    for name in names:
        if name in content.column_names:
            return name
    raise BadInput(f"no column for {what}", table, f"name one of its columns {' or '.join(names)}")
