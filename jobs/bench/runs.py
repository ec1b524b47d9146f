"""The figures of finished runs as one result file: from their own files, with the commands that made them."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.bench.result import Result, Row, measured, plain
from shards.errors import BadInput

METRICS = ("accuracy", "balanced_accuracy", "macro_recall", "macro_f1", "macro_auroc", "nll")
LABEL = "NAME=RUN, a run folder or that of a cross-validation (its pool is taken)"


@dataclass(frozen=True)
class RunsResult(Result):
    """A result that says how each of its runs was made."""

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return {machine, versions, date, command, runs, rows}."""
        known = super().as_json()
        return {**{key: value for key, value in known.items() if key != "rows"}, "runs": self.runs, **known}


@dataclass(frozen=True)
class Named:
    """A run or a cross-validation under the name of its rows."""

    name: str
    folder: Path

    @property
    def parts(self) -> list[Path]:
        """The run folders behind it."""
        folds = sorted(self.folder.glob("fold*/status.json"), key=lambda path: int(path.parent.name[4:]))
        return [path.parent for path in folds] or [self.folder]

    @property
    def result(self) -> Path:
        """The folder with the predictions that are judged."""
        pool = self.folder / "pooled"
        return pool if pool.is_dir() else self.folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bloodcell bench runs`."""
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help=f"{LABEL}; tta8 and the like have no figures here")
    parser.add_argument("--split", default="test", help="val or test (test)")
    parser.add_argument(
        "--pair", nargs=2, action="append", default=[], metavar="NAME", help="two names: first less second, paired"
    )


def run_arguments(args: argparse.Namespace) -> Result:
    """Collect as the flags say; arguments and errors as in `run`."""
    named = []
    for text in args.runs:
        name, equals, folder = text.partition("=")
        if not equals or not name or (not (Path(folder) / "config.json").exists() and not Path(folder).is_dir()):
            raise BadInput(f"{text!r} names no run", "bench runs", f"give {LABEL}")
        named.append(Named(name, Path(folder)))
    return run(named, args.split, [tuple(pair) for pair in args.pair])


def run(named: Sequence[Named], split: str = "test", pairs: Sequence[tuple[str, str]] = ()) -> RunsResult:
    """Collect metrics with their intervals, recall of each class, CPU time of each part, and paired differences.

    Raises:
        BadInput: a run is not finished or not there, or a pair names none of them.
    """
    known = {one.name: one for one in named}
    rows = [row for one in named for row in (*_figures(one, split), *_spent(one))]
    for first, second in pairs:
        for name in (first, second):
            if name not in known:
                raise BadInput(f"{name!r} is none of the runs", "--pair", f"there are {', '.join(known)}")
        rows += _difference(known[first], known[second], split)
    told = {one.name: _about(one, split) for one in named}
    words = [f"{one.name}={one.folder.name}" for one in named]
    words += [word for pair in pairs for word in ("--pair", *pair)]
    command = f"bloodcell bench runs {shlex.join(words)}" + ("" if split == "test" else f" --split {split}")
    place = _read(named[0].parts[0] / "environment.json")
    machine = {"cpu": place.get("processor"), "cores": place.get("cores"), "system": place.get("system")}
    versions = {"python": place.get("python"), **place.get("versions", {})}
    ended = max(run["date"] or "" for run in told.values())
    return RunsResult(command, rows, {**machine, "device": place.get("device")}, versions, ended, told)


def _judged(one: Named, split: str) -> dict[str, Any]:
    splits = _read(one.result / "evaluation.json").get("splits", {})
    if split not in splits:
        raise BadInput(f"no result for split {split!r}", one.result, "finish the run, or choose another --split")
    return dict(splits[split])


def _figures(one: Named, split: str) -> list[Row]:
    judged = _judged(one, split)
    rows = []
    for name in METRICS:
        entry = judged["metrics"].get(name)
        if entry and entry["value"] is not None:
            unit = "nats" if name == "nll" else "share"
            rows.append(Row(f"{one.name}: {name}", entry["value"], unit, entry["low"], entry["high"]))
    for label, entries in judged["per_class"].items():
        entry = entries["recall"]
        if entry["value"] is not None:
            rows.append(Row(f"{one.name}: recall of {label}", entry["value"], "share", entry["low"], entry["high"]))
    return rows


def _spent(one: Named) -> list[Row]:
    """Return the CPU time of the parts that noted theirs: all starts, training and evaluation."""
    status = [_read(part / "status.json") for part in one.parts]
    minutes = [s["cpu_seconds"] * s.get("world", 1) / 60 for s in status if s.get("cpu_seconds")]
    what = f"CPU time of a fold ({len(minutes)} of {len(status)} noted it)" if len(status) > 1 else "CPU time"
    return [measured(f"{one.name}: {what}", minutes, "min")] if minutes else []


def _difference(first: Named, second: Named, split: str) -> list[Row]:
    """Return the paired differences of two results on the same samples: first less second."""
    from bloodcell.evaluation.compare import compare, read_alike
    from jobs.compare import read_side

    names = [first.name, second.name]
    aligned, _ = read_alike([read_side(one.result, split).predictions for one in (first, second)], names)
    found = compare(aligned, names)["pairs"][0]
    rows = []
    overall, classes = found["difference"]["overall"], found["difference"]["per_class"]
    entries = {name: overall.get(name) for name in ("accuracy", "macro_recall", "macro_f1")}
    entries |= {f"recall of {label}": entry.get("recall") for label, entry in classes.items()}
    for name, entry in entries.items():
        if entry and entry["value"] is not None:
            said = f"{first.name} less {second.name}: {name}"
            rows.append(Row(said, entry["value"], "share", entry["low"], entry["high"], second.name))
    return rows


def _about(one: Named, split: str) -> dict[str, Any]:
    """Return what a run was: set, samples, settings, start, and the commands without the places of this machine."""
    judged, first = _judged(one, split), one.parts[0]
    stored, status = _read(first / "config.json"), [_read(part / "status.json") for part in one.parts]
    weights = (_read(first / "environment.json").get("weights") or {}).get("sha256")
    ended = max((s.get("time", 0) for s in status), default=0)
    config = {section: dict(values) for section, values in stored.get("config", {}).items()}
    for name in ("set", "fold"):
        config.get("data", {}).pop(name, None)
    config.get("model", {}).pop("weights", None)
    config.pop("tracking", None)
    return {
        "commands": [plain(s.get("command", "")) for s in status],
        "split": split,
        "folds": len(one.parts) if len(one.parts) > 1 else 0,
        "samples": judged["samples"],
        "groups": judged["groups"],
        "set": stored.get("fingerprint"),
        "initial_weights": weights,
        "date": datetime.fromtimestamp(ended, UTC).date().isoformat() if ended else None,
        "config": config,
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
