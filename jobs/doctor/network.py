"""How fast the processes talk: an all-reduce over all of them, every pair by itself, and how far their clocks differ.

The bus bandwidth of an all-reduce of S bytes over n ranks in t seconds is 2 (n - 1) / n * S / t: what each link
carries in a ring, whatever n is (NVIDIA/nccl-tests, doc/PERFORMANCE.md). Pairs exchange in rounds as in a tournament:
every node meets every other one once, all nodes at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from bloodcell.engine.agree import gather_texts
from bloodcell.ranks import Ranks
from jobs.doctor.findings import Finding, bad, good, unknown
from jobs.doctor.words import node_name

SIZE = {"cuda": 256 << 20, "cpu": 16 << 20}
"""Bytes of a message: ResNet-50's gradients are 102 MB in fp32."""
REPEATS = 3
SLOW_GB_S = 0.012
"""A pair below this is slower than 100 Mbit/s Ethernet: training over it would wait for most of its time."""
UNLIKE = 3.0
"""A pair that is so many times slower than the median of all pairs has something wrong with it."""
SKEW_SECONDS = 2.0
"""Clocks that differ by more let the watchdog and `status` misjudge how old a sign of life is."""


def look(ranks: Ranks, device: torch.device) -> dict[str, Any]:
    """Measure; return {backend, hosts, world, bus_gb_s, pairs: [[a, b, gb_s]], skew}. Collective.

    `hosts` names each rank's node; pairs are of nodes (their first ranks) or, on one node, of its ranks.
    """
    hosts = gather_texts(node_name())
    skew = _skew()
    if ranks.world == 1:
        return {"backend": "", "hosts": hosts, "bus_gb_s": 0.0, "pairs": [], "skew": skew}
    locals_ = [int(text) for text in gather_texts(str(ranks.local_rank))]
    first = [rank for rank, local in enumerate(locals_) if local == 0]
    members = first if len(first) > 1 else list(range(ranks.world))
    message = torch.ones(SIZE[device.type] // 4, device=device)
    seconds = _fastest(lambda: dist.all_reduce(message), device)
    bus = 2 * (ranks.world - 1) / ranks.world * SIZE[device.type] / seconds / 1e9
    return {
        "backend": "NCCL" if device.type == "cuda" else "gloo",
        "hosts": hosts,
        "bus_gb_s": round(bus, 3),
        "pairs": _pairs(ranks, members, device),
        "skew": skew,
    }


def _skew() -> float:
    """Return the seconds between the first and the last clock, all read right after a meeting."""
    if dist.get_world_size() == 1:
        return 0.0
    for _ in range(2):
        dist.barrier()
    mine = torch.tensor([time.time()], dtype=torch.float64)
    all_clocks = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(all_clocks, mine)
    return round(float(max(all_clocks) - min(all_clocks)), 3)


def _fastest(work: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of the fastest repeat, after one that warms up."""
    found = []
    for _ in range(REPEATS + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return min(found[1:])


def _pairs(ranks: Ranks, members: list[int], device: torch.device) -> list[list[float]]:
    """Let every two members exchange a message; return [a, b, GB/s each way], on every rank. Collective."""
    sent = torch.ones(SIZE[device.type] // 4, device=device)
    received = torch.empty_like(sent)
    own: list[list[float]] = []
    for meetings in tournament(len(members)):
        dist.barrier()
        met = {members[a]: members[b] for a, b in meetings}
        met.update({b: a for a, b in met.items()})
        other = met.get(ranks.rank)
        if other is None:
            continue

        def exchange(other: int = other) -> None:
            works = [dist.P2POp(dist.isend, sent, other), dist.P2POp(dist.irecv, received, other)]
            for work in dist.batch_isend_irecv(works if ranks.rank < other else works[::-1]):
                work.wait()

        seconds = _fastest(exchange, device)
        if ranks.rank < other:
            own.append([ranks.rank, other, round(SIZE[device.type] / seconds / 1e9, 4)])
    return sorted(pair for text in gather_texts(_written(own)) for pair in _read(text))


def tournament(count: int) -> list[list[tuple[int, int]]]:
    """Return rounds of disjoint pairs of 0 ... count - 1 in which every two meet once (the circle method)."""
    places: list[int | None] = list(range(count)) + ([None] if count % 2 else [])
    rounds = []
    for _ in range(len(places) - 1):
        half = len(places) // 2
        pairs = zip(places[:half], reversed(places[half:]), strict=True)
        rounds.append([(min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None])
        places = [places[0], places[-1], *places[1:-1]]
    return rounds


def _written(pairs: list[list[float]]) -> str:
    return ";".join(" ".join(map(str, pair)) for pair in pairs)


def _read(text: str) -> list[list[float]]:
    rows = [[float(word) for word in part.split()] for part in text.split(";") if part]
    return [[int(a), int(b), rate] for a, b, rate in rows]


def judge(seen: dict[str, Any]) -> list[Finding]:
    """Say how fast they talk, which pair is the slowest, and whether the clocks agree."""
    hosts, pairs, clocks = seen["hosts"], seen["pairs"], _clocks(seen)
    if not pairs:
        return [unknown(name, "there is one process") for name in ("network", "slowest pair")] + [clocks]
    bus = f"{seen['backend']} all-reduce of {len(hosts)} ranks: {seen['bus_gb_s']:.3g} GB/s on the bus"
    a, b, slowest = min(pairs, key=lambda pair: pair[2])
    names = f"{_name(hosts, a)} and {_name(hosts, b)}: {slowest:.3g} GB/s each way"
    usual = sorted(rate for _, _, rate in pairs)[len(pairs) // 2]
    if slowest < SLOW_GB_S or (len(pairs) > 2 and slowest * UNLIKE < usual):
        said = f"{names}; the median of {len(pairs)} pairs is {usual:.3g}"
        how = "look at cable and switch port of the two, and at NCCL_SOCKET_IFNAME / GLOO_SOCKET_IFNAME (cluster file)"
        pair = bad("slowest pair", said, f"{how}; leave the node out: options = {{ exclude = ... }}")
    else:
        pair = good("slowest pair", f"{names}, of {len(pairs)}")
    return [good("network", bus), pair, clocks]


def _clocks(seen: dict[str, Any]) -> Finding:
    nodes = len(set(seen["hosts"]))
    if nodes == 1:
        return unknown("clocks", "there is one node")
    said = f"{seen['skew']:g} s between the first and the last of {nodes} nodes"
    if seen["skew"] > SKEW_SECONDS:
        return bad("clocks", said, "let NTP or chrony run on every node")
    return good("clocks", said)


def _name(hosts: list[str], rank: int) -> str:
    return hosts[rank] if len(set(hosts)) > 1 else f"rank {rank}"
