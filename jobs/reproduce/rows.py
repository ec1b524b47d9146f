"""The rows of the table as data: which recipe, on a set of how many classes, and what was published."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.errors import BadInput, nearest

FILE = Path(__file__).with_name("rows.toml")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A published system.

    Attributes:
        name: of the row.
        recipe: what trains it; empty for a row that averages others.
        classes: of the set that it is for.
        published: what its authors reported, in words; empty if they reported no figure.
        note: what a reader should know.
        members: rows that it averages.
    """

    name: str
    recipe: str = ""
    classes: int
    published: str = ""
    note: str = ""
    members: tuple[str, ...] = ()


def read_rows() -> dict[str, Row]:
    """Return all rows by name, in the order of the table."""
    tables = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {
        name: Row(name=name, **{**table, "members": tuple(table.get("members", ()))}) for name, table in tables.items()
    }


def choose(names: Sequence[str]) -> list[Row]:
    """Return the rows of these names (all without names) and the members of those that average, in the table's order.

    Raises:
        BadInput: no such row; the nearest is named.
    """
    rows = read_rows()
    for name in names:
        if name not in rows:
            fix = nearest(name, list(rows)) or f"there are {', '.join(rows)}"
            if not name[:1].isalpha():
                fix = f"config flags need =, as in --data.size={name}"
            raise BadInput(f"no row {name!r}", "command line", fix)
    wanted = set(names or rows)
    wanted |= {member for name in wanted for member in rows[name].members}
    return [row for row in rows.values() if row.name in wanted]
