"""The shard set as a node sees it: are its shards those that were packed, how fast are they read."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bloodcell.data.shardset import Reader, ShardSet
from jobs.doctor.findings import Finding, bad, good, listed, unknown
from shards.errors import Stop, Unreadable
from shards.verify_shard import ShardTask, check_shard

SECONDS = 20.0
"""How long checksums are compared; a small set is checked whole, of a large one each node checks other shards."""
READS = 2000
READ_SECONDS = 3.0

Node = dict[str, Any]


def look(folder: Path, number: int, nodes: int) -> dict[str, Any]:
    """Return {checked, of, wrong: lines, mb_s, images_s} of this node, or {problem}."""
    try:
        shards = ShardSet.open(folder)
        found = _checksums(shards, number, nodes)
        rate, unreadable = _rate(shards, number)
        return {**found, "images_s": round(rate, 1), "wrong": found["wrong"] or unreadable}
    except Stop as problem:
        return {"problem": str(problem)}


def _checksums(shards: ShardSet, number: int, nodes: int) -> dict[str, Any]:
    """Compare whole shards with dataset.json, each node beginning at another one."""
    known = shards.info.shards
    first = number * len(known) // max(nodes, 1)
    wrong: list[str] = []
    checked = done = 0
    begin = time.monotonic()
    for shard in [*known[first:], *known[:first]]:
        _forget(shards.folder / shard.file)
        found = check_shard(ShardTask(shards.folder, shard, None))
        wrong += [f"{found.file}: {problem}" for _, problem in found.found[:1]]
        checked, done = checked + 1, done + found.bytes
        if time.monotonic() - begin > SECONDS:
            break
    seconds = max(time.monotonic() - begin, 1e-9)
    return {"checked": checked, "of": len(known), "wrong": wrong, "mb_s": round(done / 1e6 / seconds, 1)}


def _rate(shards: ShardSet, number: int) -> tuple[float, list[str]]:
    """Return images a second, read in random order and compared with their checksums, and what cannot be read."""
    for shard in shards.info.shards[:64]:
        _forget(shards.folder / shard.file)
    ids = np.random.default_rng(number).integers(len(shards.index), size=READS)
    reader, begin, count = Reader(shards), time.perf_counter(), 0
    wrong: list[str] = []
    try:
        for sample in ids.tolist():
            try:
                reader.read(sample)
            except Unreadable as problem:
                wrong.append(f"{problem.what}: {problem.where}")
            count += 1
            if time.perf_counter() - begin > READ_SECONDS:
                break
    finally:
        reader.close()
    return count / max(time.perf_counter() - begin, 1e-9), wrong[:1]


def _forget(file: Path) -> None:
    """Ask the system to drop what it holds of a file in memory: the disk, not the memory, is to be timed."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def sample_images(folder: Path, count: int) -> list[np.ndarray]:
    """Return the bytes of some images of a set, uint8 [size] each; raises Stop."""
    shards = ShardSet.open(folder)
    reader = Reader(shards)
    try:
        return [reader.read(sample) for sample in np.linspace(0, len(shards.index) - 1, count).astype(int).tolist()]
    finally:
        reader.close()


def judge(nodes: Sequence[Node]) -> list[Finding]:
    """Say which nodes read other bytes than were packed, and which one reads slowest."""
    names = ("shards", "reading shards")
    seen = {node["node"]: node["data"] for node in nodes}
    if not any(seen.values()):
        return [unknown(name, "no --data SET is named") for name in names]
    problems = [f"{where}: {data['problem']}" for where, data in seen.items() if "problem" in data]
    alike: dict[str, list[str]] = {}
    for where, data in seen.items():
        for line in data.get("wrong", ()):
            alike.setdefault(line, []).append(where)
    problems += [f"{line} (seen on {listed(places)})" for line, places in alike.items()]
    if problems:
        fix = "restore the shard where it is wrong (`bloodcell verify SET` there names each sample), or pack again"
        return [bad(names[0], listed(problems), fix), unknown(names[1], "the shards come first")]
    spots = ", ".join(f"{data['checked']} of {data['of']} on {where}" for where, data in seen.items())
    slowest = min(seen, key=lambda where: seen[where]["images_s"])
    rate = seen[slowest]
    said = f"{rate['images_s']:,.0f} images/s at random, {rate['mb_s']:,.0f} MB/s in order, one thread"
    where = f"; {slowest} is the slowest of {len(seen)} nodes" if len(seen) > 1 else ""
    return [good(names[0], f"sha256 as packed: {listed([spots])}"), good(names[1], said + where)]
