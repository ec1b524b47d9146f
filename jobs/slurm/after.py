"""What a job script does when training has ended: queue the same job again, or let it end; decided in one place."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.slurm import ends
from shards.console import say
from shards.errors import CheckFailed, EnvironmentFault, Stopped

IDLE = 3
"""Starts that may fail one after another without a step of progress: a fourth would only fail again."""


@dataclass(frozen=True)
class Decision:
    """Whether the job is queued again, the exit code that training ended with, and why."""

    again: bool
    code: int
    why: str


def decide(code: int, step: int, history: Sequence[dict[str, Any]], limit: int, told: bool = True) -> Decision:
    """Decide what becomes of a job whose training has ended.

    Args:
        code: exit code of the verb; above 128 for a death by signal (code - 128).
        step: training steps that are done, or another measure of progress.
        history: earlier decisions of this run: {"code", "step", "again"}.
        limit: how often the run may be queued again.
        told: whether the program itself said why it ended; a library that ends the process does not.
    """
    if code == 0:
        return Decision(False, 0, "finished")
    killed = code > 128 or (code == CheckFailed.code and not told)
    if code not in (Stopped.code, EnvironmentFault.code) and not killed:
        return Decision(False, code, f"code {code}: starting again will not help")
    again = [record for record in history if record.get("again")]
    if len(again) >= limit:
        return Decision(False, code, f"queued again {len(again)} times, which is the limit")
    idle = [record.get("step") == step and record.get("code") != Stopped.code for record in history[-IDLE + 1 :]]
    if code != Stopped.code and len(idle) == IDLE - 1 and all(idle):
        return Decision(False, code, f"{IDLE} starts failed at step {step} without going on")
    why = {Stopped.code: "stopped by a signal after saving", EnvironmentFault.code: "the environment failed"}
    silent = f"killed by signal {code - 128}" if code > 128 else f"ended with code {code} without a word"
    return Decision(True, code, why.get(code, silent))


def after(code: int, run: Path) -> tuple[int, bool]:
    """Decide and write it down; return the exit code of the job and whether its script shall queue it again."""
    from bloodcell.runfolder import RunFolder

    here = ends.place()
    status = RunFolder(run).read("status.json") or {}
    told = (ends.explain(run, here) or _outcome(status, here)) if code else None
    code = told["code"] if told else code
    step = int(status.get("step", 0)) or _lines(run / "journal.jsonl")
    history = [r for r in ends.read(run / "slurm" / "requeues.jsonl") if not here or r.get("job") == here["job"]]
    decision = decide(code, step, history, int(os.environ.get("BLOODCELL_MAX_REQUEUES", "20")), bool(told))
    again = decision.again and bool(here) and may_requeue(here["job"])
    if code and run.is_dir():
        record = {**here, "code": code, "step": step, "again": again, "why": decision.why}
        ends.append(run / "slurm" / "requeues.jsonl", record)
    what = f" ({told['what']})" if told else ""
    say(f"job {here.get('job', '')}: {decision.why}{what}" + (", queued again" if again else ""))
    return decision.code, again


def _lines(journal: Path) -> int:
    """Return how far a sweep has come: each step is a line of its journal."""
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def _outcome(status: dict[str, Any], here: dict[str, Any]) -> dict[str, Any] | None:
    """Return what status.json says about the end of this start of the job: a watchdog leaves no other word."""
    outcome = status.get("outcome")
    mine = all(status.get(key) == value for key, value in here.items())
    return dict(outcome) if mine and isinstance(outcome, dict) and outcome.get("code") else None


def may_requeue(job: int) -> bool:
    """Whether Slurm still runs the job and lets it be requeued: what somebody cancels stays cancelled.

    In a container without Slurm's commands nobody knows; there, Slurm refuses steps of a job that was cancelled.
    """
    if not shutil.which("scontrol"):
        return True
    shown = subprocess.run(["scontrol", "show", "job", "-o", str(job)], capture_output=True, text=True, check=False)
    state = re.search(r"\bJobState=(\w+)", shown.stdout)
    return state is not None and state.group(1) == "RUNNING" and "Requeue=0" not in shown.stdout.split()
