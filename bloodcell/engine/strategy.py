"""How ranks share the work of a step: one small interface, whatever is behind it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn


class Strategy(Protocol):
    """What the training loop asks of DDP (and of whatever else may stand behind it).

    `model` is the bare network: evaluation and saving use it, training calls forward().
    """

    name: str
    model: nn.Module

    def warm_up(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Compute gradients without leaving a trace, so that step 0 and a resumed step see the same buckets."""

    def rewrap(self) -> None:
        """Take up that other weights need gradients than before: warm_up() must follow. Collective."""

    def slot(self, index: int, slots: int) -> AbstractContextManager[None]:
        """Surround forward and backward of micro-batch `index` of `slots`; only the last one talks to other ranks."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [n, classes] of images [n, 3, size, size], under this run's precision."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a micro-batch's loss, already divided by the number of slots."""

    def step(self, rate: float) -> torch.Tensor:
        """Move the weights at this learning rate; return the gradient norm before clipping, on the device."""

    def averaged(self) -> AbstractContextManager[None]:
        """Hold BatchNorm statistics averaged over ranks inside the block. Collective."""

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return (common, mine): what resuming needs, as nested dicts of tensors and plain values. Collective.

        `common` is the same on every rank and written by the first one; it has the network under "model". `mine` is
        what only this rank holds, written by this rank into a file of its own: {} where there is no such thing. The
        keys of all ranks' `mine` differ somewhere on the way to every leaf, so that merging them loses nothing.
        Tensors may be those that training goes on with: who keeps the state copies them before the next step.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state: `common` and every rank's `mine`, merged into one dict, from any world size.

        Raises:
            BadInput: it belongs to another strategy or model.
        """
