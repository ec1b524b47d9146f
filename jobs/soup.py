"""`bloodcell soup`: average the weights of several runs into a new run, and tell what that gains."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import BadInput

if TYPE_CHECKING:
    from bloodcell.engine.soup import Soup
    from bloodcell.engine.subject import Subject
    from bloodcell.evaluation.predictions import Predictions
    from bloodcell.ranks import Ranks

SPLITS = ("val", "test")

EPILOG = """\
The runs must share architecture, input size, classes, set and fold, and should come from the same pretrained weights:
networks from different random weights do not mix. BatchNorm's statistics are estimated again over the training split.
The result is a run folder like any other, with soup.json.

--json: {run, data, runs, kept, tried: [{run, value, kept}], splits: {val, test: {metrics, gain: {metric: {best,
over_best, over_mean}}, members}}}. The gain is over the best run and over the mean of the runs, with intervals."""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of soup."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="two or more finished runs")
    parser.add_argument("--output", type=Path, metavar="DIR", help="the new run (soup-… beside the first)")
    parser.add_argument(
        "--greedy", action="store_true", help="add a run only where validation does not become worse by it"
    )
    parser.add_argument("--data", type=Path, metavar="SET", help="where the runs' set lies now")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute (auto)")
    parser.epilog = EPILOG


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Average; return the result and the lines for people."""
    if len(parsed.runs) < 2:
        raise BadInput("one run cannot be averaged", parsed.runs[0], "give two or more")
    import torch

    from bloodcell.engine.subject import open_subject
    from bloodcell.evaluation.combined import default_folder, short_names
    from bloodcell.ranks import discover, process_group, set_threads

    ranks = discover()
    names = short_names(parsed.runs)
    subjects = [open_subject(path, parsed.data, None, 1, parsed.device, ranks) for path in parsed.runs]
    _check(subjects, names)
    kind = "greedy-soup" if parsed.greedy else "soup"
    folder = parsed.output or default_folder(kind, parsed.runs, sorted(subject.weights for subject in subjects))
    if folder.exists() and not (folder / "soup.json").exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput("something else lies where the new run shall go", folder, "choose another --output")
    engine = subjects[0].config.engine
    set_threads(engine.threads)
    with process_group(ranks, torch.device(engine.device), engine.timeout):
        return _cook(subjects, names, folder, parsed.greedy, ranks)


def _check(subjects: Sequence[Subject], names: Sequence[str]) -> None:
    """Raise BadInput unless the runs have one architecture and were trained on the same images."""
    first = subjects[0]
    if first.other:
        raise BadInput("the set is not the one the runs were trained on", first.config.data.set, "name that set")
    for subject, name in zip(subjects[1:], names[1:], strict=True):
        mine, theirs = first.run.stored(), subject.run.stored()
        differing = [
            what
            for what, a, b in (
                ("classes", mine["classes"], theirs["classes"]),
                ("architecture", first.config.model.name, subject.config.model.name),
                ("input size", first.config.data.size, subject.config.data.size),
                ("set", mine["fingerprint"], theirs["fingerprint"]),
                ("fold", first.fold, subject.fold),
            )
            if a != b
        ]
        if differing:
            raise BadInput(
                f"the runs differ in {', '.join(differing)}", f"{names[0]}, {name}", "average runs that agree"
            )


def _cook(
    subjects: Sequence[Subject], names: list[str], folder: Path, greedy: bool, ranks: Ranks
) -> tuple[dict[str, Any], list[str]]:
    from bloodcell.engine.agree import on_first_rank
    from bloodcell.engine.evaluate import evaluate_run, export_weights
    from bloodcell.engine.soup import monitored, soup
    from bloodcell.evaluation.predictions import read_predictions
    from bloodcell.runfolder import RunFolder

    first = subjects[0]
    splits = [name for name in SPLITS if _has(first, name)]
    before = {name: [subject.table(name, False)[0] for subject in subjects] for name in splits}
    monitor = first.run.config().train.monitor
    values = [monitored(table, monitor) for table in before["val"]] if greedy else None
    mixed = soup(subjects, values, monitor)
    new = RunFolder(folder)
    config = replace(first.config, data=replace(first.config.data, set=str(Path(first.config.data.set).resolve())))
    stored = first.run.stored()

    def write() -> None:
        from bloodcell.config import encode

        # The settings that a recipe never holds make sure that no training takes this folder for its own.
        about = {"recipe": "soup", "base": encode(config), "config": encode(config)}
        new.create({**{key: stored[key] for key in ("fingerprint", "classes", "leaks") if key in stored}, **about})
        export_weights(new, mixed.model, config, list(stored["classes"]), str(stored["fingerprint"]))
        new.write("status.json", {"state": "done", "outcome": {"code": 0, "what": "averaged"}, "world": ranks.world})

    on_first_rank(ranks, write)
    results = evaluate_run(new, config, first.shards, ranks, splits)
    answer: list[tuple[dict[str, Any], list[str]]] = []

    def tell() -> None:
        after = {name: read_predictions(folder / "predictions" / f"{name}.parquet") for name in splits}
        answer.append(_told(first, names, folder, mixed, before, after, results))

    on_first_rank(ranks, tell)
    return answer[0] if answer else ({}, [])


def _has(subject: Subject, name: str) -> bool:
    split = subject.shards.split_name(name, subject.fold)
    return split in subject.shards.info.splits and subject.shards.info.count(split) > 0


def _told(
    first: Subject,
    names: list[str],
    folder: Path,
    mixed: Soup,
    before: dict[str, list[Predictions | None]],
    after: dict[str, Predictions],
    results: dict[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    from bloodcell.evaluation.ensemble import gain, gain_lines
    from bloodcell.report import write_run_report
    from shards.atomic import write_json

    told = {
        name: {
            "metrics": results[name]["metrics"],
            **gain(after[name], [table for table in tables if table is not None], names),
        }
        for name, tables in before.items()
    }
    kept = [names[place] for place in mixed.kept]
    value = {
        "run": str(folder),
        "data": first.config.data.set,
        "runs": names,
        "kept": kept,
        "tried": [{**row, "run": names[row["run"]]} for row in mixed.tried],
        "splits": told,
    }
    write_json(folder / "soup.json", {"schema": "bloodcell/soup/1", **value})
    page = write_run_report(folder, Path(first.config.data.set))
    lines = [f"average of {len(kept)} of {len(names)} runs: {', '.join(kept)}"]
    for name, found in told.items():
        accuracy = found["metrics"]["accuracy"]["value"]
        lines += ["", f"{name}: accuracy {accuracy:.4f}", *gain_lines(found)]
    return value, [*lines, "", f"run: {folder}", f"report: {page}"]
