"""Chosen images of a set as the network sees them, and back as pixels for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from bloodcell.data.loader import Loader
from bloodcell.data.pipeline import View
from bloodcell.data.policies import POLICIES
from bloodcell.data.request import Request
from bloodcell.data.shardset import ShardSet


@dataclass(frozen=True)
class Images:
    """The images of a set, under the view of a run and without augmentation.

    Attributes:
        shards: the set.
        view: how images become input.
        batch: images at once.
        threads: decoding threads.
        device: where the batches shall be.
    """

    shards: ShardSet
    view: View
    batch: int
    threads: int
    device: torch.device

    def batches(self, ids: Sequence[int]) -> Iterator[torch.Tensor]:
        """Yield the samples `ids` in their order, float32 [n, 3, size, size], n at most `batch`, normalised."""
        view = replace(self.view, policy=POLICIES["none"])
        with Loader(self.shards, self._requests(ids), view, self.batch, self.threads, self.device) as loader:
            for batch in loader:
                yield batch.images[: int(batch.valid.sum())]

    def pixels(self, images: torch.Tensor) -> np.ndarray:
        """Return normalised images [n, 3, h, w] as uint8 [n, h, w, 3]."""
        mean, std = (images.new_tensor(v)[None, :, None, None] for v in (self.view.mean, self.view.std))
        shown = ((images * std + mean) * 255).round().clamp(0, 255)
        return shown.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()

    def _requests(self, ids: Sequence[int]) -> Iterator[Request]:
        for begin in range(0, len(ids), self.batch):
            some = np.array(ids[begin : begin + self.batch], dtype=np.int64)
            valid = np.arange(self.batch) < len(some)
            full = np.concatenate([some, np.repeat(some[-1:], self.batch - len(some))])
            yield Request(full, np.zeros_like(full), 0, valid)
