"""The common result of every `bloodcell bench` verb: rows with spread and ratio, the machine, the versions; a table and JSON."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SCHEMA = "bloodcell/bench/1"

PACKAGES = (
    "bloodcell",
    "numpy",
    "torch",
    "torchvision",
    "nvidia-dali-cuda130",
    "deepspeed",
    "webdataset",
    "timm",
    "pillow",
)


@dataclass(frozen=True)
class Row:
    """One measured figure.

    `value` is the median of the repeats, `low` and `high` the smallest and the largest, all in `unit`.
    `baseline` is the name of the row that this one is compared with, `ratio` = this value / that one, repeat by repeat
    (median): whether more is better follows from the unit. Absent figures are None.
    """

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    baseline: str | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Result:
    """What one benchmark found, where, and the command that repeats it."""

    command: str
    rows: list[Row]
    machine: dict[str, Any] = field(default_factory=lambda: machine())
    versions: dict[str, str] = field(default_factory=lambda: versions())

    def as_json(self) -> dict[str, Any]:
        """Return {schema, machine, versions, command, rows}, ready for json.dumps."""
        return {
            "schema": SCHEMA,
            "machine": self.machine,
            "versions": self.versions,
            "command": self.command,
            "rows": [asdict(row) for row in self.rows],
        }


def measured(
    name: str, values: Sequence[float], unit: str, baseline: str | None = None, against: Sequence[float] | None = None
) -> Row:
    """Return the row of repeated measurements.

    Args:
        name: what was measured.
        values: one figure a repeat, in `unit`.
        unit: such as `images/s` or `MiB`.
        baseline: the name of the row to compare with.
        against: that row's figures; with as many repeats as here, they are compared pair by pair.
    """
    ratio = None
    if against:
        paired = len(against) == len(values)
        pairs = zip(values, against, strict=True) if paired else [(median(values), median(against))]
        ratio = median([ours / theirs for ours, theirs in pairs if theirs] or [float("inf")])
    return Row(name, median(values), unit, min(values), max(values), baseline, ratio)


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return float(statistics.median(values))


def interleaved(cases: dict[str, Callable[[], float]], repeats: int, warmups: int = 0) -> dict[str, list[float]]:
    """Run the cases in turn (A B C A B C ...), so that a busy moment of the machine hits all of them alike.

    Args:
        cases: name -> a function that does the work once and returns its figure.
        repeats: rounds that count.
        warmups: rounds before them that do not (the first code to run in a fresh process runs slower).

    Returns:
        name -> one figure a round.
    """
    figures: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(warmups + repeats):
        for name, case in cases.items():
            figure = case()
            if turn >= warmups:
                figures[name].append(figure)
    return figures


def machine() -> dict[str, Any]:
    """Return {cpu, cores, memory_gib, system}: the processor's name, the cores this process may use, all memory."""
    return {"cpu": _cpu(), "cores": cores(), "memory_gib": _memory_gib(), "system": platform.platform()}


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed PACKAGES, without importing them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def show(result: Result, console: Console | None = None) -> None:
    """Print the table of `result` for people: on stderr unless another console is given."""
    console = console or Console(stderr=True, highlight=False)
    table = Table(title=result.command, title_justify="left", caption=_place(result), caption_justify="left")
    for heading, side in (
        ("", "left"),
        ("value", "right"),
        ("unit", "left"),
        ("low - high", "right"),
        ("ratio", "left"),
    ):
        table.add_column(heading, justify="right" if side == "right" else "left")
    for row in result.rows:
        spread = "" if row.low is None or row.high is None else f"{number(row.low)} - {number(row.high)}"
        ratio = "" if row.ratio is None else f"{number(row.ratio)} x {row.baseline}"
        table.add_row(row.name, number(row.value), row.unit, spread, ratio)
    console.print(table)


def number(value: float) -> str:
    """Return a figure with three significant digits, or all digits of its whole part."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _place(result: Result) -> str:
    where = result.machine
    packages = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return f"{where.get('cpu')}, {where.get('cores')} cores, {where.get('memory_gib')} GiB; {packages}"
