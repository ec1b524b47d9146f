"""A probe as a result on disk: one pass through the frozen network, then a classifier for each fold, kept like a run.

DIR/probe.json              method, setting and what was tried, what the features follow from
DIR/predictions/…           tables of val and test, as in a run folder
DIR/evaluation.json         as in a run folder
a linear one besides:       config.json, environment.json, status.json and model.safetensors (the network with the
                            classifier as its head): a run that evaluate, explain and export take
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bloodcell.config import Config, encode
from bloodcell.data.shardset import ShardSet
from bloodcell.engine.encoder import Encoder, about_set, encode_set
from bloodcell.engine.evaluate import MODEL_FILE, export_weights, judge_table
from bloodcell.engine.feature_table import FeatureTable, read_feature_table
from bloodcell.engine.features import tapped
from bloodcell.engine.inference import evaluating, split_ids
from bloodcell.engine.probe import METHODS, Probe, Samples, settings
from bloodcell.engine.warming import example
from bloodcell.evaluation.predictions import Predictions
from bloodcell.evaluation.source import Source, digest, write_sourced
from bloodcell.models.heads import head_of
from bloodcell.runfolder import RunFolder, environment
from shards.atomic import disk_errors
from shards.console import say
from shards.errors import BadInput

SCHEMA = "bloodcell/probe/1"
RECIPE = "probe"
PARTS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Probing:
    """What a probe is made of.

    Attributes:
        encoder: the network.
        shards: the set.
        method: linear or knn.
        views: of each training sample under the encoder's policy, beside the plain one.
    """

    encoder: Encoder
    shards: ShardSet
    method: str
    views: int = 0

    def parts(self, fold: int) -> dict[str, np.ndarray]:
        """Return the ids of the samples of train, val and (where there is one) test; raises BadInput."""
        found = {}
        for name in PARTS:
            split = self.shards.split_name(name, fold)
            count = self.shards.info.count(split) if split in self.shards.info.splits else 0
            if not count and name != "test":
                why = "it is fitted there" if name == "train" else "its setting is chosen there"
                raise BadInput(f"a probe needs samples in split {split!r}: {why}", self.shards.folder)
            if count:
                found[name] = split_ids(self.shards, split)
        return found

    def features(self, folds: list[int], stored: Path | None) -> list[tuple[FeatureTable | None, bool]]:
        """Return the features of all samples of some folds, and whether a file held them. Collective.

        After them come those of the training samples in each augmented view. Where they must be computed, only the
        first rank has them.

        Raises:
            BadInput: `stored` is no table of features.
        """
        parts = [self.parts(fold) for fold in folds]
        plain = np.unique(np.concatenate([ids for part in parts for ids in part.values()]))
        train = np.unique(np.concatenate([part["train"] for part in parts]))
        return [self._table(train if view else plain, view, stored) for view in range(self.views + 1)]

    def _table(self, ids: np.ndarray, view: int, stored: Path | None) -> tuple[FeatureTable | None, bool]:
        file = None if stored is None else view_file(stored, view)
        if file is not None and file.exists():
            table = read_feature_table(file)
            if table.about == about_set(self.encoder, self.shards, view) and np.isin(ids, table.ids).all():
                return table, True
            if self.encoder.ranks.first:
                say(f"{file} is of another network, set or split: the features are computed anew")
        return encode_set(self.encoder, self.shards, ids, view), False

    def settle(self, folder: Path, fold: int, tables: Sequence[FeatureTable]) -> dict[str, Any]:
        """Fit the probe of one fold, write its folder, return what probe.json holds and the results.

        Args:
            folder: of the probe.
            fold: -1 for a set without folds.
            tables: of the plain images, then of the training samples in each augmented view.
        """
        table, *augmented = tables
        parts = self.parts(fold)
        info = self.shards.info
        labels = {name: np.asarray(self.shards.index["label"][ids], dtype=np.int64) for name, ids in parts.items()}
        shown = [each.of(parts["train"]) for each in tables]
        train = Samples(np.concatenate(shown), np.tile(labels["train"], len(shown)))
        val = Samples(table.of(parts["val"]), labels["val"])
        probe = METHODS[self.method](train, val, len(info.classes))
        run = RunFolder(folder)
        _make(run, self.method)
        about = {"schema": SCHEMA, "method": self.method, **settings(probe), "features": table.about}
        about["views"] = [each.about for each in augmented]
        run.write("probe.json", about)
        if probe.weight is not None:
            self._write_run(run, fold, probe)
        source = digest(folder / MODEL_FILE) if probe.weight is not None else _identity(about)
        results = {}
        for name, ids in parts.items():
            if name != "train":
                split = self.shards.split_name(name, fold)
                predictions = self._predicted(probe, table, ids, run.path.resolve().name, split)
                path = folder / "predictions" / f"{name}.parquet"
                write_sourced(path, predictions, Source(source, info.fingerprint, split), "fp32")
                results[name] = judge_table(folder, name, predictions)
        return {**about, "results": results}

    def _predicted(self, probe: Probe, table: FeatureTable, ids: np.ndarray, run: str, split: str) -> Predictions:
        info = self.shards.info
        rows = self.shards.table(["key", "group"]).take(ids)
        return Predictions(
            ids=ids,
            keys=rows.column("key").to_pylist(),
            labels=np.asarray(self.shards.index["label"][ids], dtype=np.int32),
            groups=rows.column("group").to_pylist(),
            logits=probe.logits(table.of(ids)).astype(np.float32),
            classes=info.classes,
            run=run,
            data=self.shards.folder.name,
            split=split,
            fingerprint=info.fingerprint,
        )

    def _write_run(self, run: RunFolder, fold: int, probe: Probe) -> None:
        config, info, ranks = probe_config(self.encoder.config, fold), self.shards.info, self.encoder.ranks
        attach(self.encoder.model, probe, config, self.encoder.device)
        # The settings that a recipe never holds make sure that no training takes this folder for its own.
        about = {"recipe": RECIPE, "base": encode(config), "config": encode(config)}
        run.create({**about, "fingerprint": info.fingerprint, "classes": info.classes, "leaks": info.leaks})
        threads = {"torch": config.engine.threads, "loader": config.data.threads}
        run.write("environment.json", environment(threads, ranks.launcher, config.engine.device, ranks.world))
        export_weights(run, self.encoder.model, config, info.classes, info.fingerprint)
        run.write("status.json", {"state": "done", "outcome": {"code": 0, "what": "fitted"}, "world": ranks.world})


def view_file(stored: Path, view: int) -> Path:
    """Return where the features of a view are kept: FILE.parquet, then FILE-view1.parquet and so on."""
    return stored.with_stem(f"{stored.stem}-view{view}") if view else stored


def probe_config(config: Config, fold: int) -> Config:
    """Return the config that a linear probe keeps."""
    return replace(config, data=replace(config.data, fold=fold), model=replace(config.model, freeze="backbone"))


def attach(model: nn.Module, probe: Probe, config: Config, device: torch.device) -> None:
    """Make a linear probe the head of the network, and prove on a batch that the network now says what it says.

    Raises:
        BadInput: the network does more behind its features than one linear layer.
    """
    head = head_of(model)[1]
    assert probe.weight is not None
    assert probe.bias is not None
    fix = "probe it with --method knn"
    if not isinstance(head, nn.Linear | nn.Conv2d) or head.bias is None:
        raise BadInput("the network does not end in a linear layer with a bias", config.model.name, fix)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(probe.weight).reshape(head.weight.shape))
        head.bias.copy_(torch.from_numpy(probe.bias))
    images = example(config, device)[0][:2]
    with evaluating(model), tapped(model) as tap, torch.inference_mode():
        logits = model(images).float().cpu().numpy()
        assert tap.held is not None
        expected = probe.logits(tap.held.cpu().numpy())
    if not np.allclose(logits, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max())):
        raise BadInput("the network does more behind its features than one linear layer", config.model.name, fix)


def check_folder(run: RunFolder, method: str) -> None:
    """Raise BadInput if something else than a probe by this method lies where one shall go."""
    before = run.read("probe.json")
    if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
        if not isinstance(before, dict) or before.get("schema") != SCHEMA:
            raise BadInput("something else lies where the probe shall go", run.path, "choose another --run")
        if before.get("method") != method:
            raise BadInput(f"a probe by {before.get('method')} lies there", run.path, "choose another --run")


def _make(run: RunFolder, method: str) -> None:
    check_folder(run, method)
    try:
        with disk_errors(run.path):
            run.path.mkdir(parents=True, exist_ok=True)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise BadInput(f"the folder cannot be written: {error.strerror}", run.path, "choose another --run") from error


def _identity(about: dict[str, Any]) -> str:
    """Return what stands for the weights of a probe that has none."""
    return hashlib.sha256(repr(sorted(about.items())).encode()).hexdigest()
