"""Wait for jobs: ask the controller now and then, one question for all, until none of them can run any more."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.slurm.control import all_jobs
from shards.console import say
from shards.errors import EnvironmentFault

OVER = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY", "REVOKED"),
}
"""States that a job does not leave. NODE_FAIL and PREEMPTED are none: such jobs are queued again."""

SECONDS = 2.0


def wait(numbers: Sequence[str], launcher: str, runs: Sequence[Path]) -> dict[str, Any]:
    """Wait until all jobs are over; return {"states": {job: state}, "exit": code, "lines": for people}.

    The exit code is 0 if all completed, else that of the first run that tells one, else 3.
    """
    states = _local(numbers) if launcher == "local" else _slurm(numbers)
    bad = [number for number, state in states.items() if state != "COMPLETED"]
    codes = [code for run in runs if (code := _code(run))]
    if launcher == "local" and codes:
        states = dict.fromkeys(states, "FAILED")
    code = (codes[0] if codes else EnvironmentFault.code) if bad or codes else 0
    lines = [f"job {number}: {state}" for number, state in states.items()]
    return {"states": states, "exit": code, "lines": lines}


def _slurm(numbers: Sequence[str]) -> dict[str, str]:
    states: dict[str, str] = {}
    missing = 0
    while True:
        known = all_jobs()
        new = {number: known.get(number, {}).get("JobState", "") for number in numbers}
        for number, state in new.items():
            if state and states.get(number) != state:
                say(f"job {number}: {state}")
        states.update({number: state for number, state in new.items() if state})
        missing = 0 if all(new.values()) else missing + 1
        if all(states.get(number) in OVER for number in numbers) or missing > 30:
            return {number: states.get(number, "UNKNOWN") for number in numbers}
        time.sleep(SECONDS)


def _local(numbers: Sequence[str]) -> dict[str, str]:
    for number in numbers:
        while _runs(int(number)):
            time.sleep(SECONDS / 10)
    return dict.fromkeys(numbers, "COMPLETED")


def _runs(pid: int) -> bool:
    try:
        done, _ = os.waitpid(pid, os.WNOHANG)
        return done == 0
    except ChildProcessError:
        return Path(f"/proc/{pid}").exists()


def _code(run: Path) -> int:
    from bloodcell.runfolder import RunFolder

    outcome = (RunFolder(run).read("status.json") or {}).get("outcome")
    return int(outcome.get("code", 0)) if isinstance(outcome, dict) else EnvironmentFault.code
