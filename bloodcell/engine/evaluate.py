"""Apply a run's weights to splits of a set: prediction tables, exact metrics, evaluation.json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from bloodcell.config import Config, encode
from bloodcell.data.shardset import ShardSet
from bloodcell.engine.agree import on_first_rank
from bloodcell.engine.inference import Inference
from bloodcell.engine.setup import make_inference, make_view
from bloodcell.evaluation.predictions import Predictions, write_predictions
from bloodcell.evaluation.result import evaluate_predictions, write_evaluation
from bloodcell.models import weights, zoo
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
    model = zoo.build(config.model.name, len(classes), config.model.dropout, config.engine.channels_last)
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
    run: RunFolder, inference: Inference, model: nn.Module, split: str, name: str, folder: Path
) -> dict[str, Any] | None:
    """Predict one split, write its table and metrics below `folder`; return the result on the first rank. Collective.

    Args:
        run: the run that is judged.
        inference: how its network is applied.
        model: the network, on its device.
        split: the set's name of the split ("fold3/test").
        name: the plain name for the files ("test").
        folder: the run folder, or a folder below it for another set.
    """
    predictions = inference(model, split)
    return on_first_rank(inference.ranks, lambda: _judge(predictions, name, folder))


def _judge(predictions: Predictions | None, name: str, folder: Path) -> dict[str, Any]:
    assert predictions is not None
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions" / f"{name}.parquet", predictions)
    result = evaluate_predictions(predictions)
    write_evaluation(folder / "evaluation.json", name, result)
    return result


def evaluate_run(
    run: RunFolder, config: Config, shards: ShardSet, ranks: Ranks, splits: list[str], other: bool
) -> dict[str, dict[str, Any]]:
    """Evaluate the trained network of a run on splits of a set; return {split: result} on the first rank. Collective.

    Args:
        run: the run.
        config: its config, resolved for this machine.
        shards: its own set or another one.
        ranks: this process's place.
        splits: plain names: train, val, test.
        other: the set is not the run's own: results go to RUN/external/<set>.

    Raises:
        BadInput: no weights, other classes, or a split the set lacks.
    """
    device = choose_device(ranks, config.engine.device)
    model, classes = load_model(run, config)
    check_classes(classes, shards)
    folder = run.path / "external" / shards.folder.name if other else run.path
    inference = make_inference(config, run.path.name, shards, make_view(config), device, ranks)
    model = model.to(device)
    results = {}
    for name in splits:
        split = shards.split_name(name, config.data.fold)
        results[name] = evaluate_split(run, inference, model, split, name, folder)
    return {name: result for name, result in results.items() if result is not None}
