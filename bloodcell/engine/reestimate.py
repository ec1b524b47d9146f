"""BatchNorm's running statistics estimated anew for averaged weights, over micro-batches of the training split.

Statistics that were gathered while the weights moved belong to none of the weights that an average is made of, and far
less to the average itself (Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, UAI
2018, section 3.2).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bloodcell.data.loader import Loader
from bloodcell.data.request import Request
from bloodcell.engine.batchnorm import BatchNormStatistics
from bloodcell.engine.ddp import autocast
from bloodcell.engine.inference import Inference, evaluating, split_ids

MOST = 200
"""Micro-batches that are looked at: the mean of so many hardly moves any more, however large a split is."""


@torch.no_grad()
def estimate_statistics(
    model: nn.Module, inference: Inference, split: str, seed: int, modules: Sequence[_BatchNorm] | None = None
) -> int:
    """Set BatchNorm's running statistics to their mean over micro-batches of a split. Collective.

    Every rank ends with the same values, to the bit those of any other number of ranks: the micro-batches are the same,
    and their statistics are added in one order. The images are augmented as the view says; micro-batches are drawn
    without replacement, at most MOST of them, and the tail that fills none is left out.

    Args:
        model: on the inference's device; left in the mode in which it was.
        inference: how the network is shown images; its view's policy is used here.
        split: the set's name of the split.
        seed: of the draw.
        modules: whose statistics are estimated; None is all that have some.

    Returns:
        How many micro-batches were looked at; 0 where the network has no such statistics.
    """
    statistics = BatchNormStatistics(model, modules)
    if not statistics.modules:
        return 0
    ranks = inference.ranks
    batches = _drawn(split_ids(inference.shards, split), inference.batch, seed)
    mine = batches[ranks.rank :: ranks.world]
    total = torch.zeros_like(statistics.read(), dtype=torch.float64)
    momenta = [module.momentum for module in statistics.modules]
    images = _images(inference, mine)
    with evaluating(model):
        for module in statistics.modules:
            module.train()
            module.momentum = 1.0  # what runs is the last micro-batch's own
        for first in range(0, len(batches), ranks.world):
            if first + ranks.rank < len(batches):
                with autocast(inference.device, inference.precision):
                    model(next(images))
            rows = statistics.gather(statistics.read())
            for row in rows[: len(batches) - first]:
                total += row
        for module, momentum in zip(statistics.modules, momenta, strict=True):
            module.momentum = momentum
        images.close()
        statistics.write((total / len(batches)).float())
        statistics.count_steps(len(batches))
    return len(batches)


def _drawn(ids: np.ndarray, batch: int, seed: int) -> np.ndarray:
    """Return the ids of the micro-batches, int64 [micro-batches, size]; a split smaller than one is one."""
    size = min(batch, len(ids))
    count = min(len(ids) // size, MOST)
    return np.random.default_rng(seed).permutation(ids)[: count * size].reshape(count, size)


def _images(inference: Inference, batches: np.ndarray) -> Generator[torch.Tensor, None, None]:
    """Yield the images of micro-batches, augmented as the view says."""
    if not len(batches):
        return
    requests = (Request(ids, np.zeros_like(ids), 0, np.ones(len(ids), dtype=bool)) for ids in batches)
    size = batches.shape[1]
    how = (size, inference.threads, inference.device, inference.reading)
    with Loader(inference.shards, requests, inference.view, *how) as loader:
        for batch in loader:
            yield batch.images
