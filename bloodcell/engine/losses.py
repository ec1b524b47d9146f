"""The loss from the config."""

from __future__ import annotations

from torch import nn

from bloodcell.config import OptimConfig


def build_loss(config: OptimConfig) -> nn.Module:
    """Return cross-entropy over logits [n, classes] and labels int64 [n], with label smoothing (Szegedy et al., 2016)."""
    return nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
