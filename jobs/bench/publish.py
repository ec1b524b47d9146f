"""`python -m jobs.bench.publish`: docs/results/README.md and the README's tables, made from the files in docs/results.

A table of the README stands between `<!-- bench FILE PATTERN -->` and `<!-- end -->`: the rows of that result whose
names the regular expression finds (all, without one).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.bench.result import number, place
from shards.atomic import open_atomic
from shards.errors import BadInput

RESULTS, README = Path("docs/results"), Path("README.md")
MARKED = re.compile(r"(<!-- bench (\S+) ?(.*?) ?-->\n).*?(<!-- end -->)", re.DOTALL)
HEAD = """# Measured

Made from the files beside it by `make results`. `bloodcell bench WHAT --save FILE` writes such a file, and `bloodcell
bench compare A.json B.json` sets two side by side. A value is the median of the repeats, with the lowest and highest
behind it; a ratio is to the named figure of the same run.
"""


def main(words: list[str]) -> int:
    """Write the pages, or with --check say which of them are not what would be written; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.publish", description="make the pages of results")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a page is not up to date")
    check = parser.parse_args(words).check
    stale = []
    for path, text in {RESULTS / "README.md": index(RESULTS), README: filled(README, RESULTS)}.items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(str(path))
        if not check:
            with open_atomic(path, "w") as file:
                file.write(text)
    if check and stale:
        print(f"not made from {RESULTS}: {', '.join(stale)}: run make results", file=sys.stderr)
    return int(check and bool(stale))


def index(folder: Path) -> str:
    """Return the page of all results of a folder: command, day, machine, versions and every row of each."""
    parts = [HEAD]
    for path in sorted(folder.glob("*.json")):
        result = read(path)
        where, packages = place(result)
        told = f"`{result['command']}`  \n{where}  \n{packages}"
        parts.append(f"## {path.stem}\n\n{told}\n\n{table(result['rows'])}")
    return "\n".join(parts)


def filled(page: Path, folder: Path) -> str:
    """Return a page with its marked tables made anew.

    Raises:
        BadInput: a marked result is not there, or has no row of such a name.
    """

    def made(found: re.Match[str]) -> str:
        begin, name, pattern, end = found.groups()
        rows = [row for row in read(folder / name)["rows"] if re.search(pattern, row["name"])]
        if not rows:
            raise BadInput(f"no row's name has {pattern!r}", folder / name, f"mend the mark in {page.name}")
        return f"{begin}\n{table(rows)}\n{end}"

    return MARKED.sub(made, page.read_text(encoding="utf-8"))


def read(path: Path) -> dict[str, Any]:
    """Return a result as its file has it; raises BadInput."""
    try:
        result = dict(json.loads(path.read_text(encoding="utf-8")))
        return {"date": None, **result, "rows": [*result["rows"]], "machine": dict(result["machine"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"no result of a benchmark: {error}", path, "make it with bloodcell bench --save") from error


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows of results as a Markdown table; rows of one figure beside several baselines become one."""
    merged: dict[tuple[str, str], tuple[dict[str, Any], list[str]]] = {}
    for row in rows:
        _, ratios = merged.setdefault((row["name"], row["unit"]), (row, []))
        if row["ratio"] is not None and row["baseline"] != row["name"]:
            ratios.append(f"{number(row['ratio'])}× {row['baseline']}")
    lines = ["| figure | value | unit | beside |", "| --- | ---: | --- | --- |"]
    for (name, unit), (row, ratios) in merged.items():
        shown = "%" if unit == "share" else unit
        lines.append(f"| {_cell(name)} | {_value(row)} | {shown} | {_cell('; '.join(ratios))} |")
    return "\n".join(lines) + "\n"


def _value(row: dict[str, Any]) -> str:
    value, low, high = row["value"], row["low"], row["high"]
    if value is None:
        return ""
    show = SHOWN.get(row["unit"], number)
    spread = "" if low is None or high is None or low == high else f" ({show(low)}–{show(high)})"
    return show(value) + spread


SHOWN: dict[str, Callable[[float], str]] = {
    "share": lambda value: f"{100 * value:.2f}",
    "%": lambda value: f"{value:.2f}",
    "points": lambda value: f"{round(value, 2) + 0.0:.2f}",  # no -0.00
}
"""How figures of a unit are written: hundredths of a percent count where three digits would round them away."""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
