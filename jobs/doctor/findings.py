"""What the doctor found: one finding for each thing looked at, and the page of them."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["green", "red", "not checked"]
COLOURS = {"green": "32", "red": "1;31", "not checked": "2"}
WIDTH = 118


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: its name, how it stands, what was seen, and what to do about it if it is red."""

    name: str
    state: State
    what: str
    fix: str = ""


def good(name: str, what: str) -> Finding:
    """Return a finding that needs no action."""
    return Finding(name, "green", what)


def bad(name: str, what: str, fix: str) -> Finding:
    """Return a finding that does."""
    return Finding(name, "red", what, fix)


def unknown(name: str, why: str) -> Finding:
    """Return the finding of something that was not looked at."""
    return Finding(name, "not checked", why)


def listed(items: Iterable[str], most: int = 5) -> str:
    """Return items in one line, the first of them by name."""
    known = list(items)
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(known[:most]) + more


def page(title: str, findings: Sequence[Finding]) -> list[str]:
    """Return the page for people: a line for each finding, what to do under each red one, the sum at the end."""
    width = max(len(finding.name) for finding in findings)
    lines = [title]
    for finding in findings:
        state = _coloured(f"{finding.state.upper() if finding.state == 'red' else finding.state:<11}", finding.state)
        head, *rest = textwrap.wrap(finding.what, WIDTH - 13 - width) or [""]
        lines.append(f"{state}  {finding.name:<{width}}  {head}")
        told = [*rest, *textwrap.wrap(f"do: {finding.fix}" if finding.fix else "", WIDTH - 13 - width)]
        lines += [f"{'':<{15 + width}}{line}" for line in told]
    red = [finding.name for finding in findings if finding.state == "red"]
    skipped = sum(finding.state == "not checked" for finding in findings)
    more = f", {skipped} not checked" if skipped else ""
    verdict = f"{len(red)} of {len(findings) - skipped} red: {listed(red, 20)}" if red else "all green"
    return [*lines, verdict + more]


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return {checks: [{name, state, what, fix}], red, exit}."""
    red = sum(finding.state == "red" for finding in findings)
    return {"checks": [asdict(finding) for finding in findings], "red": red, "exit": 1 if red else 0}


def _coloured(text: str, state: State) -> str:
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{COLOURS[state]}m{text}\x1b[0m"
