"""`bloodcell evaluate` and `bloodcell report`: exact metrics of a finished run, and its document."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import BadInput

if TYPE_CHECKING:
    from bloodcell.engine.subject import Subject
    from bloodcell.evaluation.combined import Combined
    from bloodcell.evaluation.predictions import Predictions
    from bloodcell.ranks import Ranks

EPILOG = """\
one run:        RUN/predictions/<split>.parquet and RUN/evaluation.json; a table that the run's weights made for this
                set is used again (the output says so), so nothing but the tables is needed
several runs:   of one set and fold: an ensemble, the mean of their probabilities; of all folds of a set: every sample
                judged once, by its own fold's runs, proven complete by key. The result is a folder (--output)
                with a report of its own
--tta d4:       each image in all eight orientations; the result is RUN/tta8, its gain is told
--data SET:     another set: results in RUN/external/<set>, with a shift report beside the run's own test split

--json: {run, data, split, samples, groups, classes, metrics: {name: {value, low, high}}, per_class, confusion,
interval, predictions: used again | made} and, where there are any, left_out_of_training: {samples, times, keys};
several splits: {run, data, splits: {name: ...}}. Several runs add kind,
runs, and gain: {metric: {best, over_best, over_mean}} (ensemble) or folds: [{fold, runs, samples, temperature,
metrics}] and calibrated: {metrics, difference} (folds). --tta adds tta: {orientations, gain}; another set adds
shift: {left_out, quantities, features, drop}."""

REPORT_EPILOG = """\
RUN/report.html      the run for people: one page that needs nothing else
RUN/report.json      the same facts for programs
RUN/metrics.csv      every figure with its interval: split, metric, class, value, low, high
RUN/model_card.md    the model for whoever is given its weights (not of a combined result)
SET/report.html      what is in a shard set

--json: {report, facts, metrics, card}: paths of what was written; of a set {report}."""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of evaluate or report."""
    if verb == "report":
        parser.add_argument(
            "path", type=Path, metavar="RUN|SET", help="run folder, folder of a combined result, or shard set"
        )
        parser.add_argument("--data", type=Path, metavar="SET", help="where the shard set of the run lies now")
        parser.epilog = REPORT_EPILOG
        return
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder; several are judged as one")
    parser.add_argument(
        "--split", default="test", help="train, val or test; several with commas; `all` of another set (test)"
    )
    parser.add_argument("--data", type=Path, metavar="SET", help="another shard set, or where the run's own lies now")
    parser.add_argument("--labels", type=Path, metavar="CSV", help="label,class: another set's classes as the run's")
    parser.add_argument("--tta", choices=["2", "4", "8", "d4"], help="orientations shown of each image; d4 is all 8")
    parser.add_argument(
        "--predict", action="store_true", help="predict anew, although a table of these weights is there"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where the result of several runs goes (ensemble-… beside the first)"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute (auto)")
    parser.epilog = EPILOG


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Run evaluate or report; return the result and the lines for people."""
    return _report(parsed.path, parsed.data) if verb == "report" else _evaluate(parsed)


def _report(path: Path, data: Path | None) -> tuple[dict[str, Any], list[str]]:
    if (path / "dataset.json").exists():
        from shards.report import write_set_report

        if data is not None:
            raise BadInput("the report of a set is of that set alone", "--data", "leave it out")
        page = write_set_report(path)
        return {"report": str(page)}, [f"report: {page}"]
    from bloodcell.evaluation.combined import read_combined
    from bloodcell.report import FILES, write_combined_report, write_run_report
    from bloodcell.runfolder import RunFolder
    from shards.format import read_dataset

    combined = read_combined(path)
    run = RunFolder(path)
    place = data or Path(combined.data if combined else run.config().data.set)
    if data is not None:
        own = combined.fingerprint if combined else run.stored().get("fingerprint")
        if read_dataset(data).fingerprint != own:
            raise BadInput("the set is not the one of this result", data, "give that set, or leave --data out")
    page = (write_combined_report if combined else write_run_report)(path, place if place.exists() else None)
    written = {name: str(path / file) for name, file in FILES.items() if (path / file).exists()}
    return written, [f"{name}: {place}" for name, place in written.items()]


def _evaluate(parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    splits = list(dict.fromkeys(name for name in parsed.split.split(",") if name))
    if not splits:
        raise BadInput("no split is named", "--split", "choose train, val or test")
    combined = [path for path in parsed.runs if (path / "combined.json").is_file()]
    if combined:
        return _again(parsed, combined[0], splits)
    if len(parsed.runs) == 1 and parsed.output is not None:
        raise BadInput("the result of one run goes into its folder", "--output", "leave --output out")
    import torch

    from bloodcell.ranks import discover, process_group, set_threads

    ranks = discover()
    subjects = [_open(parsed, path, ranks) for path in parsed.runs]
    for subject in subjects:
        for name in splits:
            subject.split(name)
    engine = subjects[0].config.engine
    set_threads(engine.threads)
    with process_group(ranks, torch.device(engine.device), engine.timeout):
        if len(subjects) > 1:
            from jobs.together import together

            return together(subjects, splits, parsed.predict, parsed.output)
        return _single(parsed, subjects[0], splits)


def _open(parsed: argparse.Namespace, path: Path, ranks: Ranks, own: bool = False) -> Subject:
    """Return a run on the set that is asked for, or plainly on its own."""
    from bloodcell.engine.orientations import orientations_of
    from bloodcell.engine.subject import open_subject

    if own:
        return open_subject(path, None, None, 1, parsed.device, ranks)
    return open_subject(path, parsed.data, parsed.labels, orientations_of(parsed.tta), parsed.device, ranks)


def _single(parsed: argparse.Namespace, subject: Subject, splits: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Judge one run split by split. Collective."""
    from bloodcell.engine.agree import on_first_rank

    results: dict[str, Any] = {}
    lines: list[str] = []
    for name in splits:
        predictions, again = subject.table(name, parsed.predict)

        def judged(name: str = name, predictions: Predictions | None = predictions, again: bool = again) -> None:
            results[name] = _judged(subject, name, predictions, again, lines)

        on_first_rank(subject.ranks, judged)
        if subject.orientations > 1:
            _tta(parsed, subject, name, predictions, results, lines)
        if subject.other:
            _shift(parsed, subject, name, predictions, results, lines)
    if not subject.ranks.first:
        return {}, []
    _write_report(subject)
    if len(results) == 1:
        return next(iter(results.values())), lines
    return {"run": str(subject.run.path), "data": subject.config.data.set, "splits": results}, lines


