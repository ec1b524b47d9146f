"""Several runs judged as one: an ensemble, or the folds of a cross-validation put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bloodcell.config import fields, leaves
from bloodcell.engine.agree import on_first_rank
from bloodcell.engine.evaluate import judge_table
from bloodcell.engine.subject import Subject
from bloodcell.evaluation import pooling
from bloodcell.evaluation.combined import Combined, default_folder, short_names, write_combined, write_told
from bloodcell.evaluation.ensemble import average, gain, gain_lines, said
from bloodcell.evaluation.origins import origins
from bloodcell.evaluation.paired import differences, measure
from bloodcell.evaluation.predictions import Predictions, write_predictions
from bloodcell.evaluation.result import evaluate_predictions, table
from bloodcell.evaluation.tuning import Tuning
from bloodcell.report import write_combined_report
from shards.console import warn
from shards.errors import BadInput
from shards.format import read_samples

VALIDATION = "val"
MACHINE = {
    *("data.set", "data.fold", "data.threads", "data.backend", "data.cache", "data.cache_share", "train.seed"),
    *("data.hw_decoder_load", "data.decoder_hints", "data.roi_decode"),
    *("engine.device", "engine.threads", "engine.precision"),
}
"""Settings in which runs may differ and still be repetitions of one recipe."""

Answer = tuple[dict[str, Any], list[str]]


def together(subjects: Sequence[Subject], splits: list[str], anew: bool, output: Path | None) -> Answer:
    """Judge several runs as one; write the result's folder. Collective.

    Args:
        subjects: the runs, all on one set.
        splits: plain names.
        anew: predict although older tables hold.
        output: folder of the result, None for a name of its own beside the first run.

    Raises:
        BadInput: the runs do not belong together; says why.
    """
    names = short_names([subject.run.path for subject in subjects])
    _check(subjects, names)
    pooled = not subjects[0].other and len({subject.fold for subject in subjects}) > 1
    if pooled and splits != ["test"]:
        raise BadInput("folds are put together by their test parts", "--split", "leave --split out")
    kind = "folds" if pooled else "ensemble"
    first = subjects[0]
    identity = [first.fingerprint, str(first.orientations), *sorted(subject.weights for subject in subjects)]
    folder = output or default_folder(kind, [subject.run.path for subject in subjects], identity)
    combined = Combined(
        kind,
        [str(subject.run.path.resolve()) for subject in subjects],
        [subject.weights for subject in subjects],
        first.orientations,
        first.config.data.set,
        first.fingerprint,
        list(first.run.stored()["classes"]),
    )
    members = _members(subjects, names) if pooled else {}
    on_first_rank(first.ranks, lambda: write_combined(folder, combined))
    if pooled:
        value, lines = _folds(subjects, names, members, anew, folder)
    else:
        value, lines = _ensemble(subjects, names, splits, anew, folder)
    if not first.ranks.first:
        return {}, []
    page = write_combined_report(folder, Path(first.config.data.set) if first.info else None)
    return {**value, "report": str(page)}, [*lines, f"report: {page}"]


def _check(subjects: Sequence[Subject], names: Sequence[str]) -> None:
    """Raise BadInput unless the runs were trained on the same classes and, on their own set, on the same set."""
    first = subjects[0]
    for subject, name in zip(subjects[1:], names[1:], strict=True):
        mine, theirs = first.run.stored(), subject.run.stored()
        if mine["classes"] != theirs["classes"]:
            what = f"the classes differ: {mine['classes']} and {theirs['classes']}"
            raise BadInput(what, f"{names[0]}, {name}", "give runs of the same classes")
        if subject.other != first.other or (not first.other and mine["fingerprint"] != theirs["fingerprint"]):
            raise BadInput(
                "the runs were trained on different sets",
                f"{names[0]}, {name}",
                "one may have trained on images that the other is judged on; compare them with `bloodcell compare`",
            )


def _ensemble(subjects: Sequence[Subject], names: Sequence[str], splits: list[str], anew: bool, folder: Path) -> Answer:
    first = subjects[0]
    results: dict[str, Any] = {}
    lines: list[str] = []
    # The validation split goes along, so that the ensemble can be calibrated like a run.
    extra = [VALIDATION] if not first.other and VALIDATION not in splits and _has(first, VALIDATION) else []
    for name in [*extra, *splits]:
        tables = [subject.table(name, anew)[0] for subject in subjects]

        def judged(name: str = name, tables: list[Predictions | None] = tables) -> None:
            members = [table for table in tables if table is not None]
            whole = average(members, names, folder.name)
            plain = name.replace("/", "-")
            result = _write(folder, plain, whole, origins(Path(first.config.data.set), first.info))
            if name in splits:
                told = {"kind": "ensemble", "runs": list(names), **(gained := gain(whole, members, names))}
                write_told(folder, plain, told)
                results[name] = {**result, **told}
                lines.extend([f"ensemble of {len(names)} runs: {', '.join(names)}", *table(result), ""])
                lines.extend(gain_lines(gained))

        on_first_rank(first.ranks, judged)
    if not first.ranks.first:
        return {}, []
    lines.append(f"result: {folder}")
    if len(results) == 1:
        return {**next(iter(results.values())), "run": str(folder)}, lines
    return {"run": str(folder), "data": first.config.data.set, "splits": results}, lines


def _members(subjects: Sequence[Subject], names: Sequence[str]) -> dict[int, list[int]]:
    """Return which runs belong to each fold; raises BadInput if a fold or its recipe does not fit the others."""
    first = subjects[0]
    if first.info is None:
        raise BadInput("the set of the folds is not at hand", first.config.data.set, "name it with --data SET")
    count = len({split.split("/")[0] for split in first.info.splits if "/" in split})
    members = pooling.check_folds([subject.fold for subject in subjects], count, names)
    _check_recipes(subjects, names, members)
    return members


def _folds(
    subjects: Sequence[Subject], names: Sequence[str], members: dict[int, list[int]], anew: bool, folder: Path
) -> Answer:
    first = subjects[0]
    tables = {part: [subject.table(part, anew)[0] for subject in subjects] for part in (VALIDATION, "test")}
    answer: list[Answer] = []

    def judged() -> None:
        each = {
            part: [
                average([t for i in places if (t := found[i]) is not None], [names[i] for i in places], folder.name)
                for places in members.values()
            ]
            for part, found in tables.items()
        }
        keys = read_samples(Path(first.config.data.set), ["key"]).column("key").to_pylist()
        pooled = pooling.pool(each["test"], keys, folder.name, "test")
        sources = origins(Path(first.config.data.set), first.info)
        runs = [[names[i] for i in places] for places in members.values()]
        answer.append(judge_pooled(pooled, each, runs, folder, sources))

    on_first_rank(first.ranks, judged)
    return answer[0] if answer else ({}, [])


def judge_pooled(
    pooled: pooling.Pooled,
    each: dict[str, list[Predictions]],
    runs: list[list[str]],
    folder: Path,
    sources: Mapping[int, str] | None,
) -> Answer:
    """Write and tell the pooled result, the one with each fold calibrated, and the folds one by one."""
    tuning = Tuning.of(pooled.predictions, each[VALIDATION], pooled.fold)
    result = _write(folder, "test", pooled.predictions, sources, tuning)
    temperatures, notes = pooling.temperatures(each[VALIDATION])
    scaled = pooled.scaled(temperatures)
    calibrated = _write(folder, "test-calibrated", scaled, sources)
    change = differences(measure(scaled), [measure(pooled.predictions)], scaled.classes)["overall"]
    folds = []
    for fold, part in enumerate(each["test"]):
        alone = evaluate_predictions(part)
        folds.append(
            {
                "fold": fold,
                "runs": runs[fold],
                "samples": alone["samples"],
                "groups": alone["groups"],
                "temperature": float(f"{temperatures[fold]:.10g}"),
                "metrics": alone["metrics"],
            }
        )
    told = {
        "kind": "folds",
        "runs": [name for names in runs for name in names],
        "folds": folds,
        "calibrated": {"metrics": calibrated["metrics"], "difference": change},
    }
    write_told(folder, "test", told)
    value = {**result, "run": str(folder), **told}
    lines = [f"{len(runs)} folds, every sample judged once by its own fold's runs", *table(result), ""]
    for row in folds:
        cells = [f"{name} {row['metrics'][name]['value']:.4f}" for name in ("accuracy", "macro_f1", "nll")]
        lines.append(f"fold {row['fold']}: {row['samples']:,} samples, {', '.join(cells)}, T {row['temperature']:.3f}")
    changes = ", ".join(f"{name} {said(change[name])}" for name in ("nll", "macro_auroc"))
    lines += [*notes, f"each fold calibrated on its own validation part: {changes}", f"result: {folder}"]
    return value, lines


def _write(
    folder: Path,
    name: str,
    predictions: Predictions,
    sources: Mapping[int, str] | None,
    tuning: Tuning | None = None,
) -> dict[str, Any]:
    write_predictions(folder / "predictions" / f"{name}.parquet", predictions)
    return judge_table(folder, name, predictions, tuning=tuning, sources=sources)


def _has(subject: Subject, name: str) -> bool:
    """Whether the split can be predicted, or was: the set has it, or there is a table of it."""
    if subject.info is None:
        return subject.path(name).exists()
    own = name if subject.fold < 0 else f"fold{subject.fold}/{name}"
    return own in subject.info.splits and subject.info.count(own) > 0


def _check_recipes(subjects: Sequence[Subject], names: Sequence[str], members: dict[int, list[int]]) -> None:
    """Raise BadInput unless every fold was trained by the same recipes; seeds and machines may differ."""
    known = fields()
    flat = [
        {key: v for key, v in leaves(s.run.config()) if key not in MACHINE and not known[key].metadata["runtime"]}
        for s in subjects
    ]
    kinds = [sorted(repr(flat[place]) for place in places) for places in members.values()]
    for fold, kind in enumerate(kinds):
        if kind != kinds[0]:
            ours, theirs = members[0][0], members[fold][0]
            differ = ", ".join(pooling.differing([flat[ours], flat[theirs]])) or "their number or mixture"
            raise BadInput(
                f"fold 0 and fold {fold} were trained by other recipes ({differ})",
                f"{names[ours]}, {names[theirs]}",
                "give runs of one recipe",
            )
    if not subjects[0].ranks.first:
        return
    seeds = {subject.run.config().train.seed for subject in subjects}
    precisions = {subject.run.config().engine.precision for subject in subjects}
    if len(seeds) > 1 and len(members) == len(subjects):
        warn(f"the folds were trained with different seeds: {', '.join(map(str, sorted(seeds)))}")
    if len(precisions) > 1:
        warn(f"the folds were trained in different precisions: {', '.join(sorted(precisions))}")
