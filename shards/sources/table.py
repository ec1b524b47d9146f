"""A table beside the images: CSV, TSV or parquet with a path, a label, perhaps a group and a split column."""

from __future__ import annotations

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
    paths = [str(value) for value in content.column(path_column).to_pylist()]
    labels = content.column(label_column).to_pylist()
    groups = content.column(found).to_pylist() if found else [None] * len(paths)
    parts = _parts(content, table) if keep_splits else [""] * len(paths)
    origins = content.column(source_column).to_pylist() if source_column else [None] * len(paths)
    items = []
    rows = zip(paths, labels, groups, parts, origins, strict=True)
    for line, (source, label, group, part, origin) in enumerate(rows, 2):
        if label is None or str(label) == "":
            raise BadInput("a row has no label", f"{table}:{line}", "give each image a label or leave its row out")
        if not (root / source).is_file():
            raise BadInput(f"the table names a file that does not exist: {source}", f"{table}:{line}", "mend the path")
        named = ["" if value is None else str(value) for value in (group, origin)]
        items.append(Item(root / source, source, str(label), named[0], part, named[1]))
    doubled = len(items) - len({item.source for item in items})
    if doubled:
        raise BadInput(f"{doubled} paths stand in the table twice", table, "keep one row for each file")
    if not items:
        raise BadInput("the table has no rows", table, "give one row for each image")
    listed = Items.of(items).by_source()
    check_classes(listed, table)
    return Listing(listed, 0)


def read_table(table: Path) -> pa.Table:
    """Read a CSV, TSV or parquet file; the cells of text files stay text. Raises BadInput if that fails."""
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
