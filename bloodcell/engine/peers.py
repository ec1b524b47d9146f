"""Signs of life of all ranks, in the store through which they met: who is silent, who is behind, and on which host."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta

from torch._C._distributed_c10d import TCPStore

from bloodcell.ranks import Ranks
from shards.errors import EnvironmentFault

BEAT_SECONDS = 1.0
"""A rank gives a sign of life this often; with very many ranks more rarely, for the store's sake."""

SILENCE_SECONDS = 30.0
"""How long a peer may be silent before it is taken to be gone; a call that holds Python's lock silences it too."""

LEFT = "left"
"""Phase of the last sign of life of a rank that has nothing more to do."""

STORE_SECONDS = 5.0
"""How long the store may take to answer."""

GONE = (
    *("Connection closed by peer", "Connection reset by peer", "Connection was likely closed", "Broken pipe"),
    *("Timed out waiting", "Application timeout caused pair closure", "Socket Timeout", "NCCL", "TCPStore"),
    *("Connection refused", "recvValue failed", "sendBytes failed", "connectFullMesh", "wait timeout"),
)
"""What errors of gloo, NCCL and the store say when a peer is gone."""


@dataclass(frozen=True)
class Beat:
    """A sign of life: its number, what the rank does, at which step, since how many seconds, on which host."""

    number: int
    phase: str
    step: int
    since: float
    host: str


class Beats:
    """This rank's signs of life, through a connection of its own: the one of the process group may be blocked.

    Args:
        ranks: this process's place.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.number, self._store = ranks, 0, _connect(ranks)
        self.seconds = max(BEAT_SECONDS, ranks.world / 64)

    def send(self, phase: str, step: int, since: float) -> None:
        """Give a sign of life; that nobody takes it is no reason to stop."""
        if self._store is not None:
            self.number += 1
            beat = Beat(self.number, phase, step, round(since, 1), socket.gethostname())
            with contextlib.suppress(RuntimeError):
                self._store.set(_key(self.ranks.rank), json.dumps(beat.__dict__))

    def heard(self) -> list[Beat | None]:
        """Return the last sign of life of each rank, None where there was none; empty if the store does not answer."""
        with contextlib.suppress(RuntimeError):
            return _read_all(self._store, self.ranks.world) if self._store is not None else []
        return []


def any_silent(before: list[Beat | None], after: list[Beat | None], rank: int) -> bool:
    """Whether a peer of `rank` gave no sign of life between two times of asking, and has not left in good order."""
    pairs = zip(before, after, strict=False)
    return any(
        first == second and (second is None or second.phase != LEFT)
        for peer, (first, second) in enumerate(pairs)
        if peer != rank
    )


def suspects(ranks: Ranks, step: int) -> str:
    """Return in words which peers are silent (they beat no more) or behind `step`; takes some seconds."""
    if ranks.world == 1:
        return "there is no other rank"
    try:
        store = _connect(ranks)
        if store is None:
            raise RuntimeError
        first = _read_all(store, ranks.world)
        time.sleep(2 * max(BEAT_SECONDS, ranks.world / 64) + 0.5)
        second = _read_all(store, ranks.world)
    except RuntimeError:
        where = os.environ.get("MASTER_ADDR", "")
        return f"the place where the ranks met, {where}, does not answer: rank 0 or its node is gone"
    said = []
    for rank in (rank for rank in range(ranks.world) if rank != ranks.rank):
        before, now = first[rank], second[rank]
        if now is None:
            said.append(f"rank {rank} never gave a sign of life")
        elif before == now:
            said.append(f"rank {rank} on {now.host} is silent, last heard of in step {now.step} ({now.phase})")
        elif now.step < step:
            said.append(f"rank {rank} on {now.host} is behind: step {now.step} ({now.phase} for {now.since:.0f} s)")
    return "; ".join(said[:8]) or "every other rank is alive and at this step"


def peer_fault(error: Exception, ranks: Ranks, step: int) -> EnvironmentFault | None:
    """Return a clear error if a collective failed because another rank is gone, else None."""
    text = str(error)
    if not any(sign in text for sign in GONE):
        return None
    what = f"another rank is gone: {suspects(ranks, step)}"
    return EnvironmentFault(what, text.splitlines()[0][:120], "start the same command again: the run goes on")


def _connect(ranks: Ranks) -> TCPStore | None:
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if ranks.world == 1 or not host or not port:
        return None
    with contextlib.suppress(RuntimeError):
        limit = timedelta(seconds=STORE_SECONDS)
        return TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=limit)
    return None


def _read_all(store: TCPStore, world: int) -> list[Beat | None]:
    keys = [_key(rank) for rank in range(world)]
    return [Beat(**json.loads(store.get(key))) if store.check([key]) else None for key in keys]


def _key(rank: int) -> str:
    return f"bloodcell/beat/{rank}"
