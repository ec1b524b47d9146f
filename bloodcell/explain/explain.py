"""Explain a run: maps of chosen images, their checks, and the map of its features, from predictions to one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jinja2 import PackageLoader
from torch import nn

from bloodcell.config import Config
from bloodcell.data.draws import chain
from bloodcell.data.shardset import ShardSet
from bloodcell.engine.evaluate import MODEL_FILE, load_model
from bloodcell.engine.setup import make_model, make_view
from bloodcell.evaluation.predictions import Predictions, read_predictions
from bloodcell.evaluation.source import digest
from bloodcell.explain import embeddings, regions, sanity, sheets
from bloodcell.explain.gradcam import GradCAM, Mapper
from bloodcell.explain.occlusion import Occlusion
from bloodcell.explain.options import METHODS, Options
from bloodcell.explain.rollout import Rollout, has_attention
from bloodcell.explain.view import Images
from bloodcell.runfolder import RunFolder
from shards.atomic import new_folder, write_json
from shards.console import progress
from shards.document import environment, write_page
from shards.errors import BadInput

SCHEMA = "bloodcell/explanation/1"
ERRORS_SCHEMA = "bloodcell/explained-errors/1"

COMPARED = 24
"""Images on which the maps are compared with those of another method and of a random network."""


def explain(run: RunFolder, config: Config, shards: ShardSet, target: Path, options: Options) -> dict[str, Any]:
    """Write `target` with explanation.json, explanation.html, errors.json (the surest errors and their maps as data
    URIs), maps.npz and embeddings.parquet; return the first.

    Args:
        run: a finished run with predictions of the split.
        config: its config, resolved for this machine.
        shards: the set that it predicted.
        target: folder to make; one that is there is replaced when the new one is whole.
        options: what to explain.

    Raises:
        BadInput: an unknown method, no predictions, another set, or a network that the method does not know.
    """
    _check(options)
    predictions = _predictions(run, shards, options.split)
    device = torch.device(config.engine.device)
    model = load_model(run, config)[0].to(device).eval()
    images = Images(shards, make_view(config), config.data.micro_batch, config.data.threads, device)
    some = _drawn(predictions, options.samples, options.seed)
    wrong = _surest_errors(predictions, options.errors)
    method = _method(options.method, model)
    with new_folder(target, durable=False, replace=True) as folder:
        mapper = _mapper(method, model, images, predictions)
        checked = _check_maps(mapper, method, model, images, predictions, some, config, options.seed)
        shown = _shown(mapper, images, predictions, wrong)
        spread = _spread(model, images, shards, predictions, options, folder)
        result = {
            "schema": SCHEMA,
            "run": predictions.run,
            "data": predictions.data,
            "weights": digest(run.path / MODEL_FILE),
            "split": options.split,
            "method": method,
            "layer": getattr(mapper, "name", None),
            "samples": len(some),
            **checked["figures"],
            "embedding": spread["figures"],
            "errors": [{key: item[key] for key in ("key", "true", "predicted", "probability")} for item in shown],
        }
        np.savez_compressed(folder / "maps.npz", ids=predictions.ids[some], maps=checked["maps"].astype(np.float16))
        write_json(folder / "explanation.json", result)
        write_json(folder / "errors.json", {"schema": ERRORS_SCHEMA, "errors": shown})
        pages = environment(PackageLoader("bloodcell.explain", "templates"))
        content = {"result": result, "errors": shown, "pictures": spread["pictures"], "total": _errors(predictions)}
        write_page(folder / "explanation.html", pages, "explanation.html", content)
    return result


def _check(options: Options) -> None:
    if options.method not in METHODS:
        raise BadInput(f"no method {options.method!r}", "--method", f"choose one of {', '.join(METHODS)}")
    for name in ("errors", "samples", "points"):
        if getattr(options, name) < (0 if name == "errors" else 1):
            raise BadInput(f"{getattr(options, name)} images", f"--{name}", "give a positive number")


def _predictions(run: RunFolder, shards: ShardSet, split: str) -> Predictions:
    path = run.path / "predictions" / f"{split}.parquet"
    if not path.exists():
        raise BadInput(f"the run has no predictions of {split!r}", run.path, f"bloodcell evaluate RUN --split {split}")
    predictions = read_predictions(path)
    if predictions.fingerprint != shards.info.fingerprint:
        raise BadInput("the predictions are of another set", shards.folder, "name the run's own set with --data")
    return predictions


def _drawn(predictions: Predictions, number: int, seed: int) -> np.ndarray:
    """Return rows of the table, int64, ascending: as many of each class as there are, drawn by the seed."""
    order = np.argsort(chain(seed, predictions.ids), kind="stable")
    labels = predictions.labels[order]
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    return np.sort(order[np.argsort(rank, kind="stable")[:number]])


def _surest_errors(predictions: Predictions, number: int) -> np.ndarray:
    missed = np.flatnonzero(predictions.predicted() != predictions.labels)
    sure = predictions.probabilities().max(axis=1)
    return missed[np.argsort(-sure[missed], kind="stable")][:number]


def _errors(predictions: Predictions) -> int:
    return int((predictions.predicted() != predictions.labels).sum())


def _method(asked: str, model: nn.Module) -> str:
    return ("rollout" if has_attention(model) else "gradcam") if asked == "auto" else asked


def _mapper(method: str, model: nn.Module, images: Images, predictions: Predictions) -> Mapper:
    if method == "occlusion":
        return Occlusion(model)
    if method == "rollout":
        return Rollout(model)
    return GradCAM(model, next(images.batches([int(predictions.ids[0])])))


def _maps(mapper: Mapper, images: Images, ids: np.ndarray, classes: np.ndarray, what: str) -> np.ndarray:
    """Return the maps of the samples `ids` for `classes`, float32 [n, h, w]."""
    made = []
    batches = images.batches([int(i) for i in ids])
    for begin, batch in zip(range(0, len(ids), images.batch), batches, strict=True):
        wanted = torch.from_numpy(classes[begin : begin + len(batch)].astype(np.int64)).to(batch.device)
        made.append(mapper(batch, wanted).float().cpu().numpy())
    return np.concatenate(list(progress(made, what, len(made))))


def _check_maps(
    mapper: Mapper,
    method: str,
    model: nn.Module,
    images: Images,
    predictions: Predictions,
    some: np.ndarray,
    config: Config,
    seed: int,
) -> dict[str, Any]:
    """Return the maps of the drawn images and the figures of all checks on them."""
    ids, classes = predictions.ids[some], predictions.predicted()[some]
    maps = _maps(mapper, images, ids, classes, "maps")
    few = slice(0, min(len(some), COMPARED))
    other = GradCAM if method == "occlusion" else Occlusion
    second: Mapper = Occlusion(model) if other is Occlusion else _mapper("gradcam", model, images, predictions)
    agreement = sanity.rank_correlation(maps[few], _maps(second, images, ids[few], classes[few], "second method"))
    blank = _random(config, len(predictions.classes), seed).to(images.device).eval()
    random = _mapper(method, blank, images, predictions)
    figures = {
        "agreement": {
            "with": "gradcam" if method == "occlusion" else "occlusion",
            "correlation": round(float(agreement.mean()), 4),
        },
        "sanity": sanity.compare_with_random(
            maps[few], _maps(random, images, ids[few], classes[few], "random network")
        ),
        "regions": _regions(model, images, ids, maps, predictions.labels[some]),
    }
    return {"maps": maps, "figures": figures}


def _random(config: Config, classes: int, seed: int) -> nn.Module:
    """Return the run's network with weights drawn from the seed."""
    from dataclasses import replace

    fresh = replace(config, model=replace(config.model, weights="none"), train=replace(config.train, seed=seed))
    return make_model(fresh, classes, None)


