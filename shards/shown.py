"""Which images a set's report shows: a few of each class, and the largest clusters of near-duplicates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.format import DatasetInfo, read_rows
from shards.pictures import COLUMNS, Picture, pictures

SIDE = 128
"""Longer side of a thumbnail in pixels."""

THUMBNAIL_BYTES = 6_000
"""JPEG bytes aimed at for each thumbnail: with MOST_EXAMPLES the page stays under 2 MB."""

EXAMPLES_PER_CLASS = 8
MOST_EXAMPLES = 128
MOST_CLUSTERS = 4
MOST_IN_CLUSTER = 6

NEAR = "near:"
"""How the group of a cluster of near-duplicates begins whose patient or slide is unknown."""


def pictures_of(folder: Path, info: DatasetInfo, ids: list[list[int]]) -> list[list[Picture]]:
    """Return the pictures of several lists of samples, whose rows are read together."""
    rows = np.unique([place for own in ids for place in own]).astype(np.int64)
    table = read_rows(folder, rows, COLUMNS)
    return [pictures(folder, info, np.searchsorted(rows, own).tolist(), SIDE, THUMBNAIL_BYTES, table) for own in ids]


def examples(info: DatasetInfo, table: pa.Table) -> list[list[int]]:
    """Choose a few images of each class, at equal distances through the set; return their ids."""
    labels = table.column("label").to_numpy()
    each = max(1, min(EXAMPLES_PER_CLASS, MOST_EXAMPLES // max(1, len(info.classes))))
    found = []
    for label in range(min(len(info.classes), MOST_EXAMPLES)):
        members = np.flatnonzero(labels == label)
        places = np.unique(np.linspace(0, len(members) - 1, each).astype(np.int64)) if len(members) else members
        found.append(members[places].tolist())
    return found


def clusters(table: pa.Table) -> list[list[int]]:
    """Return the ids of the first images of the largest clusters of near-duplicates."""
    column = table.column("group")
    near = table.filter(pc.starts_with(column, NEAR)).group_by("group").aggregate([([], "count_all")]).to_pylist()
    largest = sorted(near, key=lambda row: (-row["count_all"], row["group"]))[:MOST_CLUSTERS]
    members = (pc.equal(column, row["group"]).to_numpy(zero_copy_only=False) for row in largest)
    return [np.flatnonzero(own)[:MOST_IN_CLUSTER].tolist() for own in members]
