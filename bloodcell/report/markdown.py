"""Markdown from facts: text that cannot be taken for markup, and tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

from shards.document import shorten

MOST = 300
"""Characters of a name or value that are shown."""


def text(value: object) -> str:
    """Return plain text as Markdown that shows it as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&$!])", r"\\\1", shorten(" ".join(str(value).split()), MOST))


def code(value: object) -> str:
    """Return a value in a code span that it cannot leave, nor the cell of a table that it stands in."""
    inner = " ".join(str(value).split()).replace("|", r"\|")
    fence = "`" * (max((len(run) for run in re.findall("`+", inner)), default=0) + 1)
    pad = " " if "`" in inner else ""
    return f"{fence}{pad}{inner}{pad}{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose cells are Markdown already; an empty one gives no lines.

    A blank line stands after it.
    """
    if not rows:
        return []
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]
