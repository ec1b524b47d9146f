"""Start the `bloodcell` command in other processes: alone, or on several ranks through torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from shards.errors import BadInput, CheckFailed, EnvironmentFault, Fault, Stop, Stopped

KINDS: dict[int, type[Stop]] = {kind.code: kind for kind in (CheckFailed, BadInput, EnvironmentFault, Stopped, Fault)}


def bloodcell(*arguments: str) -> list[str]:
    """Return the command line of a verb in this interpreter."""
    return [sys.executable, "-m", "jobs.cli", *arguments]


def torchrun(ranks: int, *arguments: str) -> list[str]:
    """Return the command line of a verb on several ranks of this machine, on a port that torchrun finds free."""
    launcher = ["-m", "jobs.torchrun", "--standalone", "--nproc-per-node", str(ranks), "-m", "jobs.cli"]
    return [sys.executable, *launcher, *arguments]


def call(command: Sequence[str], what: str) -> dict[str, Any]:
    """Run a verb with --json, its progress passing through on stderr; return the object that it printed.

    Raises:
        Stop: the verb ended early; of the kind that its exit code or its error object names.
    """
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, text=True, env=environment, check=False)
    objects = [line for line in done.stdout.splitlines() if line.startswith("{")]
    value: dict[str, Any] = json.loads(objects[-1]) if objects else {}
    if done.returncode == 0 and value:
        return value
    said = value.get("error", {})
    kind = KINDS.get(value.get("exit", done.returncode), Fault)
    raise kind(
        said.get("what", f"{what} ended with code {done.returncode}"), said.get("where", ""), said.get("fix", "")
    )
