"""Work that one rank does for all: the others wait for its outcome and share its failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from bloodcell.ranks import Ranks
from shards import errors
from shards.errors import Fault, Stop

T = TypeVar("T")


def on_first_rank(ranks: Ranks, work: Callable[[], T]) -> T | None:
    """Run `work` on the first rank and return its result there (None elsewhere). Collective.

    A failure on the first rank is raised on every rank, so that nobody waits in the next collective for ever.
    """
    result: T | None = None
    problem: Exception | None = None
    if ranks.first:
        try:
            result = work()
        except Exception as error:
            problem = error
    message = share(_encode(problem) if ranks.first else "")
    if problem is not None:
        raise problem
    if message:
        kind, what, where, fix = json.loads(message)
        raise getattr(errors, kind)(what, where, fix)
    return result


def share(text: str) -> str:
    """Return the first rank's text on every rank. Collective."""
    if dist.get_world_size() == 1:
        return text
    content = torch.frombuffer(bytearray(text.encode() or b"\0"), dtype=torch.uint8)
    size = torch.tensor([len(content)])
    dist.broadcast(size, 0)
    if dist.get_rank() != 0:
        content = torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(content, 0)
    return content.numpy().tobytes().decode().strip("\0")


def _encode(problem: Exception | None) -> str:
    if problem is None:
        return ""
    if isinstance(problem, Stop):
        return json.dumps([type(problem).__name__, problem.what, problem.where, problem.fix])
    return json.dumps([Fault.__name__, f"{type(problem).__name__}: {problem}", "rank 0", ""])
