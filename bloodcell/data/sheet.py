"""Contact sheets: what a policy makes of images, by the pipeline that training uses."""

from __future__ import annotations

import numpy as np
import torch

from bloodcell.data.loader import Loader
from bloodcell.data.pipeline import View
from bloodcell.data.policies import POLICIES, Policy
from bloodcell.data.request import Request
from bloodcell.data.shardset import ShardSet

GAP = 2
"""White pixels between the images of a sheet."""


def contact_sheet(shards: ShardSet, policy: Policy, ids: np.ndarray, columns: int, size: int, seed: int) -> np.ndarray:
    """Return a picture, uint8 [height, width, 3]: a row for each sample, first without augmentation, then its draws.

    Args:
        shards: the opened set.
        policy: to show.
        ids: the samples, int64 [rows].
        columns: images in a row: the first as it is, then occurrences 0, 1, ... in epoch 0.
        size: of an image, pixels.
        seed: of the draws.

    Raises:
        EnvironmentFault: a sample cannot be read or decoded.
    """
    drawn = _shown(shards, policy, np.repeat(ids, columns - 1), np.tile(np.arange(columns - 1), len(ids)), size, seed)
    plain = _shown(shards, POLICIES["none"], ids, np.zeros_like(ids), size, seed)
    images = np.concatenate([plain[:, None], drawn.reshape(len(ids), columns - 1, size, size, 3)], axis=1)
    step = size + GAP
    sheet = np.full((len(ids) * step - GAP, columns * step - GAP, 3), 255, dtype=np.uint8)
    for row, line in enumerate(images):
        for column, image in enumerate(line):
            sheet[row * step : row * step + size, column * step : column * step + size] = image
    return sheet


def _shown(
    shards: ShardSet, policy: Policy, ids: np.ndarray, occurrences: np.ndarray, size: int, seed: int
) -> np.ndarray:
    view = View(size, (0.0,) * 3, (1.0,) * 3, policy, seed)
    request = Request(ids, occurrences, 0, np.ones(len(ids), dtype=bool))
    with Loader(shards, iter([request]), view, len(ids), 1, torch.device("cpu")) as loader:
        (batch,) = loader
    pixels: np.ndarray = (batch.images.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    return pixels
