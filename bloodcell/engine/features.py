"""What the last layer of a network is given: the features of chosen images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from bloodcell.data.loader import Loader, evaluation_requests
from bloodcell.data.order import EvaluationOrder
from bloodcell.data.policies import POLICIES
from bloodcell.data.shardset import Reader, ShardSet
from bloodcell.engine.inference import Inference, as_ranges, evaluating
from bloodcell.models.heads import head_of
from shards.features import compute
from shards.images import decode


def penultimate(inference: Inference, model: nn.Module, ids: np.ndarray) -> np.ndarray:
    """Return the inputs of the classifier for some images, float32 [images, features]; maps are averaged.

    Args:
        inference: how the network is applied; only this rank works.
        model: the network, on its device.
        ids: int64 [images], ascending.

    Raises:
        BadInput: the network has no classifier layer.
        EnvironmentFault: an image cannot be read.
    """
    order = EvaluationOrder(as_ranges(ids), inference.batch)
    view = replace(inference.view, policy=POLICIES["none"])
    how = (inference.batch, inference.threads, inference.device, inference.reading)
    loader = Loader(inference.shards, evaluation_requests(order, 1, 0), view, *how)
    with evaluating(model), tapped(model) as tap, loader, torch.inference_mode():
        seen = [tap(batch.images) for batch in loader]
    return torch.cat(seen)[: order.length].cpu().numpy()


class Tap(nn.Module):
    """Gives what the classifier of a network is given, in place of the logits; made by tapped()."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.held: torch.Tensor | None = None

    def keep(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Take in the inputs of the classifier (a forward hook)."""
        values = inputs[0].detach().float()
        self.held = values.mean(dim=(2, 3)) if values.ndim == 4 else values.flatten(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return features float32 [n, features] of images [n, 3, size, size]; of maps the mean over places."""
        self.model(images)
        assert self.held is not None
        return self.held


@contextlib.contextmanager
def tapped(model: nn.Module) -> Iterator[Tap]:
    """Yield a network that gives the features of `model`; raises BadInput if that has no classifier layer."""
    head, tap = head_of(model)[1], Tap(model)
    hook = head.register_forward_pre_hook(tap.keep)
    try:
        yield tap
    finally:
        hook.remove()


def image_quantities(shards: ShardSet, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Return plain quantities of some images, each float64 [images].

    red, green, blue: means, 0..255; contrast: standard deviation of the pixels, mean of the channels; sharpness:
    variance of the Laplacian; width, height: pixels.

    Raises:
        EnvironmentFault: an image cannot be read.
    """
    reader = Reader(shards)
    try:
        found = [compute(decode(reader.read(int(i)).tobytes())[0]) for i in ids]
    finally:
        reader.close()
    means = np.stack([record["mean"] for record in found]).astype(np.float64)
    return {
        **{name: means[:, place] for place, name in enumerate(("red", "green", "blue"))},
        "contrast": np.array([record["std"].mean() for record in found], dtype=np.float64),
        "sharpness": np.array([record["sharpness"] for record in found], dtype=np.float64),
        "width": shards.index["width"][ids].astype(np.float64),
        "height": shards.index["height"][ids].astype(np.float64),
    }


def sample(ids: np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` of ascending ids, at equal distances."""
    if len(ids) <= most:
        return ids
    return ids[np.linspace(0, len(ids) - 1, most).round().astype(np.int64)]
