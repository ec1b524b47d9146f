"""The table of features: a row for each image with what a network's classifier is given, as one parquet file.

Columns: id int64, key, split, label int32, class, group, source (all string but id and label), features
fixed-size list<float32>; sorted by id. `scan --features` finds its images by `source`. In the table of a plain folder
id counts the images that can be decoded, and there are no keys. The schema's metadata holds, under `bloodcell`, JSON
that says what the features follow from: set, model, weights, size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.atomic import disk_errors, open_atomic
from shards.errors import BadInput, Fault

SCHEMA = "bloodcell/features/1"
METADATA = b"bloodcell"


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features of images and what the images are.

    Attributes:
        rows: all columns but the features, sorted by id.
        features: float32 [images, features].
        about: what they follow from.

    Raises:
        Fault: of different lengths, or a feature is not finite.
    """

    rows: pa.Table
    features: np.ndarray
    about: dict[str, Any]

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or len(self.features) != self.rows.num_rows:
            raise Fault(f"features of shape {self.features.shape} for {self.rows.num_rows:,} images", "features")
        broken = np.flatnonzero(~np.isfinite(self.features).all(axis=1))
        if len(broken):
            name = self.rows.column("source")[int(broken[0])].as_py()
            raise Fault(f"the features of {len(broken):,} images are NaN or infinite, first {name}", "features")

    @property
    def ids(self) -> np.ndarray:
        """Sample ids, int64 [images], ascending."""
        return self.rows.column("id").to_numpy()

    def of(self, ids: np.ndarray) -> np.ndarray:
        """Return the features of some samples, float32 [ids, features]; they must be there."""
        return self.features[np.searchsorted(self.ids, ids)]


def write_feature_table(path: Path, table: FeatureTable) -> None:
    """Write the table, whole or not at all; equal tables give equal bytes.

    Raises:
        EnvironmentFault: the disk is full or fails.
        BadInput: the folder cannot be written.
    """
    lists = pa.FixedSizeListArray.from_arrays(pa.array(table.features.ravel(), pa.float32()), table.features.shape[1])
    about = json.dumps({"schema": SCHEMA, **table.about}, sort_keys=True).encode()
    whole = table.rows.append_column("features", lists).replace_schema_metadata({METADATA: about})
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomic(path) as file:
            pq.write_table(whole, file, compression="zstd", row_group_size=20_000)
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise BadInput(f"the table cannot be written: {error.strerror}", path, "choose another file") from error


def read_feature_table(path: Path) -> FeatureTable:
    """Read a table that write_feature_table() wrote.

    Raises:
        BadInput: there is none, it is damaged, or another kind of file.
    """
    fix = "give a file that `bloodcell features` wrote, or the name of a new one"
    try:
        table = pq.read_table(path, partitioning=None)
        about = json.loads((table.schema.metadata or {})[METADATA])
        if about.pop("schema") != SCHEMA:
            raise ValueError("another format")
        lists = table.column("features").combine_chunks()
        values = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), -1)
        return FeatureTable(table.drop_columns(["features"]), values.astype(np.float32, copy=False), about)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, Fault) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"not a table of features: {said}", path, fix) from error
