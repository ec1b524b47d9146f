"""How much memory this process may still take: what the machine has free, and what its control groups allow."""

from __future__ import annotations

import os
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")


def available_memory(groups: Path = GROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Return bytes: the smallest of what is free on the machine and in each control group above this process.

    Slurm and containers limit a job by a control group (version 1 or 2); file caches count as free.

    Args:
        groups: where control groups are mounted.
        own: the file that names those of this process.
    """
    return max(0, min([_free(), *_limits(groups, own)]))


def _free() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        return values["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):  # not Linux: half of what is built in
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _limits(groups: Path, own: Path) -> list[int]:
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds == "":
            root, names = groups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            root, names = groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        place = root / path.strip("/")
        for folder in [place, *place.parents]:
            if folder.is_relative_to(root):
                found += _left(folder, *names)
    return found


def _left(folder: Path, limit: str, usage: str, cache: str) -> list[int]:
    try:
        most, used = (int((folder / name).read_text(encoding="ascii")) for name in (limit, usage))
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        statistics = dict(line.split() for line in lines)
        return [most - used + int(statistics.get(cache, 0))]
    except (OSError, ValueError):  # no such file, or "max": no limit here
        return []
