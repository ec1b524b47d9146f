"""The common result of every `bloodcell bench` verb: figures with spread and ratio, the machine, a table and JSON."""

from __future__ import annotations

import io
import os
import platform
import resource
import shlex
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from shards.console import say
from shards.parallel import available_cores

TABLE_WIDTH = 130
"""Columns of a table that no terminal limits."""

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
    """What one benchmark found, where and when (the day, UTC), and the command that repeats it."""

    command: str
    rows: list[Row]
    machine: dict[str, Any] = field(default_factory=lambda: machine())
    versions: dict[str, str] = field(default_factory=lambda: versions())
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())

    def as_json(self) -> dict[str, Any]:
        """Return {machine, versions, date, command, rows}, ready for json.dumps; paths of this machine are left out."""
        return {
            "machine": self.machine,
            "versions": self.versions,
            "date": self.date,
            "command": plain(self.command),
            "rows": [asdict(row) for row in self.rows],
        }


def plain(command: str) -> str:
    """Return a command line with the names of files and folders in place of their absolute paths."""
    words = [str(Path(word).name) if word.startswith("/") else word for word in shlex.split(command)]
    return shlex.join(words) if words != shlex.split(command) else command


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


def cpu_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def machine() -> dict[str, Any]:
    """Return {cpu, cores, memory_gib, system}: the processor's name, the cores this process may use, all memory."""
    return {"cpu": _cpu(), "cores": available_cores(), "memory_gib": _memory_gib(), "system": platform.platform()}


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


def lines(result: Result, width: int | None = None) -> list[str]:
    """Return the table of `result` as plain lines of at most `width` characters (default: as wide as the terminal)."""
    text = io.StringIO()
    room = width or (shutil.get_terminal_size().columns if sys.stdout.isatty() else TABLE_WIDTH)
    console = Console(file=text, width=room, force_terminal=False, highlight=False)
    console.print(_table(result))
    return [result.command, *(line.rstrip() for line in text.getvalue().splitlines()), *place(result.as_json())]


def show(result: Result) -> None:
    """Print the table of `result` for people, on stderr: stdout is for results."""
    for line in lines(result):
        say(line)


def _table(result: Result) -> Table:
    table = Table("figure", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("value", "low", "high"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("ratio")
    for row in result.rows:
        low, high = ("" if figure is None else number(figure) for figure in (row.low, row.high))
        ratio = "" if row.ratio is None else f"{number(row.ratio)} x {row.baseline}"
        table.add_row(row.name, number(row.value), low, high, row.unit, ratio)
    return table


def number(value: float) -> str:
    """Return a figure with three significant digits, or all digits of its whole part."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def place(result: dict[str, Any]) -> list[str]:
    """Return where and when a result (as its JSON says) was measured, and with which versions: two lines."""
    where = result["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    memory = f", {where['memory_gib']} GiB" if where.get("memory_gib") else ""
    date = f"; {result['date']}" if result.get("date") else ""
    return [f"{where.get('cpu')}, {where.get('cores')} cores{memory}{date}", packages]
