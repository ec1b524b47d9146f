"""The loss from the config: cross-entropy and what it is bent by when classes are rare, hard or mixed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bloodcell.config import LossConfig
from shards.errors import BadInput, nearest


class Loss(nn.Module):
    """Mean over a micro-batch of a weighted, focused, adjusted cross-entropy.

    With all options off it is torch's cross-entropy. A class weight multiplies a sample's loss and the mean is taken
    over samples, not over weights, so that the loss of a global batch does not depend on how it is cut.

    Args:
        smoothing: label smoothing (Szegedy et al., Rethinking the Inception Architecture, 2016).
        gamma: of the focal loss (Lin et al., Focal Loss for Dense Object Detection, 2017); 0 is cross-entropy.
        weights: of the classes, float32 [classes], or None.
        adjustment: added to the logits, float32 [classes], or None (Menon et al., Long-tail Learning via Logit
            Adjustment, 2021).
        jsd: weight of the divergence between three views of each sample (Hendrycks et al., AugMix, 2020); 0 is off.
    """

    weights: torch.Tensor | None
    adjustment: torch.Tensor | None

    def __init__(
        self,
        smoothing: float = 0.0,
        gamma: float = 0.0,
        weights: torch.Tensor | None = None,
        adjustment: torch.Tensor | None = None,
        jsd: float = 0.0,
    ) -> None:
        super().__init__()
        self.smoothing, self.gamma, self.jsd = smoothing, gamma, jsd
        self.register_buffer("weights", weights)
        self.register_buffer("adjustment", adjustment)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return a scalar.

        Args:
            logits: float32 [n, classes]; with `jsd` [3 * n, classes], all samples in their first view first: labels
                are compared with that one.
            target: labels int64 [n], or probabilities float32 [n, classes] where images were mixed.
        """
        if self.jsd:
            views = logits.chunk(VIEWS)
            return self._entropy(views[0], target) + self.jsd * divergence(views)
        return self._entropy(logits, target)

    def _entropy(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.adjustment is not None:
            logits = logits + self.adjustment
        if self.gamma == 0 and self.weights is None:
            return functional.cross_entropy(logits, target, label_smoothing=self.smoothing)
        classes = logits.shape[1]
        if target.ndim == 1:
            target = functional.one_hot(target, classes).to(logits.dtype)
        if self.weights is not None:
            weight = target @ self.weights
        smoothed = target * (1 - self.smoothing) + self.smoothing / classes
        log = functional.log_softmax(logits, dim=1)
        losses = -(smoothed * (1 - log.exp()) ** self.gamma * log).sum(dim=1)
        return (losses * weight if self.weights is not None else losses).mean()


VIEWS = 3
"""Views of each sample that are compared with each other: one clean, two augmented."""


def divergence(views: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the Jensen-Shannon divergence of several views, a scalar: the mean over samples, in nats.

    Args:
        views: logits float32 [n, classes] of each.
    """
    logs = torch.stack([functional.log_softmax(view, dim=1) for view in views])
    middle = logs.logsumexp(dim=0) - math.log(len(views))
    return (logs.exp() * (logs - middle)).sum(dim=2).mean()


def build_loss(config: LossConfig, classes: Sequence[str], counts: Sequence[int]) -> Loss:
    """Return the loss of a run.

    Args:
        config: what was asked for.
        classes: class names in index order.
        counts: training samples of each class in an epoch.

    Raises:
        BadInput: class weights that do not fit the classes, or a class without samples to derive its weight from.
    """
    weights = class_weights(config.class_weights, classes, counts)
    adjustment = None
    if config.logit_adjustment:
        _check_present("loss.logit_adjustment", classes, counts)
        shares = np.asarray(counts, dtype=np.float64) / sum(counts)
        adjustment = torch.tensor(config.logit_adjustment * np.log(shares), dtype=torch.float32)
    return Loss(
        config.label_smoothing,
        config.gamma if config.name == "focal" else 0.0,
        None if weights is None else torch.tensor(weights, dtype=torch.float32),
        adjustment,
        config.jsd,
    )


def class_weights(text: str, classes: Sequence[str], counts: Sequence[int]) -> list[float] | None:
    """Return the weight of each class, None for all alike.

    `balanced` gives samples / (classes * samples of the class): 1 on average over the samples.

    Raises:
        BadInput: an unknown class, a class without a weight, a weight that is no positive number.
    """
    where = "loss.class_weights"
    if text == "none":
        return None
    if text == "balanced":
        _check_present(where, classes, counts)
        return [sum(counts) / (len(counts) * count) for count in counts]
    given: dict[str, float] = {}
    for entry in text.split(","):
        name, equals, number = (part.strip() for part in entry.rpartition("="))
        if not equals or not _positive(number):
            example = ",".join(f"{name}=1" for name in classes)
            raise BadInput(f"not a class weight: {entry!r}", where, f"give none, balanced or {example}")
        if name not in classes:
            raise BadInput(
                f"no class {name!r}", where, nearest(name, list(classes)) or f"classes are {', '.join(classes)}"
            )
        given[name] = float(number)
    missing = [name for name in classes if name not in given]
    if missing:
        raise BadInput(f"{len(given)} weights for {len(classes)} classes", where, f"add {', '.join(missing)}")
    return [given[name] for name in classes]


def _positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


def _check_present(where: str, classes: Sequence[str], counts: Sequence[int]) -> None:
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        raise BadInput(f"class {empty[0]!r} has no training sample", where, "leave the option out or add images")
