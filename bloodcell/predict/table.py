"""The table of answers: a row for each image, also for those without an answer; parquet, CSV or JSON lines.

Columns: source, prediction, confidence, uncertain, plausible (classes with | between them), seen (train, val or test
if the run's own set holds these very bytes there), sha256, width, height, reason, and p_CLASS for each class.
JSON lines hold {"probabilities": {class: p}} and a list `plausible` in their place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from bloodcell.predict.classifier import Answer
from shards.atomic import open_atomic
from shards.errors import BadInput

FORMATS = (".parquet", ".csv", ".jsonl")
PREFIX = "p_"
BETWEEN = "|"


def schema(classes: Sequence[str]) -> pa.Schema:
    """Return the columns of the table."""
    fields = [
        ("source", pa.string()),
        ("prediction", pa.string()),
        ("confidence", pa.float64()),
        ("uncertain", pa.bool_()),
        ("plausible", pa.string()),
        ("seen", pa.string()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("reason", pa.string()),
        *((f"{PREFIX}{name}", pa.float64()) for name in classes),
    ]
    return pa.schema(fields)


def rows(sources: Sequence[str], answers: Sequence[Answer], seen: Sequence[str], classes: Sequence[str]) -> pa.Table:
    """Return the rows of some images; what is not known is null."""
    records = []
    for source, answer, part in zip(sources, answers, seen, strict=True):
        known = not answer.reason
        record: dict[str, Any] = {
            "source": source,
            "prediction": answer.label if known else None,
            "confidence": answer.confidence if known else None,
            "uncertain": answer.uncertain,
            "plausible": None if answer.plausible is None else BETWEEN.join(answer.plausible),
            "seen": part or None,
            "sha256": answer.sha256 or None,
            "width": answer.width if known else None,
            "height": answer.height if known else None,
            "reason": answer.reason or None,
        }
        record |= {f"{PREFIX}{name}": answer.probabilities.get(name) for name in classes}
        records.append(record)
    return pa.Table.from_pylist(records, schema(classes))


def check_output(path: Path, overwrite: bool) -> None:
    """Raise BadInput unless the table can be written there."""
    if path.suffix.lower() not in FORMATS:
        raise BadInput(f"no format {path.suffix!r}", path, f"end the name in {', '.join(FORMATS)}")
    if path.is_dir():
        raise BadInput("there is a folder of this name", path, "choose another file")
    if path.exists() and not overwrite:
        raise BadInput("the file exists", path, "choose another one, or add --overwrite")


def join(parts: Iterable[Path], output: Path, classes: Sequence[str]) -> None:
    """Write the rows of all parts to `output`, whole or not at all, with one part in memory.

    Raises:
        EnvironmentFault: the disk is full or fails.
    """
    kind: Callable[[Any, Iterator[pa.Table], Sequence[str]], None] = {
        ".parquet": _parquet,
        ".csv": _csv,
        ".jsonl": _jsonl,
    }[output.suffix.lower()]
    with open_atomic(output) as file:
        kind(file, (pq.read_table(part, partitioning=None) for part in parts), classes)


def _parquet(file: Any, tables: Iterator[pa.Table], classes: Sequence[str]) -> None:
    with pq.ParquetWriter(file, schema(classes), compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)


def _csv(file: Any, tables: Iterator[pa.Table], classes: Sequence[str]) -> None:
    with pyarrow.csv.CSVWriter(file, schema(classes)) as writer:
        for table in tables:
            writer.write_table(table)


def _jsonl(file: Any, tables: Iterator[pa.Table], classes: Sequence[str]) -> None:
    for table in tables:
        for row in table.to_pylist():
            probabilities = {name: row.pop(f"{PREFIX}{name}") for name in classes}
            row["plausible"] = None if row["plausible"] is None else row["plausible"].split(BETWEEN)
            row["probabilities"] = None if row["reason"] else probabilities
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
