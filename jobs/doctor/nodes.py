"""What one process on each node looks at, each thing by itself: a failure of one is a finding, not the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bloodcell.tracking.wandb_view import Mode, wandb_plan
from jobs.doctor import data, decode, folders, versions
from jobs.doctor.words import node_name
from shards.errors import Stop


@dataclass(frozen=True)
class Visit:
    """What is to be looked at: folder, the visit's secret, set (or none), device, W&B mode, this node's place."""

    folder: Path
    secret: str
    set: Path | None
    device: str
    wandb: Mode
    number: int = 0
    nodes: int = 1


def look(visit: Visit) -> dict[str, Any]:
    """Return all that this node tells: {node, number, versions, folders, data, decode, wandb, memory}."""
    place = visit.set
    images = _tried(lambda: {"images": data.sample_images(place, decode.IMAGES) if place else []})
    return {
        "node": node_name(),
        "number": visit.number,
        "versions": versions.look(),
        "folders": folders.look(visit.folder, visit.secret, visit.number, visit.nodes),
        "data": data.look(place, visit.number, visit.nodes) if place else {},
        "decode": _tried(lambda: decode.look(images.get("images", []), visit.device)),
        "wandb": _tried(lambda: dict(zip(("mode", "why"), wandb_plan(visit.wandb), strict=True))),
        "memory": min(psutil.virtual_memory().total, _cgroup()),
    }


def _tried(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return work()
    except Stop as problem:
        return {"problem": str(problem)}
    except Exception as error:  # whatever a broken node raises is the finding
        return {"problem": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}


def _cgroup() -> int:
    """Return the bytes that this process's control group may use, a very large number if there is no limit."""
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(file).read_text())
        except (OSError, ValueError):
            continue
    return 1 << 62
