"""Where the training loop's batches come from: read ahead of the steps, in each stage's size."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bloodcell.config import Config
from bloodcell.data.loader import Loader, training_requests
from bloodcell.data.pipeline import PREFETCH
from bloodcell.data.reading import Reading
from bloodcell.data.stages import Stage, Stages

if TYPE_CHECKING:
    from bloodcell.engine.setup import Job

LOOK_AHEAD = 2
"""Steps whose samples are read before a step ends: what it tells the others is looked at when the next one ends."""


def make_reading(config: Config, slots: int = 0, skip: bool = False) -> Reading:
    """Return how samples are read: ahead by what the ranks must know before they enter a step of so many slots."""
    patience = min(config.data.timeout, config.engine.timeout / 2, config.engine.stall / 2)
    return Reading(config.data.check, skip, patience, depth=LOOK_AHEAD * slots + PREFETCH)


def training_batches(job: Job, first: int) -> Stages:
    """Return what gives this rank its micro-batches from the step `first` on, each of its step's size."""
    ranks, plan, data = job.ranks, job.plan, job.config.data
    reading = replace(make_reading(job.config, plan.slots, data.on_error == "skip"), cache=job.cache)

    def stage(size: int, begin: int, end: int) -> Stage:
        requests = training_requests(job.order, ranks.world, ranks.rank, begin, end)
        view, micro_batch = replace(job.view, size=size), plan.micro_batch
        return Stage(
            lambda: Loader(job.shards, requests, view, micro_batch, data.threads, job.device, reading),
            (end - begin) * plan.slots,
        )

    return Stages([stage(*span) for span in plan.sizes.spans(first)])
