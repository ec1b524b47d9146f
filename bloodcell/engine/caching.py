"""Whether images stay in memory during a run, and where: decided before it starts, the same on all ranks."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from bloodcell.config import Config
from bloodcell.data.mounts import file_system, network_file_system
from bloodcell.data.resident import Cache, DeviceCache, EncodedCache, HostCache, SharedCache
from bloodcell.data.shardset import ShardSet
from bloodcell.engine.agree import gather_texts
from bloodcell.engine.cache_room import at_least, encoded_layout, fitting_side, needs, pixel_layout, room
from bloodcell.ranks import Ranks
from shards.console import say, warn
from shards.errors import BadInput

BOOT = Path("/proc/sys/kernel/random/boot_id")

KINDS = {"device": "decoded images", "host": "decoded images", "encoded": "encoded images"}
"""What stays in each place."""

DEMANDS = ("off", "encoded", "host", "device")
"""From what takes least."""

Shared = TypeVar("Shared", bound=SharedCache)


@dataclass(frozen=True)
class Choice:
    """Where images stay ("device", "host", "encoded" or "off"), and why."""

    place: str
    why: str


def choose_cache(config: Config, shards: ShardSet) -> Choice:
    """Decide for the memory that there is now. What is asked for by name may be refused; `auto` may not.

    Raises:
        BadInput: the images are too large for the memory that is asked for, or it is not there.
    """
    wanted, cuda = config.data.cache, config.engine.device == "cuda"
    if wanted == "off":
        return Choice("off", "asked for")
    if wanted == "auto":
        return _automatic(config, shards, ("device", "host") if cuda else ("host",))
    if wanted == "device" and not cuda:
        fix = "set it to host, encoded, off or auto"
        raise BadInput("there is no GPU that could keep images", "data.cache", fix)
    fits, said = _fits(config, shards, wanted)
    if fits:
        return Choice(wanted, said)
    fix = "set data.cache to off or auto, or data.cache_share higher"
    raise BadInput(f"{KINDS[wanted]} would take {said} ({wanted})", "data.cache", fix)


def _automatic(config: Config, shards: ShardSet, places: tuple[str, ...]) -> Choice:
    """Return the first place that fits; bytes of files only where the system does not keep them in memory anyway."""
    if config.train.epochs == 1:
        return Choice("off", "one epoch shows every image once")
    tried: list[str] = []
    for place in places:
        fits, said = _fits(config, shards, place)
        if fits:
            return Choice(place, "; ".join([said, *tried]))
        tried.append(f"decoded they would take {said} ({place})")
    kind = network_file_system(shards.folder)
    if kind is None:
        local = file_system(shards.folder)
        known = f"{local} is a file system of this node" if local else "their file system is not known as a network's"
        return Choice("off", f"{'; '.join(tried)}; {known}, whose files the system keeps in free memory by itself")
    fits, said = _fits(config, shards, "encoded")
    said = f"{said}, instead of being read from {kind} in every epoch" if fits else f"encoded they would take {said}"
    return Choice("encoded" if fits else "off", "; ".join([said, *tried] if fits else [*tried, said]))


def _fits(config: Config, shards: ShardSet, place: str) -> tuple[bool, str]:
    """Return whether the images fit there, and in words what they take of what they may take."""
    limit = room(place, config.data.cache_share)
    least = at_least(config, shards, place)
    taken = least if least > limit else needs(config, shards, place)
    said = f"{'more than ' * (least > limit)}{_size(taken)} of the {_size(limit)} that they may take"
    if taken <= limit:
        return True, said
    side = None if place == "encoded" else fitting_side(config, shards, place, limit)
    if side is not None:
        said += f", with data.cache_side {side[0]} about {_size(side[1])}"
    return False, said


def open_cache(config: Config, shards: ShardSet, ranks: Ranks, device: torch.device) -> Cache | None:
    """Return where this rank keeps images, None if nowhere. Collective.

    On a GPU the images are decoded now. What no longer fits (a run that goes on elsewhere) is left away with a warning:
    the pixels are the same.
    """
    try:
        choice = choose_cache(config, shards)
    except BadInput as problem:
        choice = Choice("off", problem.what)
        if ranks.first:
            warn(f"{problem.what}: this run goes on without keeping them")
    choices = [text.split("|", 1) for text in gather_texts(f"{choice.place}|{choice.why}")]
    place, why = min(choices, key=lambda found: DEMANDS.index(found[0]))  # what every rank has room for
    if place == "off":
        return None
    if ranks.first:
        say(f"{KINDS[place]} stay in memory ({place}): {why}")
    if place == "encoded":
        encoded = encoded_layout(config, shards)
        return _shared(lambda descriptor: EncodedCache(encoded, descriptor))
    layout = pixel_layout(config, shards, place)
    if place == "host":
        return _shared(lambda descriptor: HostCache(layout, descriptor))
    from bloodcell.data.filling import fill
    from bloodcell.engine.batches import make_reading

    cache = DeviceCache(layout, device)
    fill(cache, shards, config.data.threads, config.data.check, make_reading(config).decoder)
    return cache


def for_evaluation(cache: Cache | None, device: torch.device) -> Cache | None:
    """Return the cache where it gives an evaluation in training the pixels of one afterwards, else None.

    Bytes do; decoded images on the host do where an evaluation decodes on a CPU (the GPU's decoder differs in levels).
    """
    kept = isinstance(cache, EncodedCache) or (isinstance(cache, HostCache) and device.type == "cpu")
    return cache if kept else None


def _shared(opened: Callable[[int], Shared]) -> Shared | None:
    """Return the cache of this node: the first of its ranks makes its memory, all open it. Collective."""
    node = f"{platform.node()}/{BOOT.read_text(encoding='ascii').strip() if BOOT.exists() else ''}"
    rank, nodes = _rank(), gather_texts(node)
    leader = nodes.index(node)
    own = SharedCache.create() if leader == rank else -1
    offered = gather_texts(f"/proc/{os.getpid()}/fd/{own}")[leader]
    problem = ""
    try:
        cache = opened(own if leader == rank else os.open(offered, os.O_RDWR))
    except OSError as error:
        problem = str(error)
    problems = list(filter(None, gather_texts(problem)))
    if problems:
        if rank == 0:
            warn(f"images are not kept: a rank cannot share the memory of its node ({problems[0]})")
        return None
    return cache


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
