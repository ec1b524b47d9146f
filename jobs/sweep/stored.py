"""What a sweep keeps of its start, DIR/sweep.json: whoever goes on with it, or joins it, does the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bloodcell.config import Config, decode, encode, leaves
from jobs.sweep.settings import Settings
from shards.atomic import disk_errors, write_json
from shards.errors import BadInput

SCHEMA = "bloodcell/sweep/1"


def check_empty(folder: Path) -> None:
    """Refuse a folder with something else in it; raises BadInput."""
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / n).exists() for n in ("sweep.json", ".lock")):
        raise BadInput("something else lies where the sweep shall go", folder, "choose another --out")


def make(folder: Path) -> None:
    """Make the folder of a sweep; raises BadInput or EnvironmentFault where that is impossible."""
    try:
        with disk_errors(folder):
            (folder / "trials").mkdir(parents=True, exist_ok=True)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise BadInput(f"nothing can be written: {error.strerror}", folder, "choose another --out") from error


def settle(folder: Path, base: Config, settings: Settings, data: Path, fingerprint: str, threads: int) -> int:
    """Write sweep.json; return the threads of a trial, as an earlier start of the sweep had them.

    Raises:
        BadInput: DIR belongs to another sweep; the difference is in the message.
    """
    file = folder / "sweep.json"
    wanted = {"schema": SCHEMA, "fingerprint": fingerprint, "sweep": settings.plain(), "base": encode(base)}
    if file.exists():
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            threads = int(stored.pop("threads"))
            _check_same(stored, wanted, settings, folder)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise BadInput(f"sweep.json cannot be read: {error}", file, "restore it or choose another --out") from error
    write_json(file, {**wanted, "threads": threads, "data": str(data)})
    return threads


def _check_same(stored: dict[str, Any], wanted: dict[str, Any], settings: Settings, folder: Path) -> None:
    if stored["fingerprint"] != wanted["fingerprint"]:
        raise BadInput("the sweep was started on another set", folder, "choose another --out or that set")
    there, here = dict(_flat(stored["sweep"])), dict(_flat(wanted["sweep"]))
    grows = settings.method != "hyperband" and here["sweep.trials"] >= there["sweep.trials"]
    old, new = (dict(leaves(decode(value["base"], folder))) for value in (stored, wanted))
    changed = {
        key: (a.get(key), b.get(key))
        for a, b in ((there, here), (old, new))
        for key in {**a, **b}
        if a.get(key) != b.get(key) and not (key == "sweep.trials" and grows)
    }
    if changed:
        said = "; ".join(f"{key}: {a!r} there, {b!r} here" for key, (a, b) in changed.items())
        raise BadInput(f"another sweep was started here ({said})", folder, "choose another --out, or drop the change")


def _flat(sweep: dict[str, Any]) -> list[tuple[str, Any]]:
    space = [(f"sweep.space {key}", value) for key, value in sweep["space"].items()]
    return [(f"sweep.{key}", value) for key, value in sweep.items() if key != "space"] + space
