"""What ranks tell each other beside tensors: one works for all, a failure is everybody's, texts are shared."""

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
        raise _decode(message)
    return result


def raise_together(problem: Exception | None) -> None:
    """Raise this rank's problem, or that of the first rank that has one, if any has. Collective."""
    said = gather_texts(_encode(problem))
    if problem is not None:
        raise problem
    for message in filter(None, said):
        raise _decode(message)


def share(text: str) -> str:
    """Return the first rank's text on every rank. Collective."""
    if _world() == 1:
        return text
    content = _bytes(text)
    size = torch.tensor([len(content)])
    dist.broadcast(size, 0)
    if dist.get_rank() != 0:
        content = torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(content, 0)
    return _text(content)


def gather_texts(text: str, group: dist.ProcessGroup | None = None) -> list[str]:
    """Return the texts of all ranks, in their order, on every rank. Collective over `group`."""
    world = _world()
    if world == 1:
        return [text]
    content = _bytes(text)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
    dist.all_gather(sizes, torch.tensor([len(content)]), group=group)
    widest = max(int(size) for size in sizes)
    padded = torch.cat([content, content.new_zeros(widest - len(content))])
    rows = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(rows, padded, group=group)
    return [_text(row[: int(size)]) for row, size in zip(rows, sizes, strict=True)]


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(text.encode() or b"\0"), dtype=torch.uint8)


def _text(content: torch.Tensor) -> str:
    return content.numpy().tobytes().decode().strip("\0")


def _encode(problem: Exception | None) -> str:
    if problem is None:
        return ""
    if isinstance(problem, Stop):
        return json.dumps([type(problem).__name__, problem.what, problem.where, problem.fix])
    return json.dumps(
        [
            Fault.__name__,
            f"{type(problem).__name__}: {problem}",
            f"rank {dist.get_rank() if dist.is_initialized() else 0}",
            "",
        ]
    )


def _decode(message: str) -> Stop:
    kind, what, where, fix = json.loads(message)
    problem = getattr(errors, kind)(what, where, fix)
    assert isinstance(problem, Stop)
    return problem
