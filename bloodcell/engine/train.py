"""The training loop: the order of events is here and nowhere else; each thing it uses has a file of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from bloodcell.data.draws import chain
from bloodcell.data.loader import Batch
from bloodcell.data.order import DIGEST_MASK
from bloodcell.engine.agree import raise_together
from bloodcell.engine.batches import LOOK_AHEAD, training_batches
from bloodcell.engine.collecting import Collector
from bloodcell.engine.guard import Guard, StepReport
from bloodcell.engine.meter import Meter
from bloodcell.engine.phases import AGREE, BACKWARD, FORWARD, OPTIMIZER, WAIT, Phases
from bloodcell.engine.preemption import stopped
from bloodcell.engine.setup import Job
from bloodcell.engine.validate import Validation
from bloodcell.engine.watchdog import feed
from bloodcell.runfolder import STOP_FILE
from shards.console import progress, say
from shards.errors import Stopped, Unreadable


@dataclass
class Progress:
    """Where a run stands; stored in every checkpoint.

    Attributes:
        step: optimizer steps done.
        lineage: digest of every sample consumed in them (order.step_digest), summed modulo 2**63.
        best: value of the monitored metric at its best, or None before the first validation.
        best_step: when that was.
        stale: validations since then.
        falls: how often the learning rate has fallen on a plateau.
        flat: validations since the best one or the last fall.
        finished: nothing is left to train.
        planned: steps of the plan when this was saved.
        unvalidated: a validation is due after this step; a signal came before it was done.
        left_out: samples that could not be read and others stood in for (leaving_out.LeftOut), in order.
    """

    step: int = 0
    lineage: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    falls: int = 0
    flat: int = 0
    finished: bool = False
    planned: int = 0
    unvalidated: bool = False
    left_out: list[dict[str, Any]] = field(default_factory=list)

    def note(self, report: StepReport | None) -> None:
        """Take in the samples of a finished step."""
        if report is not None:
            self.lineage = (self.lineage + report.digest) & DIGEST_MASK
            self.left_out.extend(report.left_out)

    def validated(self, value: float, smaller: bool, patience: int) -> bool:
        """Take in a validation; return whether it is the best so far. After `patience` poor ones the rate falls."""
        better = self.best is None or (value < self.best if smaller else value > self.best)
        self.stale, self.flat = (0, 0) if better else (self.stale + 1, self.flat + 1)
        if better:
            self.best, self.best_step = value, self.step
        if self.flat >= patience:
            self.falls, self.flat = self.falls + 1, 0
        return better


def train(job: Job, state: Progress) -> Progress:
    """Train from `state` to the end of the plan or to early stopping; collective over all ranks.

    Raises:
        Fault: a loss is not finite (the samples are named).
        Stopped: RUN/stop or a signal asked for it; everything is saved.
        EnvironmentFault: a sample cannot be read, the disk is full, a peer is gone.
    """
    config, plan, strategy, ranks = job.config, job.plan, job.strategy, job.ranks
    guard = Guard(job.device, job.shards.describe, check_norm=config.engine.precision != "fp16")
    meter = Meter(job.device, plan.global_batch)
    validation = Validation(job)
    if state.unvalidated and settle(job, state, validation, meter, False, False):
        return state
    first = state.step
    phases = job.phases = make_phases(job)
    collector = Collector(config.engine.collect_every)
    with training_batches(job, first) as loader, contextlib.closing(phases), collector:
        raise_together(loader.fault_before(LOOK_AHEAD * plan.slots))
        batches = iter(loader)
        meter.restart(loader.waited)
        strategy.model.train()
        for step in _shown(range(state.step, plan.steps), plan.steps, ranks.first):
            feed("training", step)
            job.thaw(step)
            phases.begin(step)
            rate = plan.schedule.rate(step, state.falls)
            norm = take_step(job, guard, batches, step, rate)
            with phases.part(WAIT):
                fault = loader.fault_before((step - first + 1 + LOOK_AHEAD) * plan.slots)
            with phases.part(AGREE):
                report = guard.end(norm, unreadable=fault is not None)
            job.average.update(step + 1)
            state.step, state.planned = step + 1, plan.steps
            state.note(report)
            meter.note(report)
            meter.step(loader.waited)
            if phases.end():
                meter.restart(loader.waited)

            pauses = plan.evaluates_after(state.step) or plan.saves_after(state.step) or guard.leave
            if pauses or state.step % config.tracking.log_every == 0:
                report = guard.flush()  # whatever is not finite must show before anything is kept
                state.note(report)
                meter.note(report)
                job.tracker.log(state.step, meter.record(rate, plan.sizes.at(step)), plan.epoch(state.step))
            collector.step(state.step)
            if pauses or guard.leave:  # the flush may have brought the signal
                if settle(job, state, validation, meter, plan.saves_after(state.step), guard.leave, fault):
                    break
                collector.pause()
                meter.restart(loader.waited)
            job.show(state, meter)
        phases.finish()
    if state.step < plan.steps and ranks.first:
        say(f"stopped early at step {state.step}: {config.train.monitor} has not improved {state.stale} times")
    return state


def take_step(job: Job, guard: Guard, batches: Iterator[Batch], step: int, rate: float) -> torch.Tensor:
    """Do one optimizer step at this learning rate; return its gradient norm before clipping. Collective."""
    strategy, slots, phases = job.strategy, job.plan.slots, job.phases
    guard.begin(step)
    for slot in range(slots):
        with phases.part(WAIT):
            batch = next(batches)
        seed_micro_batch(job.config.train.seed, step, job.ranks.rank * slots + slot)
        images, target = job.mixing(batch.request, batch.images, batch.labels, job.classes)
        with strategy.slot(slot, slots):
            with phases.part(FORWARD):
                loss = job.loss(strategy.forward(images), target)
            with phases.part(BACKWARD):
                strategy.backward(loss / slots)
        guard.watch(batch.request, loss)
    with phases.part(OPTIMIZER):
        return strategy.step(rate)


def make_phases(job: Job) -> Phases:
    """Return what takes note of the parts of a step: nothing, or a profile."""
    if not job.config.tracking.profile:
        return Phases()
    from bloodcell.engine.profiling import Profile

    return Profile(job.run.path, job.ranks, job.device, job.plan.global_batch)


def settle(
    job: Job,
    state: Progress,
    validation: Validation,
    meter: Meter,
    saves: bool,
    leaves: bool,
    fault: Exception | None = None,
) -> bool:
    """Between two steps: validate if it is due, save if there is reason to; return whether the training is over.

    Raises:
        Stopped: it is not, but a signal or RUN/stop wants the run to end here; everything is saved. Collective.
        Unreadable: it is not, but a rank cannot read a sample that is needed next; everything is saved.
    """
    config, plan, best = job.config, job.plan, False
    if plan.evaluates_after(state.step):
        value, unreadable = (None, None) if leaves else validated(validation, state.step)
        fault = fault or unreadable
        state.unvalidated = value is None
        if value is not None:
            best = state.validated(value, validation.smaller_is_better, config.optim.fall_after)
            state.finished = bool(config.train.patience) and state.stale >= config.train.patience
    else:
        state.unvalidated = False  # it was due at the end of a plan that has been made longer
    leaves = leaves or state.unvalidated or validation.stop_wanted
    state.finished = (state.finished or state.step == plan.steps) and not state.unvalidated
    if saves or best or leaves or state.finished:
        feed("saving", state.step)
        job.save(state.step, asdict(state))
        if leaves:
            job.checkpoints.wait()
            job.status.update()  # before any rank goes: the launcher ends the others then
        job.lead.compare(meter.step_seconds, job.save_seconds)
    if leaves and not state.finished:
        raise_together(fault)
        done = f"{plan.epoch(state.step):g} epochs are done and saved"
        if not validation.stop_wanted:
            raise stopped(done, job.run.path)
        raise Stopped(
            f"stopped as {STOP_FILE} asks, {done}",
            job.run.path / STOP_FILE,
            "remove the file and start the same command again: the run goes on",
        )
    return state.finished


def validated(validation: Validation, step: int) -> tuple[float | None, Unreadable | None]:
    """Return the monitored metric, or what kept every rank from it. Collective."""
    try:
        return validation.run(step), None
    except Unreadable as fault:
        return None, fault


def seed_micro_batch(seed: int, step: int, micro_batch: int) -> None:
    """Seed torch for one micro-batch: dropout depends on nothing that a restart or another world size could change."""
    torch.manual_seed(int(chain(_DROPOUT, seed, step, micro_batch)[0]) & DIGEST_MASK)


_DROPOUT = 3  # first link of the hash chain: dropout shares no key with the sample order and its digest


def _shown(steps: range, total: int, first: bool) -> Iterable[int]:
    return progress(steps, "training", total, done=steps.start) if first else steps
