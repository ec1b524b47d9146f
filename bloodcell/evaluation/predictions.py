"""The table of predictions: each sample of a split exactly once, with its logits, as one parquet file.

Columns: id int64, key string, label int32, prediction int32, group string, logits list<float32>[classes]; sorted by id.
The schema's metadata holds, under `bloodcell`, JSON with schema, classes, run, data, split and fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.atomic import disk_errors, open_atomic
from shards.errors import BadInput, Fault

SCHEMA = "bloodcell/predictions/1"
METADATA = b"bloodcell"
COLUMNS = ("id", "key", "label", "prediction", "group", "logits")
BLOCK = 1 << 18
"""Rows whose probabilities are computed at a time."""
NAMED = 5
"""Keys that an error message names before it says how many more there are."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says about every sample of a split, sorted by sample id.

    Attributes:
        ids: int64 [samples], strictly ascending.
        keys: the samples' names in the shard set.
        labels: int32 [samples], class index.
        groups: patient, slide or duplicate cluster of each sample; "" where it stands alone.
        logits: float32 [samples, classes], finite.
        classes: class names in index order.
        run: name of the run that predicted.
        data: name of the shard set.
        split: name of the split.
        fingerprint: of the shard set (shards.format.fingerprint).

    Raises:
        Fault: columns of different lengths, ids not ascending, labels outside the classes, logits not finite,
            class names that are not unique.
    """

    ids: np.ndarray
    keys: list[str]
    labels: np.ndarray
    groups: list[str]
    logits: np.ndarray
    classes: list[str]
    run: str
    data: str
    split: str
    fingerprint: str

    def __post_init__(self) -> None:
        rows = len(self.ids)
        if not rows == len(self.keys) == len(self.labels) == len(self.groups) == len(self.logits):
            raise Fault("the columns of the predictions differ in length", self.split)
        if len(set(self.classes)) != len(self.classes):
            raise Fault("two classes have the same name", self.split)
        if not self.classes or self.logits.shape != (rows, len(self.classes)):
            raise Fault(f"{len(self.classes)} classes, but logits of shape {self.logits.shape}", self.split)
        types = [(self.ids, np.int64), (self.labels, np.int32), (self.logits, np.float32)]
        if any(array.dtype != dtype for array, dtype in types):
            raise Fault("ids must be int64, labels int32, logits float32", self.split)
        if np.any(np.diff(self.ids) <= 0):
            raise Fault("the sample ids are not strictly ascending", self.split)
        if np.any((self.labels < 0) | (self.labels >= len(self.classes))):
            raise Fault(f"a label lies outside the {len(self.classes)} classes", self.split)
        broken = np.flatnonzero(~np.isfinite(self.logits).all(axis=1))
        if len(broken):
            names = _some([self.keys[i] for i in broken[:NAMED]], len(broken))
            raise Fault(f"the logits of {len(broken):,} of {rows:,} samples are NaN or infinite", names)

    def probabilities(self, temperature: np.ndarray | float = 1.0) -> np.ndarray:
        """Return the softmax of the logits, float64 [samples, classes].

        Args:
            temperature: what the logits are divided by: one number, or float64 [samples].
        """
        found = np.empty(self.logits.shape)
        for rows, shifted, normaliser in self._blocks(temperature):
            np.exp(shifted - normaliser, out=found[rows])
        return found

    def losses(self, temperature: np.ndarray | float = 1.0) -> np.ndarray:
        """Return each sample's negative log-likelihood in nats, float64 [samples]; never infinite.

        Args:
            temperature: as in `probabilities`.
        """
        found = np.empty(len(self.ids))
        for rows, shifted, normaliser in self._blocks(temperature):
            labels = self.labels[rows, None].astype(np.int64)
            found[rows] = normaliser[:, 0] - np.take_along_axis(shifted, labels, axis=1)[:, 0]
        return found

    def _blocks(self, temperature: np.ndarray | float) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Yield rows, their logits less the maximum, float64 [rows, classes], and the log of the sum of exponentials.

        Block by block, since float64 copies of all logits at once would be most of the memory that judging takes.
        """
        divisor = np.broadcast_to(np.asarray(temperature, dtype=np.float64), len(self.ids))
        for begin in range(0, len(self.ids), BLOCK):
            rows = slice(begin, begin + BLOCK)
            shifted = self.logits[rows].astype(np.float64)
            shifted -= shifted.max(axis=1, keepdims=True)
            shifted /= divisor[rows, None]
            yield rows, shifted, np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    def predicted(self) -> np.ndarray:
        """Return the class with the largest logit, the first of them on ties, int32 [samples]."""
        return self.logits.argmax(axis=1).astype(np.int32)


def assemble(
    ids: np.ndarray,
    logits: np.ndarray,
    expected_ids: np.ndarray,
    *,
    keys: Sequence[str],
    labels: np.ndarray,
    groups: Sequence[str],
    classes: Sequence[str],
    run: str,
    data: str,
    split: str,
    fingerprint: str,
) -> Predictions:
    """Join the logits gathered from all ranks with the samples of the split, proving that each is there exactly once.

    Args:
        ids: integers [gathered], sample ids in any order, padding removed.
        logits: floats [gathered, classes], row i belongs to ids[i].
        expected_ids: integers [samples], the ids of the split in any order, each once.
        keys, labels, groups: of the samples, in the order of `expected_ids`.
        classes, run, data, split, fingerprint: as in Predictions.

    Raises:
        Fault: a sample is missing, there more than once or not of this split, or its logits are NaN or infinite; says
            how many and names the first by key.
    """
    ids, expected = np.asarray(ids, dtype=np.int64), np.asarray(expected_ids, dtype=np.int64)
    if len(ids) != len(logits):
        raise Fault(f"{len(ids):,} sample ids, but logits of {len(logits):,}", split)
    if not len(expected) == len(keys) == len(labels) == len(groups):
        raise Fault("ids, keys, labels and groups of the split differ in length", split)
    place = np.argsort(expected, kind="stable")
    expected = expected[place]
    if np.any(np.diff(expected) == 0):
        raise Fault("the list of expected samples names one twice", split)
    arrival = np.argsort(ids, kind="stable")
    _prove_exactly_once(ids[arrival], expected, [keys[i] for i in place], split)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused below
        ordered = np.asarray(logits)[arrival].astype(np.float32, copy=False)
    return Predictions(
        expected,
        [keys[i] for i in place],
        np.asarray(labels)[place].astype(np.int32),
        [groups[i] for i in place],
        ordered,
        list(classes),
        run,
        data,
        split,
        fingerprint,
    )


