"""Where the training loop's batches come from: in which order, read ahead of the steps, in each stage's size."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bloodcell.config import Config
from bloodcell.data.decoder import Decoder
from bloodcell.data.loader import Loader, training_requests
from bloodcell.data.memory import available_memory
from bloodcell.data.operations import Crop
from bloodcell.data.order import BatchOrder
from bloodcell.data.pipeline import PREFETCH
from bloodcell.data.policies import find_policy
from bloodcell.data.reading import Reading
from bloodcell.data.resident import Cache, DeviceCache, HostCache
from bloodcell.data.runs import LONG
from bloodcell.data.sampling import sampling_plan
from bloodcell.data.shardset import ShardSet
from bloodcell.data.stages import Stage, Stages
from bloodcell.data.streaming import SEQUENTIAL, StreamPlan, check_sampling
from bloodcell.engine.sizes import parse_sizes
from bloodcell.ranks import Ranks
from shards.errors import BadInput

if TYPE_CHECKING:
    from bloodcell.engine.setup import Job

LOOK_AHEAD = 2
"""Steps whose samples are read before a step ends: what it tells the others is looked at when the next one ends."""


def make_order(config: Config, shards: ShardSet) -> BatchOrder:
    """Return the order of the training samples."""
    split, data, lanes = shards.split_name("train", config.data.fold), config.data, config.train.micro_batches
    if data.reader in SEQUENTIAL:
        check_sampling(data.sampling, data.reader)
        stream = StreamPlan(shards.pieces(split), data.micro_batch, lanes, data.window)
        return BatchOrder(stream, config.train.seed, data.micro_batch, lanes, stream.window_steps)
    plan = sampling_plan(data.sampling, shards.ranges(split), shards.index["label"], shards.info.classes)
    return BatchOrder(plan, config.train.seed, data.micro_batch, lanes)


def held_bytes(config: Config, shards: ShardSet, ranks: Ranks) -> int:
    """Return about how many bytes of encoded images a rank holds at a time for its windows; 0 for the reader plan."""
    if config.data.reader not in SEQUENTIAL:
        return 0
    pieces = shards.info.shards_of(shards.split_name("train", config.data.fold))
    samples, size = sum(one.samples for one in pieces), sum(one.bytes for one in pieces)
    slots = -(-config.train.micro_batches // ranks.world)
    wanted = slots * max(config.data.window, config.data.micro_batch)
    return int(min(wanted, samples) * size / max(samples, 1)) + LONG


def check_window(config: Config, shards: ShardSet, ranks: Ranks) -> None:
    """Raise BadInput if the windows of this node's ranks do not fit into the memory that images may take."""
    needs, room = held_bytes(config, shards, ranks) * ranks.local_world, available_memory() * config.data.cache_share
    if needs > room:
        raise BadInput(
            f"the windows of {ranks.local_world} ranks would take {needs / 2**20:,.0f} MiB, "
            f"{room / 2**20:,.0f} MiB are there for images",
            "data.window",
            "set it lower, or data.cache_share higher",
        )


def describe_reader(config: Config, shards: ShardSet, ranks: Ranks) -> str:
    """Return in words how samples are read; "" for the reader plan."""
    data, held = config.data, held_bytes(config, shards, ranks)
    said = f"reader {data.reader}: windows of {data.window:,} samples, about {held / 2**20:,.0f} MiB held on each rank"
    return said if held else ""


def check_side(config: Config) -> None:
    """Raise BadInput if training images would be scaled down below what the network is shown."""
    side, largest = config.data.cache_side, max(size for size, _ in parse_sizes(config.train.sizes, config.data.size))
    if 0 < side < largest:
        what = f"images of {side} pixels would be enlarged again for an input of {largest}"
        raise BadInput(what, "data.cache_side", f"give at least {largest}, or 0 to leave images as they are")


def describe_decoding(config: Config, cache: Cache | None) -> str:
    """Return in words what is asked of the decoder and comes to nothing in this run; "" if that is nothing."""
    data, why = config.data, ""
    if data.roi_decode:
        if data.backend == "cpu":
            why = "the CPU backend decodes whole images"
        elif data.cache_side:
            why = "whole images are scaled down (data.cache_side)"
        elif isinstance(cache, HostCache | DeviceCache):
            why = "decoded images stay in memory"
        elif not any(isinstance(step, Crop) for step in find_policy(data.policy).operations):
            why = "the policy has no crop"
    return f"data.roi_decode does nothing here: {why}" if why else ""


def make_reading(config: Config, slots: int = 0, skip: bool = False) -> Reading:
    """Return how samples are read: ahead by what the ranks must know before they enter a step of so many slots."""
    patience = min(config.data.timeout, config.engine.timeout / 2, config.engine.stall / 2)
    depth = LOOK_AHEAD * slots + PREFETCH
    decoder = Decoder(False, config.data.hw_decoder_load, config.data.decoder_hints)
    return Reading(config.data.check, skip, patience, depth, reader=config.data.reader, decoder=decoder)


def training_batches(job: Job, first: int) -> Stages:
    """Return what gives this rank its micro-batches from the step `first` on, each of its step's size."""
    ranks, plan, data = job.ranks, job.plan, job.config.data
    plain = make_reading(job.config, plan.slots, data.on_error == "skip")
    decoder = replace(plain.decoder, roi=data.roi_decode)
    reading = replace(plain, cache=job.cache, side=data.cache_side, decoder=decoder)

    def stage(size: int, begin: int, end: int) -> Stage:
        requests = training_requests(job.order, ranks.world, ranks.rank, begin, end)
        view, micro_batch = replace(job.view, size=size), plan.micro_batch
        return Stage(
            lambda: Loader(job.shards, requests, view, micro_batch, data.threads, job.device, reading),
            (end - begin) * plan.slots,
        )

    return Stages([stage(*span) for span in plan.sizes.spans(first)])
