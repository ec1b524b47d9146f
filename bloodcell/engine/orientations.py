"""Test-time augmentation: the same cell in the eight orientations of the square, its probabilities averaged.

A smear has no up and no left, so every orientation shows an equally good picture of the cell. The orientations are the
dihedral group of the square in a fixed order: 0 as it is, 1 mirrored, 2 and 3 turned by half (and mirrored), 4 to 7 the
same after a quarter turn. Two, four or eight of them are closed under their own turns and flips.
"""

from __future__ import annotations

import math

import torch
from torch import nn

ORIENTATIONS = 8


def orientations_of(tta: str | None) -> int:
    """Return how many orientations the flag --tta (None, "2", "4", "8", "d4") asks for."""
    return ORIENTATIONS if tta == "d4" else int(tta or 1)


def orient(images: torch.Tensor, number: int) -> torch.Tensor:
    """Return square images [n, channels, size, size] in orientation `number`, 0 to 7, in the same memory format."""
    turned = torch.rot90(images, number // 2 % 2 * 2 + number // 4, dims=(2, 3)) if number >= 2 else images
    turned = turned.flip(3) if number % 2 else turned
    if turned is images:
        return images
    last = images.is_contiguous(memory_format=torch.channels_last)
    return turned.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def oriented_logits(model: nn.Module, images: torch.Tensor, count: int) -> torch.Tensor:
    """Return the logits of the mean probability over the first `count` orientations, float32 [n, classes].

    One orientation gives the network's own logits.

    Args:
        model: the network, in evaluation mode.
        images: [n, 3, size, size].
        count: 1 to 8.
    """
    if count == 1:
        return model(images).float()
    shown = [model(orient(images, number)).double().log_softmax(dim=1) for number in range(count)]
    return (torch.logsumexp(torch.stack(shown), dim=0) - math.log(count)).float()
