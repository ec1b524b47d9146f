"""Logits of every sample of a split, once each, on any number of ranks: fixed-shape batches, gathered, proven by id."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from bloodcell.data.loader import Batch, Loader, evaluation_requests
from bloodcell.data.order import EvaluationOrder
from bloodcell.data.pipeline import View
from bloodcell.data.policies import POLICIES
from bloodcell.data.reading import Reading
from bloodcell.data.shardset import ShardSet
from bloodcell.engine.agree import raise_together
from bloodcell.engine.ddp import autocast
from bloodcell.engine.orientations import oriented_logits
from bloodcell.engine.preemption import stoppable
from bloodcell.evaluation.external import LabelMap
from bloodcell.evaluation.predictions import Predictions, assemble
from bloodcell.ranks import Ranks
from shards.console import progress
from shards.errors import Unreadable

ALL = "all"
"""Name for all samples of a set, whatever their split."""


@dataclass(frozen=True)
class Inference:
    """How a network is applied to a set.

    Attributes:
        shards: the set.
        view: how images become input; its policy is used only where augmented views are asked for.
        batch: images that pass through the network at once.
        threads: decoding threads.
        device: of this rank.
        precision: fp32, bf16 or fp16.
        ranks: this process's place.
        reading: how samples are read; a table of predictions never leaves one out.
        name: of the run, for the table.
        orientations: in how many of the eight orientations each image is shown; probabilities are averaged.
        labels: how the classes of the set become those of the network, None where they are the same.
    """

    shards: ShardSet
    view: View
    batch: int
    threads: int
    device: torch.device
    precision: str
    ranks: Ranks
    reading: Reading
    name: str
    orientations: int = 1
    labels: LabelMap | None = None

    def __call__(self, model: nn.Module, split: str) -> Predictions | None:
        """Return the predictions of all samples of `split` on the first rank, None on the others. Collective.

        `split` may be ALL. Samples that the label map leaves out are not looked at.

        Raises:
            BadInput: no sample of the split has a class of the network.
            Unreadable: a sample cannot be read; on all ranks alike.
            Stopped: a signal asked a rank to stop (only while a run trains).
            Fault: a sample is missing or doubled, or a logit is not finite.
        """
        ranges = self.ranges(split)
        found = self.outputs(model, ranges, f"evaluating {split}")
        return None if found is None else self._assembled(split, ranges, *found)

    def outputs(
        self, model: nn.Module, ranges: np.ndarray, doing: str, augmented: int = 0
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return ids int64 [n] and outputs float32 [n, width] of some samples on the first rank, in no fixed order.

        None on the other ranks. Collective.

        Args:
            model: gives float [n, width] for images [n, 3, size, size].
            ranges: of the samples' ids, half-open, int64 [ranges, 2].
            doing: what is being done, for the progress line.
            augmented: 0 shows the images as they are, n > 0 in their n-th view under the view's policy.
        """
        order = EvaluationOrder(ranges, self.batch)
        view = self.view if augmented else replace(self.view, policy=POLICIES["none"])
        requests = evaluation_requests(order, self.ranks.world, self.ranks.rank, max(0, augmented - 1))
        loader = Loader(self.shards, requests, view, self.batch, self.threads, self.device, self.reading)
        with evaluating(model), loader:
            batches: Iterable[Batch] = loader
            if self.ranks.first:
                batches = progress(loader, doing, order.batches_per_rank(self.ranks.world))
            mine = self._together(model, batches)
        parts = [gather(values) for values in mine]
        if not self.ranks.first:
            return None
        ids, values, valid = (torch.cat(part).numpy() for part in parts if part is not None)
        keep = valid.astype(bool)
        return ids[keep], values[keep]

    def ranges(self, split: str) -> np.ndarray:
        """Return the ids of the samples that are predicted as half-open ranges, int64 [ranges, 2]."""
        ids = split_ids(self.shards, split)
        return as_ranges(ids if self.labels is None else ids[self.labels.kept(self.shards.index["label"][ids])])

    def _together(self, model: nn.Module, batches: Iterable[Batch]) -> tuple[torch.Tensor, ...]:
        """Apply the network; a sample that this rank cannot read is everybody's error. Collective."""
        problem: Unreadable | None = None
        try:
            mine = self._apply(model, batches)
        except Unreadable as error:
            problem = error
        raise_together(problem)
        return mine

    @torch.inference_mode()
    def _apply(self, model: nn.Module, batches: Iterable[Batch]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return ids int64 [n], outputs float32 [n, width] and valid uint8 [n] of this rank, on the host."""
        ids, logits, valid = [], [], []
        for batch in stoppable(batches, "an evaluation is not finished"):
            with autocast(self.device, self.precision):
                logits.append(oriented_logits(model, batch.images, self.orientations))
            ids.append(torch.from_numpy(batch.request.ids))
            valid.append(torch.from_numpy(batch.request.valid))
        return torch.cat(ids), torch.cat(logits).cpu(), torch.cat(valid).to(torch.uint8)

    def _assembled(self, split: str, ranges: np.ndarray, ids: np.ndarray, logits: np.ndarray) -> Predictions:
        table = self.shards.table(["key", "group"])
        expected = np.concatenate([np.arange(first, last) for first, last in ranges])
        labels = np.asarray(self.shards.index["label"][expected])
        return assemble(
            ids=ids,
            logits=logits,
            expected_ids=expected,
            keys=table.column("key").take(expected).to_pylist(),
            labels=labels if self.labels is None else self.labels.index[labels],
            groups=table.column("group").take(expected).to_pylist(),
            classes=self.shards.info.classes if self.labels is None else self.labels.classes,
            run=self.name,
            data=self.shards.folder.name,
            split=split,
            fingerprint=self.shards.info.fingerprint,
        )


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the network into evaluation mode inside the block; then each of its modules back into its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def split_ids(shards: ShardSet, split: str) -> np.ndarray:
    """Return the ids of the samples of a split, or of ALL, int64 [samples], ascending."""
    if split == ALL:
        return np.arange(len(shards.index), dtype=np.int64)
    ranges = [np.arange(first, last, dtype=np.int64) for first, last in shards.ranges(split)]
    return np.concatenate([np.empty(0, dtype=np.int64), *ranges])


def as_ranges(ids: np.ndarray) -> np.ndarray:
    """Return ascending ids as half-open ranges [first, last), int64 [ranges, 2]."""
    breaks = np.flatnonzero(np.diff(ids) != 1)
    if not len(ids):
        return np.empty((0, 2), dtype=np.int64)
    return np.stack([ids[np.r_[0, breaks + 1]], ids[np.r_[breaks, len(ids) - 1]] + 1], axis=1)


def gather(values: torch.Tensor) -> list[torch.Tensor] | None:
    """Return the equally shaped host tensors of all ranks on the first one, None on the others. Collective."""
    world, first = dist.get_world_size(), dist.get_rank() == 0
    if world == 1:
        return [values]
    parts = [torch.empty_like(values) for _ in range(world)] if first else None
    dist.gather(values.contiguous(), parts)
    return parts
