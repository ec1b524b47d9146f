"""Numbers that follow from the config, the set and the world size: derived once, here, and used everywhere."""

from __future__ import annotations

from dataclasses import dataclass

from bloodcell.config import Config
from bloodcell.data.order import BatchOrder, check_world
from bloodcell.engine.schedule import Schedule
from bloodcell.engine.sizes import Sizes, parse_sizes
from bloodcell.ranks import Ranks


@dataclass(frozen=True)
class Plan:
    """The course of a run, counted in optimizer steps from 0.

    Attributes:
        micro_batch: images in a micro-batch.
        global_batch: images in an optimizer step, over all ranks.
        slots: micro-batches that each rank works off in a step.
        steps_per_epoch: whole steps in an epoch.
        steps: of the whole run.
        schedule: of the learning rate.
        sizes: of the training images.
        save_every: steps between checkpoints.
        evaluate_every: steps between validations.
    """

    micro_batch: int
    global_batch: int
    slots: int
    steps_per_epoch: int
    steps: int
    schedule: Schedule
    sizes: Sizes
    save_every: int
    evaluate_every: int

    def epoch(self, step: int) -> float:
        """Return how many epochs are done after `step` steps."""
        return step / self.steps_per_epoch

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint is due when `step` steps are done."""
        return step % self.save_every == 0 or step == self.steps

    def evaluates_after(self, step: int) -> bool:
        """Whether a validation is due when `step` steps are done."""
        return step % self.evaluate_every == 0 or step == self.steps


def make_plan(config: Config, order: BatchOrder, ranks: Ranks) -> Plan:
    """Derive the plan; raises BadInput for a world size that does not divide the micro-batches, or senseless sizes."""
    check_world(config.train.micro_batches, ranks.world)
    per_epoch = order.steps_per_epoch
    steps = config.train.epochs * per_epoch
    return Plan(
        micro_batch=config.data.micro_batch,
        global_batch=order.global_batch,
        slots=config.train.micro_batches // ranks.world,
        steps_per_epoch=per_epoch,
        steps=steps,
        schedule=Schedule(
            config.optim.schedule,
            config.optim.lr,
            round(config.optim.warmup * steps),
            steps,
            config.optim.fall,
            config.optim.fall_after * per_epoch,
        ),
        sizes=Sizes(parse_sizes(config.train.sizes, config.data.size), steps),
        save_every=config.train.save_every or per_epoch,
        evaluate_every=config.train.evaluate_every * per_epoch,
    )
