"""Everything a training process needs, built from the resolved config: order, model, strategy, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bloodcell.config import Config
from bloodcell.data.order import BatchOrder, NaturalPlan
from bloodcell.data.pipeline import View
from bloodcell.data.policies import find_policy
from bloodcell.data.shardset import ShardSet
from bloodcell.engine.agree import on_first_rank
from bloodcell.engine.checkpoint import Checkpoints
from bloodcell.engine.ddp import DDP
from bloodcell.engine.inference import Inference
from bloodcell.engine.losses import build_loss
from bloodcell.engine.meter import Meter
from bloodcell.engine.optim import build_optimizer
from bloodcell.engine.plan import Plan, make_plan
from bloodcell.engine.strategy import Strategy
from bloodcell.models import weights, zoo
from bloodcell.ranks import Ranks, choose_device
from bloodcell.runfolder import RunFolder, Status
from bloodcell.tracking import Tracker, check_tracking
from shards.console import say


@dataclass
class Job:
    """A run in this process; made by prepare()."""

    config: Config
    run: RunFolder
    status: Status
    ranks: Ranks
    device: torch.device
    shards: ShardSet
    order: BatchOrder
    view: View
    plan: Plan
    strategy: Strategy
    loss: nn.Module
    inference: Inference
    checkpoints: Checkpoints
    tracker: Tracker

    def split(self, name: str) -> str:
        """Return the set's name for 'train', 'val' or 'test' under the chosen fold."""
        return self.shards.split_name(name, self.config.data.fold)

    def has(self, name: str) -> bool:
        """Whether the set has this split with samples in it."""
        return self.split(name) in self.shards.info.splits and self.shards.info.count(self.split(name)) > 0

    def save(self, step: int, progress: dict[str, Any], best: bool) -> None:
        """Write a checkpoint. Collective; raises EnvironmentFault on all ranks if the first one cannot write."""
        state = self.strategy.state_dict()

        def write() -> None:
            self.tracker.flush()
            self.checkpoints.save(step, state, progress, best)

        on_first_rank(self.ranks, write)

    def show(self, progress: Any, meter: Meter) -> None:
        """Bring status.json up to date, every few seconds."""
        rate = meter.images / meter.seconds if meter.seconds else 0.0
        self.status.tick(
            state="training",
            step=progress.step,
            steps=self.plan.steps,
            epoch=round(self.plan.epoch(progress.step), 3),
            images_per_s=round(rate, 2),
            data_wait=round(meter.waited / max(meter.seconds, 1e-9), 4),
            lineage=progress.lineage,
        )


def check(config: Config, shards: ShardSet, ranks: Ranks) -> None:
    """Find what can be found before ranks meet and time is spent.

    Raises:
        BadInput: unknown model or policy, a size too small, missing weights, a split the set lacks, a world size that
            does not divide the micro-batches, too few samples.
    """
    zoo.check_size(config.model.name, config.data.size)
    find_policy(config.data.policy)
    if config.model.weights != "none":
        weights.check_readable(Path(config.model.weights))
    for name in ("train", "val"):
        shards.info.count(shards.split_name(name, config.data.fold))
    make_plan(config, make_order(config, shards), ranks)
    if ranks.first:
        check_tracking(config.tracking.wandb, config.tracking.tensorboard)
    choose_device(ranks, config.engine.device)


def make_order(config: Config, shards: ShardSet) -> BatchOrder:
    """Return the order of the training samples."""
    plan = NaturalPlan(shards.ranges(shards.split_name("train", config.data.fold)))
    return BatchOrder(plan, config.train.seed, config.data.micro_batch, config.train.micro_batches)


def make_view(config: Config) -> View:
    """Return how images become input of the model."""
    known = zoo.spec(config.model.name)
    policy = find_policy(config.data.policy)
    return View(config.data.size, known.mean, known.std, policy, config.train.seed, config.engine.channels_last)


def make_model(config: Config, classes: int, say_line: Callable[[str], None] | None) -> nn.Module:
    """Return the network with initial weights from the seed or from the file that the config names."""
    torch.manual_seed(config.train.seed)
    model = zoo.build(config.model.name, classes, config.model.dropout, config.engine.channels_last)
    if config.model.weights != "none":
        report = weights.load_weights(model, Path(config.model.weights))
        if say_line is not None:
            for line in report.lines():
                say_line(line)
    return model


def prepare(config: Config, run: RunFolder, status: Status, ranks: Ranks, shards: ShardSet) -> Job:
    """Build everything; the process group is up. Collective."""
    device = choose_device(ranks, config.engine.device)
    order = make_order(config, shards)
    plan = make_plan(config, order, ranks)
    view = make_view(config)
    model = make_model(config, len(shards.info.classes), say if ranks.first else None).to(device)
    optimizer = build_optimizer(model, config.optim, device)
    micro_batches = config.train.micro_batches
    strategy = DDP(model, optimizer, device, config.engine.precision, config.optim.clip, micro_batches)
    strategy.warm_up(*example(plan.micro_batch, config.data.size, device, config.engine.channels_last))
    inference = make_inference(config, run.path.name, shards, view, device, ranks)
    return Job(
        config=config,
        run=run,
        status=status,
        ranks=ranks,
        device=device,
        shards=shards,
        order=order,
        view=view,
        plan=plan,
        strategy=strategy,
        loss=build_loss(config.optim).to(device),
        inference=inference,
        checkpoints=Checkpoints(run.path / "checkpoints", config.train.keep),
        tracker=Tracker(),
    )


def make_inference(
    config: Config, name: str, shards: ShardSet, view: View, device: torch.device, ranks: Ranks
) -> Inference:
    """Return how the run's network is applied to `shards`, in training and afterwards."""
    return Inference(
        shards=shards,
        view=view,
        batch=config.data.micro_batch,
        threads=config.data.threads,
        device=device,
        precision=config.engine.precision,
        ranks=ranks,
        check=config.data.check,
        name=name,
    )


def example(batch: int, size: int, device: torch.device, channels_last: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch of the run's shape: images float32 [batch, 3, size, size] and labels int64 [batch]."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.linspace(-1, 1, batch * 3 * size * size, device=device).reshape(batch, 3, size, size)
    return images.contiguous(memory_format=layout), torch.zeros(batch, dtype=torch.int64, device=device)
