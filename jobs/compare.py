"""`bloodcell compare`: runs side by side on the same samples, from their tables of predictions alone."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import BadInput, nearest

if TYPE_CHECKING:
    from bloodcell.evaluation.predictions import Predictions
    from shards.format import DatasetInfo

EPILOG = """\
A RUN is a run folder, or the folder of an ensemble, of pooled folds, of test-time augmentation (RUN/tta8) or of
another set (RUN/external/SET). The samples must be the same, by key; which set they were packed in may differ.

DIR holds comparison.json, compare.html (a contact sheet of the images on which the runs disagree, with pictures where
the set is at hand), disagreements.csv and disagreements.parquet.

--json: {samples, groups, classes, runs: {name: {split, data, metrics, per_class}}, pairs: [{first, second,
difference: {overall, per_class}, mcnemar: {only_first, only_second, p, p_samples, p_groups, grouped}, agreement,
p_holm}], disagreements, all_wrong, interval, notes, output}. A difference is first less second: {value, low, high}."""

SCHEMA = "bloodcell/comparison/1"


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of compare."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="two or more finished runs or results")
    parser.add_argument("--split", default="test", help="train, val or test (test)")
    parser.add_argument("--data", type=Path, metavar="SET", help="where the set lies now, for pictures")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (compare-… beside the first run)")
    parser.epilog = EPILOG


@dataclass(frozen=True, eq=False)
class Side:
    """One of the results that are compared: its predictions and, where it is known, the folder of its set."""

    predictions: Predictions
    data: Path | None


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Compare; return the result and the lines for people."""
    from bloodcell.evaluation.combined import default_folder, short_names
    from bloodcell.evaluation.compare import compare, disagreements, lines, read_alike
    from bloodcell.evaluation.source import digest
    from bloodcell.report.compare import write_comparison
    from shards.atomic import write_json

    if len(parsed.runs) < 2:
        raise BadInput("one run cannot be compared", parsed.runs[0], "give two or more")
    names = short_names(parsed.runs)
    sides = [read_side(path, parsed.split) for path in parsed.runs]
    aligned, notes = read_alike([side.predictions for side in sides], names)
    result = {**compare(aligned, names), "notes": notes}
    differing = disagreements(aligned, names)
    tables = [digest(path / "predictions" / f"{parsed.split}.parquet") for path in parsed.runs]
    folder = parsed.output or default_folder("compare", parsed.runs, tables)
    _make(folder)
    data = parsed.data or sides[0].data
    info = _info(data, aligned[0], parsed.data is not None)
    write_json(folder / "comparison.json", {"schema": SCHEMA, **result})
    _write_tables(folder, differing)
    page = write_comparison(folder / "compare.html", result, differing, notes, data if info else None, info)
    return {**result, "output": str(folder)}, [*notes, *lines(result), f"comparison: {page}"]


def read_side(path: Path, split: str) -> Side:
    """Return the predictions of a run, a combined result or another folder with tables.

    Raises:
        BadInput: nothing of the kind, unfinished, no such split, or a table that is damaged or of other weights.
    """
    from bloodcell.evaluation.combined import read_combined, read_table

    combined = read_combined(path)
    if combined is not None:
        return Side(read_table(path, split), Path(combined.data))
    if (path / "config.json").exists():
        return _read_run(path, split)
    if (path / "predictions").is_dir():
        return Side(_read_noted(path, split), None)
    raise BadInput("neither a run nor a result", path, "give the folder of a run, an ensemble or pooled folds")


def _read_run(path: Path, split: str) -> Side:
    from bloodcell.evaluation.source import Source, digest, read_sourced
    from bloodcell.runfolder import RunFolder

    run = RunFolder(path)
    stored, config = run.stored(), run.config()
    weights = path / "model.safetensors"
    if not weights.exists():
        raise BadInput("the run has no model.safetensors", path, "finish the training first (start it again)")
    _check_split(path, split)
    own = split if config.data.fold < 0 else f"fold{config.data.fold}/{split}"
    table = path / "predictions" / f"{split}.parquet"
    found = read_sourced(table, Source(digest(weights), str(stored["fingerprint"]), own))
    if isinstance(found, str):
        fix = f"`bloodcell evaluate {path} --split {split}` makes it anew"
        raise BadInput(f"the table of predictions cannot be used: {found}", table, fix)
    return Side(found, Path(config.data.set))


def _check_split(path: Path, split: str) -> None:
    """Raise BadInput if there is no table of a split, naming those there are."""
    known = sorted(table.stem for table in (path / "predictions").glob("*.parquet"))
    if split in known:
        return
    fix = f"make it with `bloodcell evaluate {path} --split {split}`"
    if split not in ("train", "val", "test"):
        fix = nearest(split, known) or f"there are: {', '.join(known) or 'none'}"
    raise BadInput(f"no predictions for split {split!r}", path, fix)


def _read_noted(path: Path, split: str) -> Predictions:
    """Return a table of RUN/tta8 or RUN/external/SET, checked against the note beside it."""
    from bloodcell.evaluation.combined import read_table
    from bloodcell.evaluation.source import digest

    predictions = read_table(path, split)
    table = path / "predictions" / f"{split}.parquet"
    try:
        noted = json.loads(table.with_suffix(".json").read_text(encoding="utf-8"))["table"]
    except (OSError, ValueError, KeyError, TypeError):
        noted = None
    if noted != digest(table):
        raise BadInput("the table is not the one that was written", table, "evaluate the run again")
    return predictions


def _info(data: Path | None, first: Predictions, named: bool) -> DatasetInfo | None:
    """Return dataset.json of the set if it is at hand and the one that was predicted."""
    from shards.format import read_dataset

    if data is None or not (named or (data / "dataset.json").exists()):
        return None
    info = read_dataset(data)
    if info.fingerprint == first.fingerprint:
        return info
    if named:
        raise BadInput("the set is not the one that the first run predicted", data, "name that set, or leave it out")
    return None


def _make(folder: Path) -> None:
    from shards.atomic import disk_errors

    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / "comparison.json").exists())
    ):
        raise BadInput("something else lies where the comparison shall go", folder, "choose another --output")
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise BadInput(f"nothing can be written: {error.strerror}", folder, "choose another --output") from error


def _write_tables(folder: Path, differing: Any) -> None:
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    from shards.atomic import open_atomic

    with open_atomic(folder / "disagreements.parquet") as file:
        pq.write_table(differing, file, compression="zstd")
    with open_atomic(folder / "disagreements.csv") as file:
        pc.write_csv(differing, file)