def _prove_exactly_once(ids: np.ndarray, expected: np.ndarray, keys: list[str], split: str) -> None:
    """Raise Fault unless the sorted `ids` are the sorted `expected`, whose names are `keys`."""
    if np.array_equal(ids, expected):
        return
    found, counts = np.unique(ids, return_counts=True)
    missing = np.flatnonzero(~np.isin(expected, found, assume_unique=True))
    doubled = np.flatnonzero(np.isin(expected, found[counts > 1], assume_unique=True))
    foreign = found[~np.isin(found, expected, assume_unique=True)]
    parts = []
    for word, positions in (("missing", missing), ("there more than once", doubled)):
        if len(positions):
            parts.append(f"{len(positions):,} {word}: {_some([keys[i] for i in positions[:NAMED]], len(positions))}")
    if len(foreign):
        parts.append(
            f"{len(foreign):,} not of this split: ids {_some([str(i) for i in foreign[:NAMED]], len(foreign))}"
        )
    raise Fault(f"the predictions do not hold each of {len(expected):,} samples exactly once", split, "; ".join(parts))


def _some(names: list[str], total: int) -> str:
    return ", ".join(names) + (f" and {total - len(names):,} more" if total > len(names) else "")


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write the table to `path` (its folder is made if need be), atomically; equal tables give equal bytes.

    Raises:
        EnvironmentFault: the disk is full or fails.
    """
    p = predictions
    about = {"schema": SCHEMA, "classes": p.classes, "run": p.run, "data": p.data, "split": p.split}
    about["fingerprint"] = p.fingerprint
    logits = pa.FixedSizeListArray.from_arrays(pa.array(p.logits.ravel()), len(p.classes))
    columns = [
        pa.array(p.ids),
        pa.array(p.keys, pa.string()),
        pa.array(p.labels),
        pa.array(p.predicted()),
        pa.array(p.groups, pa.string()),
        logits,
    ]
    metadata = {METADATA: json.dumps(about, sort_keys=True, ensure_ascii=False).encode()}
    table = pa.table(dict(zip(COLUMNS, columns, strict=True))).replace_schema_metadata(metadata)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomic(path) as file:
        pq.write_table(table, file, compression="zstd", use_dictionary=["group"], row_group_size=100_000)


def read_predictions(path: Path) -> Predictions:
    """Read a table that `write_predictions` wrote.

    Raises:
        BadInput: there is none, it is damaged, it is another kind of file, or its content contradicts itself.
    """
    redo = "make it again with `bloodcell evaluate RUN`"
    try:
        table = pq.read_table(path, partitioning=None)
    except FileNotFoundError:
        raise BadInput("there is no table of predictions", path, redo) from None
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"the table of predictions cannot be read: {_first_line(error)}", path, redo) from error
    about = _about(table, path)
    if any(table.column(name).null_count for name in COLUMNS):
        raise BadInput("the table of predictions has empty cells", path, redo)
    try:
        predictions = _from_table(table, about)
    except (Fault, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise BadInput(f"the table of predictions contradicts itself: {_first_line(error)}", path, redo) from error
    if not np.array_equal(predictions.predicted(), table.column("prediction").to_numpy()):
        raise BadInput("the predicted classes are not those of the largest logits", path, redo)
    return predictions


def _about(table: pa.Table, path: Path) -> dict[str, Any]:
    """Return what the metadata says; raises BadInput if the table is not ours or of a version that is not known."""
    try:
        about = json.loads((table.schema.metadata or {})[METADATA])
        schema = str(about["schema"])
    except (KeyError, TypeError, ValueError):
        schema = ""
    if not schema.startswith("bloodcell/predictions/") or any(name not in table.column_names for name in COLUMNS):
        raise BadInput("not a table of predictions", path, "give the file RUN/predictions/SPLIT.parquet of a run")
    if schema != SCHEMA:
        raise BadInput(f"the table has format {schema}, this program reads {SCHEMA}", path, "update bloodcell")
    return dict(about)


def _from_table(table: pa.Table, about: dict[str, Any]) -> Predictions:
    classes = [str(name) for name in about["classes"]]
    logits = table.column("logits").combine_chunks()
    if np.any(pc.list_value_length(logits).to_numpy(zero_copy_only=False) != len(classes)):
        raise ValueError(f"a row has not {len(classes)} logits")
    return Predictions(
        table.column("id").to_numpy(),
        table.column("key").to_pylist(),
        table.column("label").to_numpy(),
        table.column("group").to_pylist(),
        logits.flatten().to_numpy(zero_copy_only=False).reshape(-1, len(classes)),
        classes,
        str(about["run"]),
        str(about["data"]),
        str(about["split"]),
        str(about["fingerprint"]),
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
