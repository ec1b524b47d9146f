"""Occlusion: how much the probability of a class falls when a patch is hidden (Zeiler and Fergus, ECCV 2014)."""

from __future__ import annotations

import torch
from torch import nn

from bloodcell.explain.gradcam import scaled

PATCHES = 5
"""Patches side by side; they overlap by half, so there are (2 * PATCHES - 1) squared positions."""


class Occlusion:
    """Occlusion maps of any network. A patch is filled with the median colour of its image.

    Args:
        model: in evaluation mode, on its device.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Return the maps, float32 [n, h, w] in 0..1: the mean fall over the patches that cover a pixel."""
        rows = classes[:, None]
        whole = self.model(images).softmax(dim=1).gather(1, rows)[:, 0]
        fill = median_colour(images)
        falls, cover = images.new_zeros(images.shape[0], *images.shape[2:]), images.new_zeros(images.shape[2:])
        for top, bottom in _stretches(images.shape[2]):
            for left, right in _stretches(images.shape[3]):
                hidden = images.clone()
                hidden[:, :, top:bottom, left:right] = fill
                left_over = self.model(hidden).softmax(dim=1).gather(1, rows)[:, 0]
                falls[:, top:bottom, left:right] += (whole - left_over).float()[:, None, None]
                cover[top:bottom, left:right] += 1
        return scaled((falls / cover).clamp(min=0))


def median_colour(images: torch.Tensor) -> torch.Tensor:
    """Return the median of each channel of each image, [n, 3, 1, 1]."""
    return images.flatten(2).median(dim=2).values[:, :, None, None]


def _stretches(length: int) -> list[tuple[int, int]]:
    """Return the patches along one side as half-open ranges; they cover all of it."""
    edges = [round(k * length / (2 * PATCHES)) for k in range(2 * PATCHES + 1)]
    return list(zip(edges, edges[2:], strict=False))
