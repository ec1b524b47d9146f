"""The table of network features that is handed down to `scan --features`.

A parquet file with a row per image: a column `path` (as `scan` lists the images, with slashes; `source`, as
samples.parquet has it, will do) and a column `features`, a fixed-size list of float32, any length: what a network's
last layer before the classifier gives for the image. Rows of other images are passed over; an order is not asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from shards.errors import BadInput

PATH_COLUMNS = ("path", "source", "file", "filename")
"""Names of the column of paths, in order of preference."""

FEATURES = "features"


def write_features(path: Path, sources: Sequence[str], features: NDArray[np.float32]) -> None:
    """Write the table: paths [images] and their features, float32 [images, d]."""
    lists = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel(), pa.float32()), features.shape[1])
    pyarrow.parquet.write_table(pa.table({"path": list(sources), FEATURES: lists}), path, compression="zstd")


def read_features(path: Path, sources: Sequence[str]) -> NDArray[np.float64]:
    """Return the features of the images `sources`, float64 [images, d].

    Raises:
        BadInput: the table cannot be read, has no such columns, names a path twice, leaves an image out, or holds
            lists of several lengths or what is not finite.
    """
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"the table of features cannot be read: {error}", path, "give a parquet file") from error
    name = next((name for name in PATH_COLUMNS if name in table.column_names), None)
    if name is None:
        raise BadInput("no column for image paths", path, f"name one of its columns {' or '.join(PATH_COLUMNS)}")
    if FEATURES not in table.column_names:
        raise BadInput(f"no column {FEATURES!r}", path, "give a column of lists of numbers")
    place = {str(value): row for row, value in enumerate(table.column(name).to_pylist())}
    if len(place) < table.num_rows:
        raise BadInput("a path stands in the table of features twice", path, "keep one row for each image")
    missing = [source for source in sources if source not in place]
    if missing:
        raise BadInput(f"{len(missing)} images have no features, first {missing[0]}", path, "give every image a row")
    values = _matrix(table.column(FEATURES), path)[[place[source] for source in sources]]
    if not np.isfinite(values).all():
        raise BadInput("the table of features holds values that are not finite", path, "leave them out or mend them")
    return values


def _matrix(column: pa.ChunkedArray, path: Path) -> NDArray[np.float64]:
    """Return a column of lists of numbers as [rows, d]."""
    kind, rows = column.type, len(column)
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise BadInput(f"the column {FEATURES!r} holds {kind}", path, "give lists of numbers, fixed_size_list<float>")
    flat = np.concatenate([np.zeros(0), *(chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks)])
    lengths = {len(part) for part in column.slice(0, 1).to_pylist() if part is not None}
    width = next(iter(lengths), 0)
    if not width or len(flat) != rows * width or (not pa.types.is_fixed_size_list(kind) and _uneven(column, width)):
        raise BadInput(f"the lists of column {FEATURES!r} differ in length", path, "give lists of one length")
    return np.asarray(flat, np.float64).reshape(rows, width)


def _uneven(column: pa.ChunkedArray, width: int) -> bool:
    return any((np.diff(chunk.offsets.to_numpy()) != width).any() for chunk in column.chunks)
