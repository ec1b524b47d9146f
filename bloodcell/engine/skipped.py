"""RUN/skipped.csv: the samples that a training could not read and left out, a row for each time."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from bloodcell.data.shardset import ShardSet
from shards.atomic import open_atomic

SKIPPED_FILE = "skipped.csv"
NAMED = 20
"""Keys that status.json names; skipped.csv has all."""
COLUMNS = ("step", "micro_batch", "row", "key", "shard", "offset", "problem")


def write_left_out(run: Path, shards: ShardSet, left_out: list[dict[str, Any]]) -> None:
    """Write the list anew, whole; it goes away where nothing was left out.

    Args:
        run: the run folder.
        shards: the set.
        left_out: leaving_out.LeftOut as dicts; steps are counted from 0.

    Raises:
        EnvironmentFault: the disk is full or fails.
    """
    if not left_out:
        (run / SKIPPED_FILE).unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in left_out:
        sample = one["id"]
        place = (shards.keys[sample], shards.shard_of(sample), int(shards.index["offset"][sample]))
        writer.writerow([one["step"], one["micro_batch"], one["row"], *place, one["problem"]])
    with open_atomic(run / SKIPPED_FILE) as file:
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))


def describe_left_out(left_out: list[dict[str, Any]]) -> str:
    """Return how many samples were left out, and how often, in words."""
    samples = len({one["id"] for one in left_out})
    noun = "sample that could not be read was" if samples == 1 else "samples that could not be read were"
    return f"{samples} {noun} left out of training, {len(left_out)} times in all"


def left_out_facts(shards: ShardSet, left_out: list[dict[str, Any]]) -> dict[str, Any]:
    """Return {"samples", "times", "keys"} for status.json and the report: how many, how often, the first of them."""
    ids = list(dict.fromkeys(one["id"] for one in left_out))
    return {"samples": len(ids), "times": len(left_out), "keys": [shards.keys[i] for i in ids[:NAMED]]}