@torch.no_grad()
def _regions(model: nn.Module, images: Images, ids: np.ndarray, maps: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    tallies = {name: regions.Tally([], [], []) for name in regions.NAMES}
    before: list[int] = []
    for begin, batch in zip(range(0, len(ids), images.batch), images.batches([int(i) for i in ids]), strict=True):
        before += model(batch).argmax(dim=1).tolist()
        heat = maps[begin : begin + len(batch)]
        mass = np.maximum(heat.sum(axis=(1, 2)), 1e-12)
        for name, mask in regions.masks(images.pixels(batch)).items():
            tally = tallies[name]
            tally.area += mask.mean(axis=(1, 2)).tolist()
            tally.share += ((heat * mask).sum(axis=(1, 2)) / mass).tolist()
            tally.after += model(regions.painted(batch, mask)).argmax(dim=1).tolist()
    return regions.judge(tallies, np.array(before), labels)


def _shown(mapper: Mapper, images: Images, predictions: Predictions, rows: np.ndarray) -> list[dict[str, Any]]:
    """Return the surest errors with two maps each: for the class they were taken for, and for the true one."""
    if not len(rows):
        return []
    ids, predicted, probabilities = predictions.ids[rows], predictions.predicted()[rows], predictions.probabilities()
    pixels = np.concatenate([images.pixels(batch) for batch in images.batches([int(i) for i in ids])])
    for_predicted = _maps(mapper, images, ids, predicted, "errors")
    for_true = _maps(mapper, images, ids, predictions.labels[rows], "errors, true class")
    return [
        {
            "key": predictions.keys[row],
            "true": predictions.classes[int(predictions.labels[row])],
            "predicted": predictions.classes[int(predicted[place])],
            "probability": round(float(probabilities[row].max()), 4),
            "picture": sheets.uri(pixels[place]),
            "map": sheets.overlay(pixels[place], for_predicted[place]),
            "map_true": sheets.overlay(pixels[place], for_true[place]),
        }
        for place, row in enumerate(rows)
    ]


def _spread(
    model: nn.Module, images: Images, shards: ShardSet, predictions: Predictions, options: Options, folder: Path
) -> dict[str, Any]:
    """Write the features and their places in the plane; return figures and pictures by class, source, patient."""
    rows = _drawn(predictions, options.points, options.seed)
    ids = predictions.ids[rows]
    batches = progress(images.batches([int(i) for i in ids]), "features", -(-len(ids) // images.batch))
    vectors = embeddings.features(model, batches)
    places = embeddings.picture(vectors, options.seed) if len(vectors) >= 4 else np.zeros((len(vectors), 2))
    names = _names(shards, predictions, rows)
    table = {"id": ids, "key": [predictions.keys[row] for row in rows], **names, "x": places[:, 0], "y": places[:, 1]}
    table["features"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    pq.write_table(pa.table(table), folder / "embeddings.parquet", compression="zstd")
    figures = {what: embeddings.neighbourhood(vectors, values) for what, values in names.items()}
    pictures = {
        what: sheets.scatter(places, values, f"coloured by {what}")
        for what, values in names.items()
        if what == "class" or figures[what] is not None
    }
    return {"figures": {"samples": len(rows), "neighbours": figures}, "pictures": pictures}


def _names(shards: ShardSet, predictions: Predictions, rows: np.ndarray) -> dict[str, list[str]]:
    """Return class, source and patient of some rows; "" where they are not known.

    The source is the root that an image was packed from, where there were several.
    """
    several = bool(shards.info.options.get("also"))
    table = shards.table(["source"]).column("source").take(pa.array(predictions.ids[rows])).to_pylist()
    groups = [predictions.groups[row] for row in rows]
    return {
        "class": [predictions.classes[int(predictions.labels[row])] for row in rows],
        "source": [source.split("/")[0] if several else "" for source in table],
        "patient": ["" if group.startswith("near:") else group for group in groups],
    }
