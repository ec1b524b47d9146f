"""`bloodcell bench compare A.json B.json`: two results side by side, row by row: B's figures as ratios to A's."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from jobs.bench.result import Result, Row
from shards.console import warn
from shards.errors import BadInput


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bloodcell bench compare`."""
    parser.add_argument("first", type=Path, metavar="A.json", help="a result that --json printed")
    parser.add_argument("second", type=Path, metavar="B.json", help="another one, compared with the first")


def run_arguments(parsed: argparse.Namespace) -> Result:
    """Compare the rows that both have, by name and unit; what only one has is said.

    Raises:
        BadInput: a file is no result, or the two have no row in common.
    """
    first, second = read(parsed.first), read(parsed.second)
    for what in ("machine", "versions"):
        if first[what] != second[what]:
            keys = [key for key in {**first[what], **second[what]} if first[what].get(key) != second[what].get(key)]
            warn(f"the results differ in {what}: {', '.join(sorted(keys))}")
    before = {(row.name, row.unit): row for row in first["rows"]}
    rows, alone = [], []
    for row in second["rows"]:
        old = before.pop((row.name, row.unit), None)
        if old is None:
            alone.append(row.name)
            continue
        ratio = row.value / old.value if old.value else None
        rows.append(Row(row.name, row.value, row.unit, row.low, row.high, "the first", ratio))
    if not rows:
        raise BadInput("the results have no row in common", f"{parsed.first}, {parsed.second}", "name two of one kind")
    for name in [*alone, *(name for name, _ in before)]:
        warn(f"only one result has {name!r}")
    return Result(
        f"bloodcell bench compare {parsed.first} {parsed.second}", rows, second["machine"], second["versions"]
    )


def read(path: Path) -> dict[str, Any]:
    """Return {machine, versions, rows} of a result's file; raises BadInput."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = Row.__dataclass_fields__
        rows = [Row(**{name: row.get(name) for name in names}) for row in content["rows"]]
        return {"machine": dict(content["machine"]), "versions": dict(content["versions"]), "rows": rows}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        fix = "name a file that `bloodcell bench --json` printed"
        raise BadInput(f"no result of a benchmark: {error}", path, fix) from error
