"""What a trace of torch.profiler tells about a step: how long ranks talked, and how much of that nothing hid."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.profiler import profile

Span = tuple[float, float]
TALK = ("gloo:", "nccl", "c10d::")
MOST = 10
"""Operations that are listed."""


@dataclass(frozen=True)
class Events:
    """Spans in microseconds: of communication, and of computing (of the GPU where there is one)."""

    talking: list[Span]
    computing: list[Span]
    on_device: bool

    @classmethod
    def read(cls, file: Path) -> Events:
        """Return what a trace file holds (Chrome's format, gzipped)."""
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            events = [event for event in json.load(stream)["traceEvents"] if event.get("ph") == "X"]
        kernels = [event for event in events if event.get("cat") == "kernel"]
        names = TALK[1:2] if kernels else TALK[:2]
        said = [e for e in kernels or events if str(e["name"]).lower().startswith(names)]
        others = kernels or [event for event in events if event.get("cat") == "cpu_op"]
        done = [e for e in others if not str(e["name"]).lower().startswith(TALK)]
        return cls(_spans(said), _spans(done), bool(kernels))


def collectives(events: Events, steps: int) -> dict[str, float | None]:
    """Return {all_reduce, exposed, busy}: seconds of a step with communication under way, those of them in which
    nothing was computed meanwhile, and those in which the GPU worked (None without one)."""
    talking, computing = merged(events.talking), merged(events.computing)
    spoken = length(talking)
    busy = length(merged([*talking, *computing])) / 1e6 / steps if events.on_device else None
    exposed = spoken - length(overlap(talking, computing))
    return {"all_reduce": spoken / 1e6 / steps, "exposed": exposed / 1e6 / steps, "busy": busy}


def busiest(trace: profile, device: str, steps: int) -> list[tuple[str, float, int]]:
    """Return (operation, seconds of a step in it alone, calls in a step) of those that take longest."""
    time = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    found = [row for row in trace.key_averages() if not row.key.startswith("bloodcell:")]
    found.sort(key=lambda row: -float(getattr(row, time)))
    return [(row.key, float(getattr(row, time)) / 1e6 / steps, round(row.count / steps)) for row in found[:MOST]]


def merged(spans: Iterable[Span]) -> list[Span]:
    """Return the union of spans as spans that do not touch, in their order."""
    found: list[Span] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found


def overlap(one: list[Span], other: list[Span]) -> list[Span]:
    """Return where both of two unions (of merged()) are."""
    found, first = [], 0
    for begin, end in one:
        while first < len(other) and other[first][1] <= begin:
            first += 1
        place = first
        while place < len(other) and other[place][0] < end:
            found.append((max(begin, other[place][0]), min(end, other[place][1])))
            place += 1
    return found


def length(spans: Iterable[Span]) -> float:
    """Return the length of spans that do not overlap."""
    return sum(end - begin for begin, end in spans)


def _spans(events: list[dict[str, Any]]) -> list[Span]:
    return [(float(event["ts"]), float(event["ts"]) + float(event.get("dur", 0))) for event in events]
