"""Everything a training process needs, built from the resolved config: order, model, strategy, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bloodcell.config import Config, override
from bloodcell.data.backends import describe_backend
from bloodcell.data.mixing import Mixing
from bloodcell.data.order import BatchOrder, SamplingPlan
from bloodcell.data.pipeline import View
from bloodcell.data.policies import POLICIES, find_policy
from bloodcell.data.resident import Cache
from bloodcell.data.sampling import dealt, describe
from bloodcell.data.shardset import ShardSet
from bloodcell.engine.average import WeightAverage, make_average
from bloodcell.engine.batches import check_side, describe_decoding, describe_reader, make_order, make_reading
from bloodcell.engine.caching import for_evaluation, open_cache
from bloodcell.engine.checkpoint import Checkpoints
from bloodcell.engine.freezing import Freezing
from bloodcell.engine.inference import Inference
from bloodcell.engine.lock import check_lock
from bloodcell.engine.losses import VIEWS, Loss, build_loss
from bloodcell.engine.meter import Meter
from bloodcell.engine.optim import build_optimizer, check_optimizer
from bloodcell.engine.phases import Phases
from bloodcell.engine.plan import Plan, make_plan
from bloodcell.engine.preemption import Lead
from bloodcell.engine.reestimate import estimate_statistics
from bloodcell.engine.sizes import parse_sizes
from bloodcell.engine.skipped import left_out_facts, write_left_out
from bloodcell.engine.strategies import check_strategy, joined_norms, make_strategy
from bloodcell.engine.strategy import Strategy
from bloodcell.engine.warming import example
from bloodcell.models import sources, weights, zoo
from bloodcell.ranks import Ranks, choose_device
from bloodcell.runfolder import RunFolder, Status
from bloodcell.tracking import Tracker, check_tracking
from shards.console import say
from shards.errors import BadInput


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
    loss: Loss
    mixing: Mixing
    average: WeightAverage
    freezing: Freezing
    inference: Inference
    checkpoints: Checkpoints
    tracker: Tracker
    lead: Lead
    cache: Cache | None
    phases: Phases = field(default_factory=Phases)
    stall_seconds: float = 0.0
    """How long training waited for the last checkpoint."""
    told_left_out: int = -1
    """How many samples left out were listed last; -1 before the first time."""

    def split(self, name: str) -> str:
        """Return the set's name for 'train', 'val' or 'test' under the chosen fold."""
        return self.shards.split_name(name, self.config.data.fold)

    def has(self, name: str) -> bool:
        """Whether the set has this split with samples in it."""
        return self.split(name) in self.shards.info.splits and self.shards.info.count(self.split(name)) > 0

    @property
    def classes(self) -> int:
        """How many classes the set has."""
        return len(self.shards.info.classes)

    def refresh_average(self) -> None:
        """Estimate BatchNorm's statistics for an average of weights that needs it, before it is validated. Collective.

        Layers that keep their stored statistics in training keep them here.
        """
        model, seed = self.strategy.model, self.config.train.seed
        moving = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
        self.average.refresh(lambda: estimate_statistics(model, self.inference, self.split("train"), seed, moving))

    def save(self, step: int, progress: dict[str, Any]) -> None:
        """Begin to write a checkpoint; training goes on meanwhile. Collective.

        Raises:
            EnvironmentFault: the one before could not be written; on all ranks. Another start took the run over.
        """
        check_lock()
        begin = time.perf_counter()
        common, mine = self.strategy.state_dict()
        common = {**common, "average": self.average.state_dict()}
        self.tracker.flush()
        self.checkpoints.save(step, common, mine, progress, before=self.tracker.sync)
        self.stall_seconds = time.perf_counter() - begin
        self.status.values.update(
            step=step,
            epoch=round(self.plan.epoch(step), 3),
            checkpoint_stall_seconds=round(self.stall_seconds, 4),
            checkpoint_write_seconds=round(self.checkpoints.write_seconds, 4),
        )

    @property
    def save_seconds(self) -> float:
        """How long saving takes until all is on the disk, as far as the last ones tell."""
        return self.stall_seconds + self.checkpoints.write_seconds

    def thaw(self, step: int) -> None:
        """Train what the plan wants to be trained in `step`, and only that. Collective."""
        count = self.freezing.frozen(step // self.plan.steps_per_epoch)
        if self.freezing.apply(count):
            self.strategy.rewrap()
            self.strategy.warm_up(*example(self.config, self.device))
            if self.ranks.first:
                say(f"step {step}: {self.freezing.describe(count)}")

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
        self.tell_left_out(progress)

    def tell_left_out(self, progress: Any) -> None:
        """List the samples that were left out, in status.json and RUN/skipped.csv, when their number has changed."""
        if len(progress.left_out) != self.told_left_out and self.ranks.first:
            self.told_left_out = len(progress.left_out)
            self.status.update(left_out=left_out_facts(self.shards, progress.left_out))
            write_left_out(self.run.path, self.shards, progress.left_out)


def check(config: Config, shards: ShardSet, ranks: Ranks) -> None:
    """Find what can be found before ranks meet and time is spent.

    Raises:
        BadInput: unknown model or policy, a size that the model cannot take, missing weights, nothing left to train, a
            split the set lacks, a world size that does not divide the micro-batches, too few samples, a sampling that
            makes no sense.
    """
    if not config.data.micro_batch:  # found where the run will be
        config = override(config, {"data.micro_batch": 1})
    outline = check_model(config)
    check_views(config)
    check_optimizer(config.optim)
    check_strategy(config)
    check_side(config)
    if config.data.on_error == "skip" and not config.data.check:
        raise BadInput("samples cannot be left out unless they are checked", "data.on_error", "set data.check to true")
    Freezing(outline, config.model)
    for name in ("train", "val"):
        shards.info.count(shards.split_name(name, config.data.fold))
    order = make_order(config, shards)
    make_plan(config, order, ranks)
    make_loss(config, shards, order.plan)
    if ranks.first:
        check_tracking(config.tracking.wandb, config.tracking.tensorboard)


def check_views(config: Config) -> None:
    """Look up the policy and whether the loss can compare views of an image under it.

    Raises:
        BadInput: no such policy, one under which all views are alike, or views together with mixed images.
    """
    policy = find_policy(config.data.policy)
    if not config.loss.jsd:
        return
    if not policy.chooses:
        fix = f"take one of {', '.join(name for name, known in POLICIES.items() if known.chooses)}, or set it to 0"
        raise BadInput(f"the views of an image are all alike under the policy {policy.name!r}", "loss.jsd", fix)
    if config.data.mixup or config.data.cutmix:
        raise BadInput("views are compared before images are mixed", "loss.jsd", "set data.mixup and data.cutmix to 0")


def check_model(config: Config) -> nn.Module:
    """Return the network without values (on the meta device) if it takes the size and the weights that are asked for.

    Raises:
        BadInput: unknown model, a size that it cannot take, missing weights, or weights of another architecture.
    """
    zoo.check_size(config.model.name, config.data.size)
    file = sources.find(config.model.name, config.model.weights)
    outline = zoo.outline(config.model.name, config.model.head, config.data.size)
    for size, _ in parse_sizes(config.train.sizes, config.data.size):
        zoo.check_same_network(outline, config.model.name, size, config.data.size)
    if file is not None:
        weights.check_weights(outline, file)
    return outline


def make_loss(config: Config, shards: ShardSet, plan: SamplingPlan) -> Loss:
    """Return the loss, weighted and adjusted by how often an epoch deals each class where the config asks for it."""
    info = shards.info
    parts = {shard.part for shard in info.shards_of(shards.split_name("train", config.data.fold))}
    counts = [sum(info.samples[part][name] for part in parts) for name in info.classes]
    return build_loss(config.loss, info.classes, dealt(plan, counts))


def make_view(config: Config) -> View:
    """Return how images become input of the model."""
    known = zoo.spec(config.model.name)
    policy = find_policy(config.data.policy)
    last, backend = config.engine.channels_last, config.data.backend
    if backend == "auto":  # a run of the time when there was DALI only
        backend = "dali"
    return View(config.data.size, known.mean, known.std, policy, config.train.seed, last, backend=backend)


def make_network(config: Config, classes: int) -> nn.Module:
    """Return the network that the config describes, with random weights."""
    wanted = config.model
    last = config.engine.channels_last
    return zoo.build(wanted.name, classes, wanted.dropout, last, wanted.head, config.data.size)


def make_model(config: Config, classes: int, say_line: Callable[[str], None] | None) -> nn.Module:
    """Return the network with initial weights from the seed, or from what `model.weights` names."""
    torch.manual_seed(config.train.seed)
    model = make_network(config, classes)
    file = sources.find(config.model.name, config.model.weights)
    if file is not None:
        report = weights.load_weights(model, file)
        if say_line is not None:
            for line in report.lines():
                say_line(line)
    return model


def prepare(config: Config, run: RunFolder, status: Status, ranks: Ranks, shards: ShardSet) -> Job:
    """Build everything; the process group is up. Collective."""
    device = choose_device(ranks, config.engine.device)
    order = make_order(config, shards)
    plan = make_plan(config, order, ranks)
    reader = describe_reader(config, shards, ranks)
    for line in (describe(order.plan, shards.info.classes), plan.sizes.describe(), reader):
        if ranks.first and line:
            say(line)
    view = make_view(config)
    model = make_model(config, len(shards.info.classes), say if ranks.first else None).to(device)
    model = joined_norms(model, config)
    freezing = Freezing(model, config.model)
    # Optimizer and average hold from the start whatever is trained at any time, so that their states always fit.
    freezing.apply(freezing.last)
    optimizer = build_optimizer(model, config.optim, device)
    average = make_average(model, config.train, plan.steps)
    freezing.apply(freezing.frozen(0))
    if ranks.first and freezing.first:
        say(freezing.describe(freezing.first))
    strategy = make_strategy(model, optimizer, device, config, plan.slots)
    strategy.warm_up(*example(config, device))
    if ranks.first:
        say(describe_backend(view.backend, view.policy, device.type, config.data.threads))
    cache = open_cache(config, shards, ranks, device)
    if ranks.first and (line := describe_decoding(config, cache)):
        say(line)
    inference = make_inference(config, run.path.name, shards, view, device, ranks)
    inference = replace(inference, reading=replace(inference.reading, cache=for_evaluation(cache, device)))
    return Job(
        config=config,
        run=run,
        status=status,
        ranks=ranks,
        device=device,
        shards=shards,
        order=order,
        view=replace(view, views=VIEWS if config.loss.jsd else 1),
        plan=plan,
        strategy=strategy,
        loss=make_loss(config, shards, order.plan).to(device),
        mixing=Mixing(config.data.mixup, config.data.cutmix, config.train.seed),
        average=average,
        freezing=freezing,
        inference=inference,
        checkpoints=Checkpoints(run.path / "checkpoints", config.train.keep, ranks.rank, ranks.world),
        tracker=Tracker(),
        lead=Lead(speaks=ranks.first),
        cache=cache,
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
        reading=make_reading(config),
        name=name,
    )
