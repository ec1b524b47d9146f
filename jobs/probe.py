"""`bloodcell probe`: what a frozen network's features are worth, by a linear classifier or by nearest neighbours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.features import add_network, check
from shards.errors import BadInput

if TYPE_CHECKING:
    from bloodcell.engine.feature_table import FeatureTable
    from bloodcell.engine.probing import Probing

POOLED = "pooled"

EPILOG = """\
The network is frozen: each image passes through it once, as it is. On the features of the training
samples a classifier is fitted, its one setting is chosen on the validation samples, and val and test are judged.

linear (or logistic):  logistic regression; the strength of its L2 penalty is chosen. The result is a run folder: the
                       network with the classifier as its head, for evaluate, compare, explain, soup
knn:                   nearest neighbours by cosine; their number is chosen. Tables and evaluation.json, no weights
--folds all:           a probe for each fold in DIR/fold0, …, judged as one in DIR/pooled; one pass for all of them
--features FILE:       keeps the features; where FILE holds those of this network, set and size, there is no pass
--views N:             each training image counts N times more, as the augmentation --policy shows it (light); what is
                       judged is shown as it is. FILE-view1, … keep the features of the views

--json: {run, data, method, views, chosen: {C | k: value}, metrics: {split: {name: {value, low, high}}},
features: computed | used again}; --folds all: as of `evaluate` for folds, with method, views and features."""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of probe."""
    parser.add_argument("network", metavar="MODEL", help="any model that `train` takes")
    parser.add_argument("--data", type=Path, metavar="SET", required=True, help="shard set")
    parser.add_argument(
        "--method", choices=["linear", "logistic", "knn"], default="linear", help="the classifier (linear)"
    )
    parser.add_argument("--fold", type=int, default=-1, help="which fold of a cross-validation set")
    parser.add_argument("--folds", choices=["all"], help="every fold of the set, then all of them as one")
    parser.add_argument("--run", type=Path, metavar="DIR", help="folder of the result (runs/probe-…)")
    parser.add_argument("--features", type=Path, metavar="FILE", help="table of features to keep and use again")
    parser.add_argument("--views", type=int, default=0, metavar="N", help="augmented views of a training image (0)")
    parser.add_argument("--policy", help="augmentation of the views: one of `bloodcell policies`, or a file (light)")
    add_network(parser)
    parser.epilog = EPILOG


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Probe; return the result and the lines for people."""
    import torch

    from bloodcell.engine.agree import on_first_rank
    from bloodcell.engine.feature_table import write_feature_table
    from bloodcell.engine.probing import check_folder, view_file
    from bloodcell.ranks import process_group, set_threads
    from bloodcell.runfolder import RunFolder

    check(parsed)
    probing = _probing(parsed)
    folds = _folds(parsed, probing)
    folder = parsed.run or _default(parsed, probing)
    places = {fold: folder / f"fold{fold}" if parsed.folds else folder for fold in folds}
    for fold, place in places.items():
        probing.parts(fold)
        check_folder(RunFolder(place), probing.method)
    engine, ranks = probing.encoder.config.engine, probing.encoder.ranks
    set_threads(engine.threads)
    with process_group(ranks, torch.device(engine.device), engine.timeout):
        tables = probing.features(folds, parsed.features)
        told: dict[int, dict[str, Any]] = {}

        def settle() -> None:
            shown = [table for table, _ in tables if table is not None]
            for view, (table, known) in enumerate(tables):
                if parsed.features and not known and table is not None:
                    write_feature_table(view_file(parsed.features, view), table)
            for fold, place in places.items():
                told[fold] = _settled(probing, place, fold, shown)

        on_first_rank(ranks, settle)
        again = all(known for _, known in tables)
        about = {"method": probing.method, "views": probing.views, "features": "used again" if again else "computed"}
        if parsed.folds:
            value, lines = _pooled(probing, list(places.values()), folder / POOLED)
            return {**value, **about}, lines
    return _told(probing, folder, told[folds[0]], about) if told else ({}, [])


def _probing(parsed: argparse.Namespace) -> Probing:
    from bloodcell.config import ModelConfig
    from bloodcell.data.shardset import ShardSet
    from bloodcell.engine.encoder import zoo_encoder
    from bloodcell.engine.probing import Probing
    from bloodcell.ranks import discover

    if parsed.views < 0:
        raise BadInput(f"{parsed.views} will not do", "--views", "give 0 or more")
    if parsed.policy and not parsed.views:
        raise BadInput("a policy shows augmented views, and none are asked for", "--policy", "add --views N")
    if (Path(parsed.network) / "config.json").exists():
        fix = "name its model, with --weights RUN/model.safetensors"
        raise BadInput("a run is no model", parsed.network, fix)
    shards = ShardSet.open(parsed.data)
    model = ModelConfig(name=parsed.network, weights=parsed.weights or "pretrained")
    classes = len(shards.info.classes)
    policy = (parsed.policy or "light") if parsed.views else "none"
    encoder = zoo_encoder(model, classes, parsed.size, parsed.batch, parsed.data, parsed.device, discover(), policy)
    return Probing(encoder, shards, "knn" if parsed.method == "knn" else "linear", parsed.views)


def _folds(parsed: argparse.Namespace, probing: Probing) -> list[int]:
    if not parsed.folds:
        return [parsed.fold]
    if parsed.fold >= 0:
        raise BadInput("all folds and one fold are asked for", "--folds, --fold", "choose one")
    count = len({split.split("/")[0] for split in probing.shards.info.splits if "/" in split})
    if not count:
        raise BadInput("the set has no folds", parsed.data, "pack it with --folds K, or leave --folds out")
    return list(range(count))


def _default(parsed: argparse.Namespace, probing: Probing) -> Path:
    from bloodcell.engine.probing import probe_config
    from bloodcell.runfolder import default_path

    views = f"-{probing.views}views" if probing.views else ""
    name = f"probe-{probing.method}-{parsed.network.rpartition(':')[2]}{views}"
    return default_path(name, probe_config(probing.encoder.config, parsed.fold), probing.shards.info.fingerprint)


def _settled(probing: Probing, place: Path, fold: int, tables: list[FeatureTable]) -> dict[str, Any]:
    from bloodcell.report import write_run_report

    told = probing.settle(place, fold, tables)
    write_run_report(place, probing.shards.folder)
    return told


def _told(
    probing: Probing, folder: Path, told: dict[str, Any], about: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    from bloodcell.evaluation.result import table

    chosen = ", ".join(f"{name} = {value:g}" for name, value in told["chosen"].items())
    lines = [f"{probing.method} probe, {chosen} (chosen on validation)"]
    for result in told["results"].values():
        lines += table(result)
    lines += [f"run: {folder}", f"report: {folder / 'report.html'}"]
    metrics = {name: result["metrics"] for name, result in told["results"].items()}
    value = {"run": str(folder), "data": str(probing.shards.folder), "chosen": told["chosen"], "metrics": metrics}
    return {**value, **about}, lines


def _pooled(probing: Probing, runs: list[Path], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Judge the probes of all folds as one. Collective."""
    from bloodcell.engine.agree import on_first_rank
    from bloodcell.engine.subject import open_subject
    from bloodcell.evaluation import pooling
    from bloodcell.evaluation.combined import read_table
    from bloodcell.evaluation.origins import origins
    from jobs.together import Answer, judge_pooled, together

    ranks = probing.encoder.ranks
    if probing.method == "linear":
        device = probing.encoder.config.engine.device
        subjects = [open_subject(run, probing.shards.folder, None, 1, device, ranks) for run in runs]
        return together(subjects, ["test"], False, folder)
    answer: list[Answer] = []

    def judged() -> None:
        each = {part: [read_table(run, part) for run in runs] for part in ("val", "test")}
        pooled = pooling.pool(each["test"], probing.shards.keys, folder.name, "test")
        sources = origins(probing.shards.folder, probing.shards.info)
        answer.append(judge_pooled(pooled, each, [[run.name] for run in runs], folder, sources))

    on_first_rank(ranks, judged)
    return answer[0] if answer else ({}, [])
