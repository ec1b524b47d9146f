"""What a command shows while it works, on stderr: bars on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shards.errors import visible

T = TypeVar("T")

LOG_SECONDS = 15.0
"""In a log file (no terminal) a progress line is written at most this often."""

_console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """Write one line for the person who started the command (stderr: stdout is for results)."""
    _console.print(visible(line), markup=False)


def warn(line: str) -> None:
    """Write one line that should be noticed."""
    _console.print(f"warning: {visible(line)}", markup=False, style="yellow")


def is_terminal() -> bool:
    """Whether a person is watching."""
    return _console.is_terminal and sys.stderr.isatty()


def terminal() -> Console:
    """Return the console on stderr, for a table that is drawn again and again."""
    return _console


def progress(items: Iterable[T], what: str, total: int, done: int = 0) -> Iterator[T]:
    """Yield `items`, showing how many of `total` are done, the rate per second and the time that remains.

    `done` of them were done before.
    """
    return (_bar if is_terminal() else _lines)(items, what, total, done)


def _bar(items: Iterable[T], what: str, total: int, before: int) -> Iterator[T]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console, transient=False) as bar:
        task = bar.add_task(what, total=total, completed=before, rate="")
        begin = time.monotonic()
        for done, item in enumerate(items, 1):
            yield item
            rate = done / max(time.monotonic() - begin, 1e-9)
            bar.update(task, completed=before + done, rate=f"{rate:,.1f}/s")


def _lines(items: Iterable[T], what: str, total: int, before: int) -> Iterator[T]:
    begin = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= LOG_SECONDS:
            rate = done / (now - begin)
            left = max(total - before - done, 0) / max(rate, 1e-9)
            say(f"{what}: {before + done:,}/{total:,}, {rate:,.1f}/s, {left:,.0f} s left")
            last = now
    say(f"{what}: {done:,} in {time.monotonic() - begin:.1f} s")
