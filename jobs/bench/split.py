"""How near our split comes to the shares that were asked for, beside scikit-learn's StratifiedGroupKFold."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.bench.result import Result, Row, median
from shards.duplicates import connected
from shards.errors import BadInput
from shards.sources.table import GROUP_COLUMNS, LABEL_COLUMNS, PATH_COLUMNS, read_table
from shards.split import split

LABELS = (*LABEL_COLUMNS[::-1],)  # a packed set has both: `class` is the name
PATHS = (*PATH_COLUMNS, "source")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bloodcell bench split`."""
    about = "CSV, TSV or parquet of path, class, group and sha256, such as samples.parquet of a set; no image is read"
    parser.add_argument("tables", nargs="+", type=Path, metavar="TABLE", help=about)
    parser.add_argument("--folds", type=int, default=5, help="folds, fewer where a class has fewer groups (5)")
    parser.add_argument("--seeds", type=int, default=3, help="splits of each kind, with the seeds 0, 1, ... (3)")


def run_arguments(args: argparse.Namespace) -> Result:
    """Run the benchmark as the flags say; arguments and errors as in `run`."""
    return run(args.tables, args.folds, args.seeds)


def run(tables: Sequence[Path], folds: int = 5, seeds: int = 3) -> Result:
    """Divide the samples of each table into folds, with our split and with scikit-learn's, on the same groups.

    Raises:
        BadInput: a table cannot be read, or a class has one group only; fewer than 2 folds or 1 seed.
    """
    if folds < 2 or seeds < 1:
        raise BadInput(f"{folds} folds and {seeds} seeds", "bench split", "give at least 2 and 1")
    rows: list[Row] = []
    for table in tables:
        rows += _compare(table, folds, seeds)
    named = " ".join(table.name if len(tables) == 1 else f"{table.parent.name}/{table.name}" for table in tables)
    return Result(f"bloodcell bench split {named} --folds {folds} --seeds {seeds}", rows)


@dataclass(frozen=True)
class Rows:
    """The samples of a table: class index, group (never empty), unique name, and the class names."""

    labels: np.ndarray
    groups: list[str]
    keys: list[str]
    classes: list[str]


def read_rows(table: Path) -> Rows:
    """Read a table; rows without a class are passed over, rows of one group or one sha256 share a group.

    Raises:
        BadInput: the table cannot be read or lacks a column for the paths or the classes.
    """
    content = read_table(table)

    def column(names: Sequence[str], needed: bool) -> list[str]:
        found = next((name for name in names if name in content.column_names), None)
        if found is None and needed:
            raise BadInput(f"no column {' or '.join(names)}", table, f"there are {', '.join(content.column_names)}")
        values = content.column(found).to_pylist() if found else [None] * content.num_rows
        return ["" if value is None else str(value) for value in values]

    labels, keys = column(LABELS, True), column(PATHS, True)
    groups, digests = column(GROUP_COLUMNS, False), column(("sha256",), False)
    kept = [i for i, label in enumerate(labels) if label]
    first: dict[tuple[str, str], int] = {}
    pairs = []
    for place, i in enumerate(kept):
        for kind, value in (("group", groups[i].casefold()), ("sha256", digests[i])):
            if value:
                pairs.append((first.setdefault((kind, value), place), place))
    joined = connected(len(kept), np.array(pairs, dtype=np.int64).reshape(-1, 2))
    classes = sorted({labels[i] for i in kept})
    return Rows(
        np.array([classes.index(labels[i]) for i in kept], dtype=np.int64),
        [f"group {number}" for number in joined],
        [keys[i] for i in kept],
        classes,
    )


def ours(rows: Rows, folds: int, seed: int) -> np.ndarray:
    """Return the fold of each sample by our split."""
    shares = {f"fold{k}": 1 / folds for k in range(folds)}
    return split(rows.labels, rows.groups, rows.keys, shares, seed, rows.classes).assignment


def theirs(rows: Rows, folds: int, seed: int) -> np.ndarray:
    """Return the fold of each sample by StratifiedGroupKFold."""
    from sklearn.model_selection import StratifiedGroupKFold

    assignment = np.empty(len(rows.labels), dtype=np.int64)
    kfold = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a class has few members: the folds were chosen for it
        for number, (_, test) in enumerate(kfold.split(rows.labels, rows.labels, rows.groups)):
            assignment[test] = number
    return assignment


def largest_miss(rows: Rows, assignment: np.ndarray, folds: int) -> float:
    """Return the largest difference of a class's share in a fold from 1 / folds, in percentage points."""
    counts = np.zeros((folds, len(rows.classes)))
    np.add.at(counts, (assignment, rows.labels), 1)
    return float(np.abs(counts / counts.sum(axis=0) - 1 / folds).max() * 100)


def _compare(table: Path, folds: int, seeds: int) -> list[Row]:
    rows = read_rows(table)
    least = min(len({rows.groups[i] for i in np.flatnonzero(rows.labels == n)}) for n in range(len(rows.classes)))
    if least < 2:
        raise BadInput("a class has one group only", table, "there is nothing to divide")
    folds = min(folds, least)
    name = f"{table.parent.name}, {folds} folds"
    makers: dict[str, Callable[[Rows, int, int], np.ndarray]] = {"bloodcell": ours, "StratifiedGroupKFold": theirs}
    missed: dict[str, list[float]] = {maker: [] for maker in makers}
    seconds: dict[str, list[float]] = {maker: [] for maker in makers}
    for seed in range(seeds):
        for maker, make in makers.items():
            begin = time.process_time()
            assignment = make(rows, folds, seed)
            seconds[maker].append(time.process_time() - begin)
            missed[maker].append(largest_miss(rows, assignment, folds))
    found = [
        Row(f"{name}: samples", len(rows.labels), "samples"),
        Row(f"{name}: groups", len(set(rows.groups)), "groups"),
    ]
    for maker, values in missed.items():
        found.append(Row(f"{name}: largest miss, {maker}", median(values), "points", min(values), max(values)))
    for maker, values in seconds.items():
        found.append(Row(f"{name}: time, {maker}", median(values), "CPU s", min(values), max(values)))
    return found
