"""A network as a maker of features: of the zoo or of a run, applied to a shard set or to a folder of images."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from bloodcell.config import Config, DataConfig, EngineConfig, ModelConfig
from bloodcell.data.pixels import Pixels
from bloodcell.data.policies import find_policy
from bloodcell.data.shardset import ShardSet
from bloodcell.engine.evaluate import MODEL_FILE, load_model
from bloodcell.engine.feature_table import FeatureTable
from bloodcell.engine.features import tapped
from bloodcell.engine.inference import as_ranges, evaluating
from bloodcell.engine.resolve import resolve
from bloodcell.engine.setup import check_model, make_inference, make_model, make_view
from bloodcell.engine.subject import Device
from bloodcell.models import sources, zoo
from bloodcell.models.weights import sha256
from bloodcell.ranks import Ranks, choose_device
from bloodcell.runfolder import RunFolder
from shards.console import progress, say, warn
from shards.errors import BadInput, Fault
from shards.images import UnusableImageError, decode
from shards.parallel import chunked
from shards.sources import Item

COLUMNS = ["key", "split", "label", "class", "group", "source"]


@dataclass(frozen=True, eq=False)
class Encoder:
    """A network whose features are wanted.

    Attributes:
        config: resolved for this machine; its set is the one that is looked at.
        model: on its device.
        about: what the features follow from, beside the images: model, sha256 of the weights, size, precision.
        ranks: this process's place.
    """

    config: Config
    model: nn.Module
    about: dict[str, Any]
    ranks: Ranks

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return choose_device(self.ranks, self.config.engine.device)


def zoo_encoder(
    model: ModelConfig,
    classes: int,
    size: int | None,
    batch: int,
    data: Path,
    device: Device,
    ranks: Ranks,
    policy: str = "none",
) -> Encoder:
    """Return a network of the zoo with the weights that `model` asks for, and a fresh head.

    Args:
        model: name and weights.
        classes: outputs of the fresh head.
        size: side of the input in pixels, None for the model's own.
        batch: images that pass through the network at once.
        data: the set or folder.
        device: auto, cpu or cuda.
        ranks: this process's place.
        policy: of augmented views.

    Raises:
        BadInput: no such model or policy, weights that are not there or not its own, or a size that it cannot take.
    """
    asked = DataConfig(set=str(data), size=size or zoo.spec(model.name).size, policy=policy, micro_batch=batch)
    engine = EngineConfig(device=device, precision="fp32")
    config = resolve(Config(model=model, data=asked, engine=engine), ranks)
    check_model(config)
    find_policy(policy)
    file = sources.find(model.name, model.weights)
    network = make_model(config, classes, say if ranks.first else None).to(choose_device(ranks, engine.device))
    return Encoder(config, network, _about(config, sha256(file) if file else "none"), ranks)


def run_encoder(path: Path, batch: int, data: Path | None, device: Device, ranks: Ranks) -> Encoder:
    """Return the trained network of a run, to be shown its own set (`data` is None) or any other images.

    Raises:
        BadInput: no run, or unfinished.
    """
    stored = RunFolder(path).config()
    engine = replace(stored.engine, device=device, threads=0, precision="fp32")
    shown = replace(stored.data, set=str(data or stored.data.set), micro_batch=batch, threads=0)
    config = resolve(replace(stored, engine=engine, data=shown), ranks)
    model, _ = load_model(RunFolder(path), config)
    network = model.to(choose_device(ranks, device))
    return Encoder(config, network, _about(config, sha256(path / MODEL_FILE)), ranks)


def _about(config: Config, weights: str) -> dict[str, Any]:
    precision = config.engine.precision
    return {"model": config.model.name, "weights": weights, "size": config.data.size, "precision": precision}


def encode_set(encoder: Encoder, shards: ShardSet, ids: np.ndarray, augmented: int = 0) -> FeatureTable | None:
    """Return the features of some samples of a set on the first rank, None on the others. Collective.

    Args:
        encoder: the network.
        shards: the set.
        ids: int64 [samples], ascending.
        augmented: 0 shows the images as they are, n > 0 in their n-th view under the encoder's policy.

    Raises:
        EnvironmentFault: a sample cannot be read.
        Fault: a sample is missing or doubled, or a feature is not finite.
    """
    config = encoder.config
    inference = make_inference(config, "features", shards, make_view(config), encoder.device, encoder.ranks)
    with tapped(encoder.model) as tap:
        doing = f"computing features, view {augmented}" if augmented else "computing features"
        found = inference.outputs(tap, as_ranges(ids), doing, augmented)
    if found is None:
        return None
    place = np.argsort(found[0], kind="stable")
    if not np.array_equal(found[0][place], ids):
        raise Fault(f"the features do not hold each of {len(ids):,} samples exactly once", shards.folder)
    rows = shards.table(COLUMNS).take(ids).add_column(0, "id", pa.array(ids))
    return FeatureTable(rows, found[1][place], about_set(encoder, shards, augmented))


def about_set(encoder: Encoder, shards: ShardSet, augmented: int = 0) -> dict[str, Any]:
    """Return what the features of a set follow from."""
    view = {"policy": encoder.config.data.policy, "view": augmented} if augmented else {}
    return {**encoder.about, **view, "data": shards.folder.name, "fingerprint": shards.info.fingerprint}


def encode_files(encoder: Encoder, items: Sequence[Item]) -> FeatureTable:
    """Return the features of image files; what cannot be decoded has no row, and is counted in a warning.

    The pixels are those that the same file has in a shard set.

    Raises:
        BadInput: no image can be decoded.
    """
    batch, threads = encoder.config.data.micro_batch, encoder.config.data.threads
    pixels = Pixels(make_view(encoder.config), batch, threads, encoder.device)
    seen: list[Item] = []
    values: list[torch.Tensor] = []
    with (
        ThreadPoolExecutor(threads) as pool,
        evaluating(encoder.model),
        tapped(encoder.model) as tap,
        torch.inference_mode(),
    ):
        for chunk in progress(chunked(items, batch), "computing features", -(-len(items) // batch)):
            decoded = list(pool.map(_decoded, chunk))
            pictures = [rgb for rgb in decoded if rgb is not None]
            if pictures:
                seen += [item for item, rgb in zip(chunk, decoded, strict=True) if rgb is not None]
                values.append(tap(pixels(pictures))[: len(pictures)].cpu())
    if not seen:
        raise BadInput("no image can be decoded", items[0].path.parent, "`bloodcell scan` says why")
    if len(seen) < len(items):
        warn(f"{len(items) - len(seen)} images cannot be decoded: they have no features")
    classes = sorted({item.label for item in items})
    rows = {
        "id": pa.array(np.arange(len(seen), dtype=np.int64)),
        "key": [""] * len(seen),
        "split": [item.part for item in seen],
        "label": pa.array([classes.index(item.label) for item in seen], pa.int32()),
        "class": [item.label for item in seen],
        "group": [item.group for item in seen],
        "source": [item.source for item in seen],
    }
    return FeatureTable(pa.table(rows), torch.cat(values).numpy(), encoder.about)


def _decoded(item: Item) -> np.ndarray | None:
    try:
        return decode(item.path.read_bytes())[0]
    except (UnusableImageError, OSError):
        return None
