"""Passes through a network before the first step, which leave no trace in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from bloodcell.config import Config


def example(config: Config, device: torch.device, size: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a micro-batch of the run's shape: images float32 [batch, 3, size, size] and labels int64 [batch].

    `size`: of the images, data.size unless given.
    """
    batch, size = config.data.micro_batch, size or config.data.size
    layout = torch.channels_last if config.engine.channels_last else torch.contiguous_format
    images = torch.linspace(-1, 1, batch * 3 * size * size, device=device).reshape(batch, 3, size, size)
    return images.contiguous(memory_format=layout), torch.zeros(batch, dtype=torch.int64, device=device)


@contextlib.contextmanager
def untraced(model: nn.Module) -> Iterator[None]:
    """Give the buffers of a network the values back that they had before the block, and drop all gradients."""
    buffers = [buffer.detach().clone() for buffer in model.buffers()]
    yield
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
