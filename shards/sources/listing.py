"""Very many images listed: columns in place of an object for each, which is made when it is looked at.

An `Item` with its path takes some 700 bytes, its row here 120: a listing of 10^6 images fits any login node.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import BadInput
from shards.mapped import let_go, mapped
from shards.parallel import chunked
from shards.sources.items import Item

_WHOLE = re.compile("-?[0-9]{1,18}")

_BLOCK = 1024
"""Items made at a time."""

_NAMES = pa.dictionary(pa.int32(), pa.string())
_TYPES = {"path": pa.large_binary(), "label": _NAMES, "part": _NAMES, "origin": _NAMES}
"""Of the columns that are neither numbers nor texts of their own in each row."""


class Items(Sequence[Item]):
    """Items in a fixed order, in columns; a slice shares them.

    Items of a subclass (`shards.examine.Packed`) have its fields as further columns; all items are of one class.
    """

    def __init__(self, batch: pa.RecordBatch, kind: type[Item], window: range) -> None:
        self._batch, self._kind, self._window = batch, kind, window

    @classmethod
    def of(cls, items: Iterable[Item], kind: type[Item] | None = None) -> Items:
        """Return the items as columns; they are taken one after the other, so a generator never has them all.

        `kind` is the class whose fields are kept; None: that of the first item.
        """
        if isinstance(items, cls):
            return items
        tables = []
        for block in chunked(items, _BLOCK):
            kind = kind or type(block[0])
            columns = {name: [getattr(item, name) for item in block] for name in _schema(kind).names}
            tables.append(pa.table({**columns, "path": list(map(os.fsencode, columns["path"]))}, _schema(kind)))
        return cls._joined(tables, kind or Item)

    @classmethod
    def _joined(cls, tables: list[pa.Table], kind: type[Item]) -> Items:
        table = pa.concat_tables([_schema(kind).empty_table(), *tables]).unify_dictionaries().combine_chunks()
        batches = table.to_batches()
        return cls._whole(batches[0] if batches else pa.RecordBatch.from_pylist([], _schema(kind)), kind)

    @classmethod
    def _whole(cls, batch: pa.RecordBatch, kind: type[Item]) -> Items:
        return cls(batch, kind, range(batch.num_rows))

    def __len__(self) -> int:
        return len(self._window)

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> Items: ...
    def __getitem__(self, place: int | slice) -> Item | Items:
        if isinstance(place, slice):
            return Items(self._batch, self._kind, self._window[place])
        return next(self.at(np.array([range(len(self))[place]])))

    def __iter__(self) -> Iterator[Item]:
        for start in range(0, len(self), _BLOCK):
            yield from _made(self[start : start + _BLOCK]._rows(), self._kind)

    def at(self, rows: np.ndarray) -> Iterator[Item]:
        """Yield the items at these positions, int64 [n]."""
        for start in range(0, len(rows), _BLOCK):
            yield from _made(self._taken(rows[start : start + _BLOCK]), self._kind)

    def taken(self, rows: np.ndarray) -> Items:
        """Return a copy of the items at these positions, int64 [n], that holds nothing of the others."""
        return Items._whole(self._taken(rows), self._kind)

    def texts_at(self, name: str, rows: np.ndarray) -> list[str]:
        """Return the texts of a column at these positions, int64 [n]."""
        texts: list[str] = self._batch.column(name).take(pa.array(self._places(rows))).to_pylist()
        let_go()
        return texts

    @property
    def names(self) -> list[str]:
        """The columns, as the fields of the items are called."""
        return list(self._batch.schema.names)

    def column(self, name: str) -> pa.Array:
        """Return a column; `path` as bytes."""
        return self._rows([name]).column(0)

    def each(self, name: str) -> Iterator[str]:
        """Yield the texts of a column one after the other."""
        for start in range(0, len(self), _BLOCK):
            texts = self[start : start + _BLOCK].column(name).to_pylist()
            let_go()
            yield from texts

    def distinct(self, name: str) -> list[str]:
        """Return the different texts of a column, sorted."""
        return sorted(pc.unique(self.column(name)).to_pylist())

    def texts(self, name: str) -> list[str]:
        """Return a column's texts as a list in which those that are alike are one object."""
        column = self.column(name)
        column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        known = column.dictionary.to_pylist()
        return [known[code] for code in column.indices.to_pylist()]

    def replaced(self, **columns: Iterable[str]) -> Items:
        """Return items that differ in some columns, a text for each item; the other columns are shared."""
        batch = self._rows()
        for name, texts in columns.items():
            kind = batch.schema.field(name).type
            blocks = [pa.array(some, kind) for some in chunked(texts, _BLOCK)] or [pa.array([], kind)]
            column = pa.concat_arrays(pa.chunked_array(blocks).unify_dictionaries().chunks)
            batch = batch.set_column(batch.schema.get_field_index(name), batch.schema.field(name), column)
        return Items._whole(batch, self._kind)

    def filed(self, folder: Path) -> Items:
        """Return the items kept in a file without a name in `folder`; in memory where none can be made.

        Raises:
            EnvironmentFault: the disk is full or fails.
        """

        def write(file: BinaryIO) -> None:
            with pa.ipc.new_stream(file, self._batch.schema) as writer:
                writer.write_batch(self._rows())

        with suppress(PermissionError):
            return _received(mapped(write, folder), self._kind)
        return self

    def by_source(self) -> Items:
        """Return the items sorted by their names."""
        names = self.column("source")
        if pc.all(pc.less_equal(names[:-1], names[1:])).as_py() is not False:
            return self
        return self.taken(pc.array_sort_indices(self.column("source")).to_numpy())

    def _rows(self, names: list[str] | None = None) -> pa.RecordBatch:
        """Return some columns of the window, shared with the others where its items lie side by side."""
        batch = self._batch.select(names) if names else self._batch
        if self._window.step == 1:
            return batch.slice(self._window.start, len(self))
        return batch.take(pa.array(self._places(np.arange(len(self)))))

    def _taken(self, rows: np.ndarray) -> pa.RecordBatch:
        places, columns = pa.array(self._places(rows)), []
        for column in self._batch.columns:  # one after the other: of a mapped file no more than one lies in memory
            columns.append(column.take(places))
            let_go()
        return pa.RecordBatch.from_arrays(columns, schema=self._batch.schema)

    def _places(self, rows: np.ndarray) -> np.ndarray:
        return self._window.start + self._window.step * np.asarray(rows, np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        """Send a window's own rows to another process, not those beside it."""
        batch, sink = self.taken(np.arange(len(self)))._batch, pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return _received, (sink.getvalue().to_pybytes(), self._kind)


def _received(data: bytes | np.ndarray, kind: type[Item]) -> Items:
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        return Items._whole(reader.read_next_batch(), kind)


def _schema(kind: type[Item]) -> pa.Schema:
    """Return the columns of a class of items: its fields, which are texts and whole numbers."""
    plain = {"int": pa.int64(), "str": pa.large_string()}
    return pa.schema([(leaf.name, _TYPES.get(leaf.name) or plain[str(leaf.type)]) for leaf in fields(kind)])


def _made(batch: pa.RecordBatch, kind: type[Item]) -> Iterator[Item]:
    columns = dict(zip(batch.schema.names, (column.to_pylist() for column in batch.columns), strict=True))
    let_go()
    columns["path"] = [Path(os.fsdecode(name)) for name in columns["path"]]
    return (kind(*row) for row in zip(*columns.values(), strict=True))


@dataclass(frozen=True)
class Listing:
    """The images of one source in a fixed order, and how many other files were passed over.

    `encoder` says what wrote the files where they were unpacked from an archive.
    """

    items: Items
    ignored: int
    encoder: str = ""


def class_names(items: Items) -> list[str]:
    """Return the classes in the order of their indexes: by name, but whole numbers by size, so that 2 precedes 10."""
    names = items.distinct("label")
    if all(_WHOLE.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return names


def check_classes(items: Items, where: Path) -> None:
    """Raise BadInput if the items have fewer than two classes."""
    classes = items.distinct("label")
    if len(classes) < 2:
        raise BadInput(f"only one class ({classes[0]!r})", where, "classification needs at least two")
