"""Images that look like nothing else in the set: foreign pictures, artefacts, rare appearances.

An image's distance to its k-th nearest neighbour (Ramaswamy, Rastogi and Shim, "Efficient algorithms for mining
outliers from large data sets", SIGMOD 2000), in robustly standardised features: colours, texture and coarse layout
(`shards.appearance`), or any table of network features that is handed down. Several stains in one set are several
crowds, and harmless: what counts is the distance to the nearest crowd of k images, not to the middle of the set.

The price: foreign pictures that are alike and make up more than 2 % of the set are a crowd too, and are not found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from shards.errors import BadInput

LEAST = 20
"""Images below which nothing can be called unusual."""

THRESHOLD = 2.0
"""Distance to the k-th neighbour, as a multiple of the set's 75th percentile, from which an image is an outlier."""

FAR = 2.8
"""The same, from which leaving it out is suggested."""

NEIGHBOURS = (8, 100)
"""The k-th neighbour is looked at: k is 2 % of the images, within these bounds."""

PATH_COLUMNS = ("path", "file", "filename", "source")
"""Names of the column of paths in a table of network features, in order of preference."""

_REFERENCE = 20_000  # images that neighbours are sought among, at most: evenly spaced in the list
_LAYOUT, _NETWORK = 16, 64  # principal components that are kept
_CLIP = 12.0  # robust z-scores beyond this say no more


@dataclass(frozen=True)
class Outliers:
    """How unusual each image is.

    Attributes:
        score: float64 [images]: distance to the k-th neighbour, as a multiple of the set's 75th percentile.
        flagged: score >= THRESHOLD, bool [images].
    """

    score: NDArray[np.float64]
    flagged: NDArray[np.bool_]


def by_appearance(looks: NDArray[np.void]) -> Outliers:
    """Return how unusual images look, from records of `shards.appearance.LOOK_DTYPE` [images]."""
    count = len(looks)
    fine = looks["features"]
    colour = np.sqrt(looks["histogram"].astype(np.float64))
    sharpness = np.log(fine["sharpness"].astype(np.float64) + 1)[:, None]
    texture = np.hstack([looks["texture"].astype(np.float64), sharpness / 2])
    layout = looks["layout"].reshape(count, -1).astype(np.float64)
    return _outliers(
        [_standardised(colour, 0.05), _standardised(texture, 0.1), _standardised(_components(layout, _LAYOUT), 20.0)]
    )


def by_features(values: NDArray[np.float64]) -> Outliers:
    """Return how unusual images are in features of a network, float64 [images, features]."""
    # Rectified features are 0 for most images, so that their median deviation says nothing.
    least = np.maximum(values.std(axis=0) / 2, 1e-9) if len(values) else 1.0
    return _outliers([_components(_standardised(values, least), _NETWORK)])


def _outliers(blocks: list[NDArray[np.float64]]) -> Outliers:
    """Judge by blocks of features [images, d], each of which weighs the same."""
    count = len(blocks[0])
    if count < LEAST:
        return Outliers(np.zeros(count), np.zeros(count, bool))
    points = np.hstack([block / np.sqrt(block.shape[1]) for block in blocks])
    distance = _kth_distance(points)
    usual = float(np.quantile(distance, 0.75))
    score = distance / max(usual, 1e-9)
    return Outliers(score, score >= THRESHOLD)


def _kth_distance(points: NDArray[np.float64]) -> NDArray[np.float64]:
    from sklearn.neighbors import NearestNeighbors

    count = len(points)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _REFERENCE)).astype(np.int64))
    nearest = int(np.clip(0.02 * len(chosen), *NEIGHBOURS))
    # One more, as an image of the reference is its own nearest neighbour.
    search = NearestNeighbors(n_neighbors=min(nearest + 1, len(chosen)), algorithm="brute").fit(points[chosen])
    return np.asarray(search.kneighbors(points)[0][:, -1], np.float64)


def _standardised(values: NDArray[np.float64], least: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return robust z-scores of each column; a spread below `least` (in its own unit) counts as that."""
    middle = np.median(values, axis=0)
    spread = np.maximum(1.4826 * np.median(np.abs(values - middle), axis=0), least)
    return np.clip((values - middle) / spread, -_CLIP, _CLIP)


def _components(values: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Return the first `most` principal components."""
    centred = values - np.median(values, axis=0)
    covariance = centred.T @ centred / max(len(values), 1)
    _, vectors = np.linalg.eigh(covariance)
    return np.asarray(centred @ vectors[:, ::-1][:, :most], np.float64)


def read_features(path: Path, sources: Sequence[str]) -> NDArray[np.float64]:
    """Return the features of a network for the images `sources`, float64 [images, features], from a parquet table.

    The table has a column of paths (as `scan` lists them) and either numeric columns or columns of lists of one
    length.

    Raises:
        BadInput: the table cannot be read, has no such columns, names a path twice, leaves an image out, or holds
            what is not finite.
    """
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"the table of features cannot be read: {error}", path, "give a parquet file") from error
    name = next((name for name in PATH_COLUMNS if name in table.column_names), None)
    if name is None:
        raise BadInput("no column for image paths", path, f"name one of its columns {' or '.join(PATH_COLUMNS)}")
    place = {str(value): row for row, value in enumerate(table.column(name).to_pylist())}
    if len(place) < table.num_rows:
        raise BadInput("a path stands in the table of features twice", path, "keep one row for each image")
    missing = [source for source in sources if source not in place]
    if missing:
        raise BadInput(f"{len(missing)} images have no features, first {missing[0]}", path, "give every image a row")
    columns = [_matrix(table.column(other), other, path) for other in table.column_names if other != name]
    values = np.hstack([column for column in columns if column is not None] or [np.zeros((table.num_rows, 0))])
    if not values.shape[1]:
        raise BadInput("the table of features has no numeric column", path, "give one column or more of numbers")
    if not np.isfinite(values).all():
        raise BadInput("the table of features holds values that are not finite", path, "leave them out or mend them")
    return np.asarray(values[[place[source] for source in sources]], np.float64)


def _matrix(column: pa.ChunkedArray, name: str, path: Path) -> NDArray[np.float64] | None:
    """Return a column of numbers or of lists of numbers as [rows, features]; None if it is neither."""
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        return np.asarray(column.to_numpy(), np.float64)[:, None]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        try:
            return np.array(column.to_pylist(), np.float64)
        except (TypeError, ValueError):
            raise BadInput(f"the lists of column {name!r} differ in length", path, "give lists of one length") from None
    return None
