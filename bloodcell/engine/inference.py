"""Logits of every sample of a split, once each, on any number of ranks: fixed-shape batches, gathered, proven by id."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from bloodcell.data.loader import Batch, Loader, evaluation_requests
from bloodcell.data.order import EvaluationOrder
from bloodcell.data.pipeline import View
from bloodcell.data.policies import POLICIES
from bloodcell.data.shardset import ShardSet
from bloodcell.engine.ddp import autocast
from bloodcell.evaluation.predictions import Predictions, assemble
from bloodcell.ranks import Ranks
from shards.console import progress


@dataclass(frozen=True)
class Inference:
    """How a network is applied to a set.

    Attributes:
        shards: the set.
        view: how images become input; its policy is not used.
        batch: images that pass through the network at once.
        threads: decoding threads.
        device: of this rank.
        precision: fp32, bf16 or fp16.
        ranks: this process's place.
        check: compare every image with its checksum.
        name: of the run, for the table.
    """

    shards: ShardSet
    view: View
    batch: int
    threads: int
    device: torch.device
    precision: str
    ranks: Ranks
    check: bool
    name: str

    def __call__(self, model: nn.Module, split: str) -> Predictions | None:
        """Return the predictions of all samples of `split` on the first rank, None on the others. Collective.

        Raises:
            EnvironmentFault: a sample cannot be read.
            Fault: a sample is missing or doubled, or a logit is not finite.
        """
        order = EvaluationOrder(self.shards.ranges(split), self.batch)
        view = replace(self.view, policy=POLICIES["none"])
        requests = evaluation_requests(order, self.ranks.world, self.ranks.rank)
        was_training = model.training
        model.eval()
        with Loader(self.shards, requests, view, self.batch, self.threads, self.device, self.check) as loader:
            batches: Iterable[Batch] = loader
            if self.ranks.first:
                batches = progress(loader, f"evaluating {split}", order.batches_per_rank(self.ranks.world))
            ids, logits, valid = self._apply(model, batches)
        model.train(was_training)
        return self._collect(split, order, ids, logits, valid)

    @torch.inference_mode()
    def _apply(self, model: nn.Module, batches: Iterable[Batch]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return ids int64 [n], logits float32 [n, classes] and valid bool [n] of this rank, on the host."""
        ids, logits, valid = [], [], []
        for batch in batches:
            with autocast(self.device, self.precision):
                logits.append(model(batch.images).float())
            ids.append(torch.from_numpy(batch.request.ids))
            valid.append(torch.from_numpy(batch.request.valid))
        return torch.cat(ids), torch.cat(logits).cpu(), torch.cat(valid)

    def _collect(
        self, split: str, order: EvaluationOrder, ids: torch.Tensor, logits: torch.Tensor, valid: torch.Tensor
    ) -> Predictions | None:
        parts = [gather(values) for values in (ids, logits, valid.to(torch.uint8))]
        if not self.ranks.first:
            return None
        all_ids, all_logits, counts = (torch.cat(part).numpy() for part in parts if part is not None)
        table = self.shards.table(["key", "group"])
        keep = counts.astype(bool)
        expected = np.concatenate([np.arange(first, last) for first, last in order.ranges])
        return assemble(
            ids=all_ids[keep],
            logits=all_logits[keep],
            expected_ids=expected,
            keys=table.column("key").take(expected).to_pylist(),
            labels=np.asarray(self.shards.index["label"][expected]),
            groups=table.column("group").take(expected).to_pylist(),
            classes=self.shards.info.classes,
            run=self.name,
            data=self.shards.folder.name,
            split=split,
            fingerprint=self.shards.info.fingerprint,
        )


def gather(values: torch.Tensor) -> list[torch.Tensor] | None:
    """Return the equally shaped host tensors of all ranks on the first one, None on the others. Collective."""
    world, first = dist.get_world_size(), dist.get_rank() == 0
    if world == 1:
        return [values]
    parts = [torch.empty_like(values) for _ in range(world)] if first else None
    dist.gather(values.contiguous(), parts)
    return parts
