"""The loss from the config."""

from __future__ import annotations

from torch import nn

from bloodcell.config import OptimConfig


def build_loss(config: OptimConfig) -> nn.Module:
    """Return cross-entropy of logits [n, classes] and labels int64 [n], label smoothing as in Szegedy et al., 2016."""
    return nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
