"""Whether decoded images stay in memory during a run, and where: decided before it starts, the same on all ranks."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bloodcell.config import Config
from bloodcell.data.memory import available_memory
from bloodcell.data.resident import DeviceCache, HostCache, Layout
from bloodcell.data.shardset import ShardSet
from bloodcell.engine.agree import gather_texts, share
from bloodcell.ranks import Ranks
from shards.console import say, warn
from shards.errors import BadInput

BOOT = Path("/proc/sys/kernel/random/boot_id")


HEADERS = 4
"""The tars of the smallest images are at most so many times as large as their pixels."""


@dataclass(frozen=True)
class Choice:
    """Where decoded images stay ("device", "host" or "off"), and why."""

    place: str
    why: str


def choose_cache(config: Config, shards: ShardSet) -> Choice:
    """Decide for the memory that there is now. What is asked for by name may be refused; `auto` may not.

    Raises:
        BadInput: the images are too large for the memory that is asked for, or it is not there.
    """
    wanted, cuda = config.data.cache, config.engine.device == "cuda"
    if wanted == "off" or (wanted == "auto" and config.train.epochs == 1):
        return Choice("off", "asked for" if wanted == "off" else "one epoch shows every image once")
    place = wanted if wanted != "auto" else "device" if cuda else "host"
    if place == "device" and not cuda:
        raise BadInput("there is no GPU that could keep images", "data.cache", "set it to host, off or auto")
    room = int(_free(place) * config.data.cache_share)
    if wanted == "auto" and (least := _encoded(config, shards) // HEADERS) > room:
        return Choice("off", f"they would take more than {_size(least)} of the {_size(room)} that they may take")
    needs = HostCache.size(Layout(shards, kept_ids(config, shards)))
    said = f"{_size(needs)} of the {_size(room)} that they may take"
    if needs <= room:
        return Choice(place, said)
    if wanted == "auto":
        return Choice("off", f"they would take {said}")
    fix = "set data.cache to off or auto, or data.cache_share higher"
    raise BadInput(f"decoded images would take {said} ({place})", "data.cache", fix)


def _encoded(config: Config, shards: ShardSet) -> int:
    """Return the bytes of the tars that a run looks at in every epoch, without a look at their samples."""
    names = {shards.split_name(name, config.data.fold) for name in ("train", "val")} & set(shards.info.splits)
    return sum({shard.file: shard.bytes for name in names for shard in shards.info.shards_of(name)}.values())


def kept_ids(config: Config, shards: ShardSet) -> np.ndarray:
    """Return the ids of the samples that a run looks at in every epoch, int64 [n], ascending: train and val."""
    names = [shards.split_name(name, config.data.fold) for name in ("train", "val")]
    ranges = [shards.ranges(name) for name in names if name in shards.info.splits]
    return np.unique(np.concatenate([np.arange(first, last) for part in ranges for first, last in part]))


def open_cache(config: Config, shards: ShardSet, ranks: Ranks, device: torch.device) -> HostCache | DeviceCache | None:
    """Return where this rank keeps decoded images, None if nowhere. Collective.

    On a GPU the images are decoded now. What no longer fits (a run that goes on elsewhere) is left away with a warning:
    the pixels are the same.
    """
    try:
        choice = choose_cache(config, shards)
    except BadInput as problem:
        choice = Choice("off", problem.what)
        if ranks.first:
            warn(f"{problem.what}: this run goes on without keeping them")
    place, why = share(f"{choice.place}|{choice.why}").split("|", 1)
    if "off" in gather_texts(choice.place):  # where one rank has no room, none keeps images
        place = "off"
    if place == "off":
        return None
    if ranks.first:
        say(f"decoded images stay in memory ({place}): {why}")
    layout = Layout(shards, kept_ids(config, shards))
    if place == "host":
        return _shared(layout)
    from bloodcell.data.filling import fill

    cache = DeviceCache(layout, device)
    fill(cache, shards, config.data.threads, config.data.check)
    return cache


def _shared(layout: Layout) -> HostCache | None:
    """Return the cache of this node: the first of its ranks makes it, the others open it. Collective."""
    node = f"{platform.node()}/{BOOT.read_text(encoding='ascii').strip() if BOOT.exists() else ''}"
    rank, nodes = _rank(), gather_texts(node)
    leader = nodes.index(node)
    own = HostCache.create() if leader == rank else -1
    offered = gather_texts(f"/proc/{os.getpid()}/fd/{own}")[leader]
    problem = ""
    try:
        descriptor = own if leader == rank else os.open(offered, os.O_RDWR)
        cache = HostCache(layout, descriptor)
    except OSError as error:
        problem = str(error)
    problems = list(filter(None, gather_texts(problem)))
    if problems:
        if rank == 0:
            warn(f"decoded images are not kept: a rank cannot share the memory of its node ({problems[0]})")
        return None
    return cache


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _free(place: str) -> int:
    """Return the bytes of memory that are free, on the GPU of this rank or on this node."""
    return torch.cuda.mem_get_info()[0] if place == "device" else available_memory()


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