def _write_report(subject: Subject) -> None:
    """Write the run's document again: another set and other orientations are parts of it."""
    from bloodcell.report import write_run_report

    place = Path(subject.run.config().data.set if subject.other else subject.config.data.set)
    write_run_report(subject.run.path, place if (place / "dataset.json").exists() else None)


def _judged(
    subject: Subject, name: str, predictions: Predictions | None, again: bool, lines: list[str]
) -> dict[str, Any]:
    from bloodcell.engine.evaluate import judge_table
    from bloodcell.evaluation.origins import origins
    from bloodcell.evaluation.result import table

    assert predictions is not None
    sources = origins(Path(subject.config.data.set), subject.info)
    result = judge_table(subject.folder, name.replace("/", "-"), predictions, subject.home, sources=sources)
    path = subject.path(name)
    lines += [f"predictions {'used again' if again else 'made'}: {path}", *table(result)]
    left_out = (subject.run.read("status.json") or {}).get("left_out")
    if left_out and not subject.other:
        lines.append(f"training left out {left_out['samples']} samples that could not be read")
        result = {**result, "left_out_of_training": left_out}
    return {**result, "predictions": "used again" if again else "made"}


def _tta(
    parsed: argparse.Namespace,
    subject: Subject,
    name: str,
    predictions: Predictions | None,
    results: dict[str, Any],
    lines: list[str],
) -> None:
    """Tell what the orientations gain over the plain predictions. Collective."""
    from dataclasses import replace

    plain, _ = replace(subject, orientations=1).table(name, parsed.predict)
    if predictions is None or plain is None:
        return
    from bloodcell.evaluation.ensemble import COMPARED, said
    from bloodcell.evaluation.paired import differences, measure
    from shards.atomic import write_json

    found = differences(measure(predictions), [measure(plain)], predictions.classes)
    results[name]["tta"] = {"orientations": subject.orientations, "gain": found}
    told = {"schema": "bloodcell/gain/1", "split": name, "orientations": subject.orientations, **found}
    write_json(subject.folder / f"gain-{name.replace('/', '-')}.json", told)
    lines.append(f"\ngain of {subject.orientations} orientations over one:")
    lines += [f"  {metric:<18} {said(found['overall'][metric])}" for metric in COMPARED]


def _shift(
    parsed: argparse.Namespace,
    subject: Subject,
    name: str,
    predictions: Predictions | None,
    results: dict[str, Any],
    lines: list[str],
) -> None:
    """Write the shift report. Collective."""
    from bloodcell.engine.shift import shift_report
    from bloodcell.evaluation.shift import lines as shift_lines

    report = shift_report(subject, _own(parsed, subject), name, predictions, parsed.predict)
    if report is not None:
        results[name]["shift"] = report
        lines += ["", *shift_lines(report)]


def _own(parsed: argparse.Namespace, subject: Subject) -> Subject:
    return _open(parsed, subject.run.path, subject.ranks, own=True)


def _of_runs(parsed: argparse.Namespace, combined: Combined, folder: Path) -> argparse.Namespace:
    """Return the command that made a combined result."""
    tta = str(combined.orientations) if combined.orientations > 1 else None
    made = {"runs": [Path(run) for run in combined.runs], "output": folder, "tta": tta, "data": Path(combined.data)}
    return argparse.Namespace(**{**vars(parsed), **made})


def _again(parsed: argparse.Namespace, folder: Path, splits: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Judge a combined result again: an ensemble from its tables, folds from those of its runs."""
    from bloodcell.engine.evaluate import judge_table
    from bloodcell.evaluation.combined import read_combined, read_table
    from bloodcell.evaluation.origins import origins
    from bloodcell.evaluation.result import table
    from bloodcell.report import write_combined_report
    from shards.format import read_dataset

    given = [f"--{name}" for name in ("data", "labels", "tta", "predict", "output") if getattr(parsed, name)]
    if len(parsed.runs) > 1 or given:
        what = f"takes no {given[0]}" if given else "cannot be part of another one"
        raise BadInput(f"a combined result {what}", folder, "give the runs that it was made of")
    combined = read_combined(folder)
    if combined is not None and combined.kind == "folds":  # each sample's own validation part is with its run
        return _evaluate(_of_runs(parsed, combined, folder))
    assert combined is not None
    place = Path(combined.data)
    info = read_dataset(place) if (place / "dataset.json").exists() else None
    info = info if info is not None and info.fingerprint == combined.fingerprint else None
    sources = origins(place, info)
    results, lines = {}, []
    for name in splits:
        made = judge_table(folder, name, read_table(folder, name), sources=sources)
        results[name] = {**made, "predictions": "used again"}
        lines += table(results[name])
    page = write_combined_report(folder, place if info else None)
    lines.append(f"report: {page}")
    if len(results) == 1:
        return next(iter(results.values())), lines
    return {"run": str(folder), "splits": results}, lines
