"""Apply a run's weights to splits of a set: prediction tables, exact metrics, evaluation.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from bloodcell.config import Config, encode
from bloodcell.data.shardset import ShardSet
from bloodcell.engine.agree import on_first_rank
from bloodcell.engine.inference import Inference
from bloodcell.engine.setup import make_inference, make_network, make_view
from bloodcell.evaluation.judge import judge
from bloodcell.evaluation.origins import origins
from bloodcell.evaluation.predictions import Predictions
from bloodcell.evaluation.recompute import judge_split
from bloodcell.evaluation.result import write_evaluation
from bloodcell.evaluation.source import Source, digest, write_sourced
from bloodcell.evaluation.tuning import Tuning
from bloodcell.models import weights
from bloodcell.ranks import Ranks, choose_device
from bloodcell.runfolder import RunFolder
from shards.errors import BadInput

MODEL_FILE = "model.safetensors"


def export_weights(run: RunFolder, model: nn.Module, config: Config, classes: list[str], fingerprint: str) -> None:
    """Write RUN/model.safetensors with what using it needs in its metadata: classes, preprocessing, config."""
    view = make_view(config)
    metadata = {
        "format": "bloodcell/1",
        "model": config.model.name,
        "head": config.model.head,
        "classes": json.dumps(classes),
        "size": str(config.data.size),
        "mean": json.dumps(view.mean),
        "std": json.dumps(view.std),
        "config": json.dumps(encode(replace(config, data=replace(config.data, set="")))),
        "fingerprint": fingerprint,
    }
    weights.save_weights(model.state_dict(), run.path / MODEL_FILE, metadata)


def load_model(run: RunFolder, config: Config) -> tuple[nn.Module, list[str]]:
    """Return the trained network of a run and its class names.

    Raises:
        BadInput: the run has no model.safetensors yet, or it does not fit.
    """
    path = run.path / MODEL_FILE
    if not path.exists():
        raise BadInput("the run has no model.safetensors", run.path, "finish the training first (start it again)")
    classes = list(json.loads(weights.read_metadata(path)["classes"]))
    model = make_network(config, len(classes))
    weights.load_weights(model, path, head="strict")
    return model, classes


def check_classes(classes: list[str], shards: ShardSet) -> None:
    """Raise BadInput unless the set has the classes that the network was trained on."""
    if classes != shards.info.classes:
        raise BadInput(
            f"the set has classes {shards.info.classes}, the run was trained on {classes}",
            shards.folder,
            "evaluate on a set with the same classes",
        )


def evaluate_split(
    run: RunFolder, inference: Inference, model: nn.Module, split: str, name: str
) -> dict[str, Any] | None:
    """Predict one split, write its table and metrics; return the result on the first rank. Collective.

    Args:
        run: the run that is judged.
        inference: how its network is applied.
        model: the network, on its device.
        split: the set's name of the split ("fold3/test").
        name: the plain name for the files ("test").
    """
    predictions = inference(model, split)
    return on_first_rank(inference.ranks, lambda: _keep(run, inference, predictions, split, name))


def _keep(
    run: RunFolder, inference: Inference, predictions: Predictions | None, split: str, name: str
) -> dict[str, Any]:
    assert predictions is not None
    source = Source(digest(run.path / MODEL_FILE), predictions.fingerprint, split)
    write_sourced(run.path / "predictions" / f"{name}.parquet", predictions, source, inference.precision)
    return judge_table(run.path, name, predictions, sources=origins(inference.shards.folder, inference.shards.info))


def judge_table(
    folder: Path,
    name: str,
    predictions: Predictions,
    home: Path | None = None,
    tuning: Tuning | None = None,
    sources: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """Judge a table of predictions and put the result into `folder`/evaluation.json; return it.

    Args:
        folder: of a run, of a combined result, or of another set in one of them.
        name: the plain name of the split.
        predictions: of the split.
        home: the folder whose validation table belongs to these predictions, if it is another one.
        tuning: the validation tables where the samples have several networks (folds).
        sources: sample id -> where the sample comes from, for the worst groups.
    """
    home = home or folder
    result = judge(predictions, tuning, sources) if tuning else judge_split(home, predictions, name, sources)
    write_evaluation(folder / "evaluation.json", name, result)
    return result


def evaluate_run(
    run: RunFolder, config: Config, shards: ShardSet, ranks: Ranks, splits: list[str]
) -> dict[str, dict[str, Any]]:
    """Predict splits of the run's own set anew with its trained network and judge them. Collective.

    Args:
        run: the run.
        config: its config, resolved for this machine.
        shards: the set.
        ranks: this process's place.
        splits: plain names: train, val, test.

    Returns:
        {split: result} on the first rank.

    Raises:
        BadInput: no weights, other classes, or a split the set lacks.
    """
    device = choose_device(ranks, config.engine.device)
    model, classes = load_model(run, config)
    check_classes(classes, shards)
    inference = make_inference(config, run.path.name, shards, make_view(config), device, ranks)
    model = model.to(device)
    results = {}
    for name in splits:
        split = shards.split_name(name, config.data.fold)
        results[name] = evaluate_split(run, inference, model, split, name)
    return {name: result for name, result in results.items() if result is not None}
