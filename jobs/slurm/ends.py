"""How the ranks of a run ended, one line for each: what launchers that hide exit codes do not tell.

RUN/slurm/ends.jsonl {"job", "restart", "rank", "node", "code", "what", "time"}: written by the ranks, one line each.
RUN/slurm/requeues.jsonl {"job", "restart", "code", "step", "again", "why", "time"}: written by the job script.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shards.errors import BadInput, EnvironmentFault, Fault, Stop, Stopped

DECISIVE = (BadInput.code, Fault.code, Stopped.code, EnvironmentFault.code)
"""Codes of the ranks of one start, the one that explains the others first: a peer that is gone is a consequence."""


def place(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the Slurm job and the start of it that this process belongs to; {} outside Slurm."""
    job = environment.get("SLURM_JOB_ID")
    return {"job": int(job), "restart": int(environment.get("SLURM_RESTART_COUNT", 0))} if job else {}


@contextmanager
def recorded(run: Path | None) -> Iterator[None]:
    """Note how the block ends, if it ends badly and a Slurm job runs it in a run folder."""
    try:
        yield
    except Stop as problem:
        _note(run, problem.code, str(problem))
        raise
    except Exception as error:
        _note(run, Fault.code, f"{type(error).__name__}: {error}")
        raise


def _note(run: Path | None, code: int, what: str) -> None:
    if run is None or not place() or not run.is_dir():
        return
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))
    append(
        run / "slurm" / "ends.jsonl",
        {**place(), "rank": rank, "node": platform.node(), "code": code, "what": " ".join(what.split())[:500]},
    )


def append(file: Path, record: dict[str, Any]) -> None:
    """Append one line in one write: lines of several nodes do not mix."""
    try:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        with open(file, "ab", buffering=0) as handle:
            handle.write(json.dumps({**record, "time": round(time.time(), 3)}).encode() + b"\n")
    except OSError:
        return  # a disk that is full must not hide why the run ended


def read(file: Path) -> list[dict[str, Any]]:
    """Return the records of a file, without lines that were cut off."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def explain(run: Path, here: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record that explains how one start of a job ended: {"code", "what", "rank", ...}, or None."""
    known = [r for r in read(run / "slurm" / "ends.jsonl") if all(r.get(key) == value for key, value in here.items())]
    order = {code: number for number, code in enumerate(DECISIVE)}
    known.sort(key=lambda record: (order.get(record.get("code", -1), len(order)), record.get("time", 0)))
    return known[0] if known else None
