"""`bloodcell reproduce`: train the published systems on given sets, and write one table of published and reproduced."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bloodcell.config import Flat, override, parse_flags
from jobs.reproduce.rows import Row, choose, read_rows
from jobs.reproduce.runs import Task, carry_out, give_up
from shards.console import say
from shards.errors import BadInput

TAKES_CONFIG = True
SCHEMA = "bloodcell/reproduction/1"
EPILOG = """\
A row belongs to a set by its number of classes: 4 (stages of ALL), 8 (cells of blood), 2 (ALL or healthy); rows without
a set are left out, and the table says so. Config fields change all rows: --data.size=96 --train.epochs=3.

A row whose recipe asks for pretrained weights that are not on this disk (see `bloodcell weights list`) is trained with
--model.weights none, and the table says so.

DIR holds ROW/seed0 (a run folder, or with --folds its folds and their pool), table.md, table.json, table.html. The same
command runs what is missing; more rows and more --seeds may be asked for later.

--json: {out, rows: [{row, published, test: {accuracy: {mean, sd, low, high}, macro_recall}, validation, parameters,
images_per_s, wall_seconds, kwh, weights, seeds, failed, note}], tables}; exit 1 if a row failed."""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of reproduce."""
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"rows (all): {', '.join(read_rows())}")
    parser.add_argument("--data", type=Path, nargs="+", default=[], metavar="SET", help="shard sets")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="where everything goes")
    parser.add_argument("--quick", action="store_true", help="tiny drawn sets, one epoch: shows that every row runs")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="trainings of each row, seeds 0 to N-1 (1)")
    parser.add_argument("--folds", action="store_true", help="train every fold of the sets and pool them")
    parser.add_argument("--workers", type=int, default=1, metavar="W", help="rows at once, sharing the cores (1)")
    parser.add_argument(
        "--watts", type=float, metavar="W", help="power while training, for the energy (10 a core, 350 a GPU)"
    )
    parser.add_argument("--collect", action="store_true", help="train nothing: averages, pools, table of what is there")
    parser.epilog = EPILOG


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Train what is missing and write the table; return it and the lines for people."""
    from jobs.sweep.runner import alone

    rows, flags, sets, missing = _prepared(parsed)
    _make(parsed.out)
    with alone(parsed.out):
        rows, sets, tasks = _settled(parsed, rows, flags, sets, missing)
        if parsed.collect:
            give_up(tasks)
        carry_out(tasks, parsed.workers)
        return _tell(parsed, flags, rows, sets, missing, tasks)


def planned(parsed: argparse.Namespace, write: bool) -> list[Task]:
    """Return the trainings and averages of the reproduction, those that are done as well; `write`: DIR is made."""
    from jobs.sweep.runner import alone

    rows, flags, sets, missing = _prepared(parsed)
    if not write:
        rows = [row for row in rows if row.name not in missing]
        return _tasks(parsed, flags, rows, sets, dict.fromkeys((row.name for row in rows), ""))
    _make(parsed.out)
    with alone(parsed.out):
        return _settled(parsed, rows, flags, sets, missing)[2]


def _prepared(parsed: argparse.Namespace) -> tuple[list[Row], Flat, dict[int, Path], list[str]]:
    """Return rows, config fields, sets by their number of classes, and the rows that no set is for."""
    rows, flags = choose(parsed.rows), parse_flags(parsed.flags)
    _check(parsed, flags)
    sets = {} if parsed.quick else _sets(parsed.data, parsed.folds)
    missing = [] if parsed.quick else [row.name for row in rows if row.classes not in sets]
    _check_missing(parsed, missing, rows)
    return rows, flags, sets, missing


def _settled(
    parsed: argparse.Namespace, rows: list[Row], flags: Flat, sets: dict[int, Path], missing: list[str]
) -> tuple[list[Row], dict[int, Path], list[Task]]:
    from jobs.reproduce.quick import draw_sets

    rows = [row for row in rows if row.name not in missing]
    if parsed.quick:
        sets = draw_sets(parsed.out / "sets", {row.classes for row in rows})
    weights = _settle(parsed, flags, rows, sets)
    return rows, sets, _tasks(parsed, flags, rows, sets, weights)


def _check(parsed: argparse.Namespace, flags: Flat) -> None:
    for name, value in (("--seeds", parsed.seeds), ("--workers", parsed.workers)):
        if value < 1:
            raise BadInput(f"{name} {value} will not do", "command line", "give 1 or more")
    if parsed.watts is not None and parsed.watts <= 0:
        raise BadInput(f"--watts {parsed.watts:g} will not do", "command line", "give a number above 0")
    if parsed.quick and (parsed.data or parsed.folds):
        what = "--data" if parsed.data else "--folds"
        raise BadInput(f"quick mode draws its own sets, {what} is for the others", "command line", f"leave {what} out")
    if not parsed.quick and not parsed.data:
        raise BadInput("no shard set is named", "command line", "add --data SET…, or --quick for drawn ones")
    for key, option in (("train.seed", "--seeds"), ("data.set", "--data"), ("data.fold", "--folds")):
        if key in flags:
            raise BadInput(f"--{key} is set by reproduce", "command line", f"give {option}")


def _sets(paths: Sequence[Path], folds: bool) -> dict[int, Path]:
    """Return {number of classes: set}; raises BadInput for two of one number, or folds where none are asked for."""
    from shards.format import read_dataset

    sets: dict[int, Path] = {}
    for path in paths:
        info = read_dataset(path)
        count = len(info.classes)
        if count in sets:
            raise BadInput(f"two sets of {count} classes", f"{sets[count]}, {path}", "reproduce them one after another")
        has = any("/" in split for split in info.splits)
        if folds != has:
            fix = "leave --folds out" if folds else "add --folds"
            raise BadInput("the set has no folds" if folds else "the set has folds", path, fix)
        sets[count] = path
    return sets


def _check_missing(parsed: argparse.Namespace, missing: list[str], rows: list[Row]) -> None:
    named = [row for row in rows if row.name in missing and row.name in parsed.rows]
    if named:
        what = f"{named[0].name} is for a set of {named[0].classes} classes, and none is given"
        raise BadInput(what, "--data", "name such a set, or leave the row out")
    if len(missing) == len(rows):
        counts = sorted({row.classes for row in rows})
        raise BadInput("no row is for these sets", "--data", f"rows are for sets of {counts} classes")


def _make(folder: Path) -> None:
    from shards.atomic import disk_errors

    if (
        folder.is_dir()
        and any(folder.iterdir())
        and not any((folder / n).exists() for n in ("reproduce.json", ".lock"))
    ):
        raise BadInput("something else lies where the reproduction shall go", folder, "choose another --out")
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise BadInput(f"nothing can be written: {error.strerror}", folder, "choose another --out") from error


def _settle(parsed: argparse.Namespace, flags: Flat, rows: list[Row], sets: dict[int, Path]) -> dict[str, str]:
    """Write reproduce.json; return {row: initial weights in place of the recipe's} as first decided.

    Raises:
        BadInput: DIR was begun with other sets or flags; the difference is in the message.
    """
    from shards.atomic import write_json
    from shards.format import read_dataset

    file = parsed.out / "reproduce.json"
    wanted: dict[str, Any] = {"quick": parsed.quick, "folds": parsed.folds, "flags": flags}
    prints = {str(count): read_dataset(path).fingerprint for count, path in sets.items()}
    stored: dict[str, Any] = {}
    if file.exists():
        try:
            stored = dict(json.loads(file.read_text(encoding="utf-8")))
            changed = {key: (stored[key], value) for key, value in wanted.items() if stored[key] != value}
            for count, value in prints.items():
                if stored["sets"].get(count, value) != value:
                    changed[f"set of {count} classes"] = (stored["sets"][count][:8], value[:8])
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise BadInput(f"it cannot be read: {error}", file, "restore it or choose another --out") from error
        if changed:
            said = "; ".join(f"{key}: {old!r} there, {new!r} here" for key, (old, new) in changed.items())
            raise BadInput(f"it was begun otherwise ({said})", parsed.out, "choose another --out, or drop the change")
    weights = dict(stored.get("weights", {}))  # decided once: a run goes on with the weights it began with
    for row in rows:
        if row.recipe and row.name not in weights:
            weights[row.name] = _weights(row, flags)
    write_json(file, {"schema": SCHEMA, **wanted, "sets": {**stored.get("sets", {}), **prints}, "weights": weights})
    return weights


def _weights(row: Row, flags: Flat) -> str:
    """Return "none" if the recipe asks for pretrained weights that are not on this disk, "" if it can have its way."""
    from bloodcell.models import sources, zoo
    from jobs.train import find_recipe

    config = override(find_recipe(row.recipe)[0], flags)
    if config.model.weights != sources.PRETRAINED:
        return ""
    if sources.locate(zoo.spec(config.model.name)) is not None:
        return ""
    say(f"{row.name}: no pretrained weights of {config.model.name} on this disk: trained with --model.weights none")
    return sources.NONE


def _tasks(
    parsed: argparse.Namespace, flags: Flat, rows: list[Row], sets: dict[int, Path], weights: dict[str, str]
) -> list[Task]:
    from jobs.reproduce.quick import quick_flags
    from jobs.train import find_recipe
    from shards.format import read_dataset
    from shards.parallel import available_cores

    tasks: list[Task] = []
    for row in sorted(rows, key=lambda row: bool(row.members)):
        data = sets[row.classes]
        folds = len({s.split("/")[0] for s in read_dataset(data).splits if "/" in s}) if parsed.folds else 0
        for seed in range(parsed.seeds):
            task = Task(row, seed, parsed.out / row.name / f"seed{seed}", data, folds, small=parsed.quick)
            task.members = [parsed.out / member / f"seed{seed}" for member in row.members]
            if row.recipe:
                task.flags = quick_flags(override(find_recipe(row.recipe)[0], flags)) if parsed.quick else {}
                task.flags |= {"model.weights": weights[row.name]} if weights[row.name] else {}
                if parsed.workers > 1:
                    task.flags["engine.threads"] = max(1, available_cores() // parsed.workers)
                task.flags |= flags
            tasks.append(task)
    return tasks


def _tell(
    parsed: argparse.Namespace,
    flags: Flat,
    rows: list[Row],
    sets: dict[int, Path],
    missing: list[str],
    tasks: list[Task],
) -> tuple[dict[str, Any], list[str]]:
    from jobs.reproduce.table import cells, collect, headings, write_tables
    from shards.format import read_dataset

    table = [collect(row, [task for task in tasks if task.row == row], tasks, parsed.watts) for row in rows]
    described = {}
    for count, path in sorted(sets.items()):
        info = read_dataset(path)
        images = sum(sum(part.values()) for part in info.samples.values())
        described[str(count)] = f"{path.name}, {images:,} images ({', '.join(info.classes)})"
    about = {
        "quick": parsed.quick,
        "folds": parsed.folds,
        "seeds": parsed.seeds,
        "flags": flags,
        "watts": parsed.watts,
        "sets": described,
        "missing": missing,
    }
    paths = write_tables(parsed.out, table, about)
    shown = (0, 2, 3, 6, 7, 8)
    lines = ["  ".join(line[i] for i in shown) for line in (headings(), *map(cells, table))]
    failed = [row for row in table if row["failed"]]
    lines += [f"{row['row']} failed: {row['failed']}" for row in failed]
    lines += [f"table: {path}" for path in paths]
    result = {"out": str(parsed.out), "rows": table, "tables": list(map(str, paths)), "exit": 1 if failed else 0}
    return result, lines
