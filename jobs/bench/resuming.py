"""Measurements that may be interrupted: each finished part is kept in a file, and the next start does what is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jobs.bench.result import Row
from shards.atomic import write_json
from shards.console import say, warn
from shards.errors import BadInput


class NotHereError(Exception):
    """A part needs what this machine lacks; the text says what. It is left out, and not counted as measured."""


@dataclass
class Outcome:
    """What became of the parts that have no rows: left out for want of something, or failed; "part: reason"."""

    left_out: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def resumed(
    parts: dict[str, Callable[[], list[Row]]], file: Path, about: dict[str, Any], outcome: Outcome | None = None
) -> list[Row]:
    """Return the rows of all parts, in their order; those that the file has are not measured again.

    Args:
        parts: name -> what measures it.
        file: where rows are kept, JSON; it is written after each part.
        about: what must be the same for rows to belong together, such as the device.
        outcome: takes note of parts that fail or cannot be measured here, and the others go on; without it the first
            such part ends everything. Neither kind is kept: the next start tries again, and begins with what was not
            begun before, so that a part that takes longer than a machine is lent does not keep the others from it.

    Raises:
        BadInput: the file is of something else, or no such file.
    """
    kept, begun = _read(file, about)
    for name in sorted(parts, key=lambda name: outcome is not None and name in begun):
        if name in kept:
            say(f"{name}: measured before")
            continue
        say(f"{name} ...")
        if outcome is not None:
            begun.append(name)
            _write(file, about, kept, begun)
        try:
            kept[name] = parts[name]()
        except Exception as error:
            if outcome is None:
                raise
            _note(outcome, name, error)
            continue
        _write(file, about, kept, begun)
    return [row for name in parts for row in kept.get(name, [])]


def _note(outcome: Outcome, name: str, error: Exception) -> None:
    if isinstance(error, NotHereError):
        outcome.left_out.append(f"{name}: {error}")
        say(f"{name}: left out, {error}")
        return
    said = next(filter(None, str(error).splitlines()), "no reason given").strip()[:300]
    outcome.failed.append(f"{name}: {type(error).__name__}: {said}")
    warn(f"{name} failed: {type(error).__name__}: {said}")


def _write(file: Path, about: dict[str, Any], kept: dict[str, list[Row]], begun: list[str]) -> None:
    rows = {part: [asdict(row) for row in found] for part, found in kept.items()}
    left = [name for name in dict.fromkeys(begun) if name not in kept]
    write_json(file, {"about": about, "parts": rows, "begun": left})


def _read(file: Path, about: dict[str, Any]) -> tuple[dict[str, list[Row]], list[str]]:
    if not file.exists():
        return {}, []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        rows = {name: [Row(**row) for row in found] for name, found in content["parts"].items()}
        begun, same = list(content.get("begun", [])), content["about"] == about
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(f"the kept measurements cannot be read: {error}", file, "remove the file") from error
    if not same:
        raise BadInput(f"the kept measurements are of {content['about']}", file, "name another file with --state")
    return rows, begun
