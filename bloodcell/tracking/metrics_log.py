"""metrics.jsonl: one flat JSON object a line, appended whole, cut back to the checkpoint when a run is resumed."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from shards.atomic import disk_errors, open_atomic
from shards.console import warn
from shards.errors import BadInput


class MetricsLog:
    """Appends records to `path`; a reader that stops at the last newline never sees half a record.

    What belongs to step N is written before the checkpoint of step N is saved, followed by `sync`: then the records
    up to the checkpoint survive the loss of the node, and those after it are cut away and written again.

    Args:
        path: the file; its folder must exist.
        resume_step: the step of the checkpoint that the run goes on from. Records of later steps are removed.
            None for a run that starts at its beginning: all records of an earlier attempt are removed.
        again: names that begin like this are measured again at that step: its records that hold one are removed too.

    Raises:
        EnvironmentFault: the disk is full or fails.
    """

    def __init__(self, path: Path, resume_step: int | None, again: str | None = None) -> None:
        self.path = path
        self._records = _cut_back(path, resume_step, again)
        with disk_errors(path):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def write(self, record: dict[str, Any]) -> int:
        """Append one record, which must hold an integer `step`; return how many stand before it.

        A value that is not finite is written as null.

        Raises:
            EnvironmentFault: the disk is full or fails; the half that was written is taken back.
        """
        if not _has_step(record):
            raise ValueError(f"a metrics record needs an integer step, got {record.get('step')!r}")
        plain = {name: json_value(value) for name, value in record.items()}
        line = (json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n").encode()
        begin = os.fstat(self._file).st_size
        with disk_errors(self.path):
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            except OSError:
                os.ftruncate(self._file, begin)
                raise
        self._records += 1
        return self._records - 1

    def sync(self) -> None:
        """Make all records durable.

        Raises:
            EnvironmentFault: the disk is full or fails.
        """
        with disk_errors(self.path):
            os.fsync(self._file)

    def close(self) -> None:
        """Make all records durable and close the file; a second call does nothing."""
        if self._file >= 0:
            self.sync()
            os.close(self._file)
            self._file = -1


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl in the order of the file; a last line without its end is left out.

    The file may be that of a run in progress.

    Raises:
        BadInput: the file is missing or a complete line is not a record.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise BadInput("there are no metrics", path, "name the folder of a run that was started") from error
    records = []
    for number, line in enumerate(_complete_lines(content), 1):
        record = _record(line)
        if record is None:
            raise BadInput("this line is not a metrics record", f"{path}:{number}", "remove the line")
        records.append(record)
    return records


def plain_number(value: Any) -> Any:
    """Return a Python number for a NumPy or torch scalar, and everything else as it is."""
    return value.item() if hasattr(value, "item") else value


def json_value(value: Any) -> Any:
    """Return what JSON can hold: a Python number for any scalar, and None for NaN and the infinities."""
    value = plain_number(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cut_back(path: Path, resume_step: int | None, again: str | None) -> int:
    """Rewrite `path` without the torn last line and without records after `resume_step`; return how many remain."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    kept, unreadable = [], 0
    for line in _complete_lines(content):
        record = _record(line)
        unreadable += record is None
        if record is None or resume_step is None or record["step"] > resume_step:
            continue
        if again is None or record["step"] < resume_step or not any(name.startswith(again) for name in record):
            kept.append(line + b"\n")
    if unreadable:
        warn(f"{path}: {unreadable} unreadable lines were dropped")
    remaining = b"".join(kept)
    if remaining != content:
        with open_atomic(path) as file:
            file.write(remaining)
    return len(kept)


def _complete_lines(content: bytes) -> list[bytes]:
    return content.split(b"\n")[:-1]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and _has_step(record) else None


def _has_step(record: dict[str, Any]) -> bool:
    step = record.get("step")
    return isinstance(step, int) and not isinstance(step, bool)
