"""Which images a person decided to keep or to drop: a CSV that `scan` suggests and `pack --decisions` follows."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Collection, Iterable
from pathlib import Path

from shards.atomic import open_atomic
from shards.errors import BadInput, nearest
from shards.sources.table import delimiter_of

COLUMNS = ("path", "decision", "reason")
KEEP, DROP = "keep", "drop"


def write_decisions(path: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """Write rows of (path below the folder, keep or drop, reason)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    with open_atomic(path) as file:
        file.write(text.getvalue().encode("utf-8"))


def read_decisions(path: Path, known: Collection[str]) -> dict[str, str]:
    """Return path -> reason of the images to leave out; `known` are the paths of all images.

    Rows that say keep change nothing: what cannot be decoded is left out all the same. A path may stand in several
    rows if all of them decide alike; the reasons are joined.

    Raises:
        BadInput: the file cannot be read, lacks a column, names an unknown path, decides both ways about one, or
            holds another word than keep or drop.
    """
    decided: dict[str, tuple[str, list[str]]] = {}
    for place, row in _rows(path):
        source, word, reason = row["path"], row["decision"].strip().lower(), row["reason"].strip()
        if word not in (KEEP, DROP):
            raise BadInput(f"the decision {row['decision']!r} is neither keep nor drop", place, "write keep or drop")
        if source not in known:
            fix = nearest(source, list(known)[:10_000]) or "give paths as they stand below the folder of images"
            raise BadInput(f"a decision about an image that is not there: {source}", place, fix)
        before, reasons = decided.setdefault(source, (word, []))
        if before != word:
            raise BadInput(f"{source} is to be kept and to be dropped", place, "keep one of its rows")
        if reason and reason not in reasons:
            reasons.append(reason)
    return {source: "; ".join(reasons) for source, (word, reasons) in decided.items() if word == DROP}


def digest(path: Path) -> str:
    """Return the sha256 of the file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _rows(path: Path) -> Iterable[tuple[str, dict[str, str]]]:
    """Yield (file:line, row) of a CSV with at least COLUMNS; the reason may be missing."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True, delimiter=delimiter_of(path))
            missing = [name for name in COLUMNS[:2] if name not in (reader.fieldnames or ())]
            if missing:
                raise BadInput(f"no column {missing[0]!r}", path, f"its first line is {','.join(COLUMNS)}")
            for row in reader:
                if row.get("path") or row.get("decision"):  # a line left empty by hand says nothing
                    yield f"{path}:{reader.line_num}", {name: row.get(name) or "" for name in COLUMNS}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> BadInput:
    fix = f"give a CSV in UTF-8 with the columns {', '.join(COLUMNS)}"
    return BadInput(f"the decisions cannot be read: {error}", path, fix)
