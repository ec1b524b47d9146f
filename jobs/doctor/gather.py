"""Send the doctor to the nodes as a short job, or start it on this machine; bring back what it tells."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from jobs.doctor import folders, words
from jobs.launch import torchrun
from jobs.slurm.control import slurm, without_job
from jobs.slurm.description import JobDescription, directives
from jobs.slurm.render import common, head
from jobs.slurm.send import refused
from jobs.slurm.waiting import wait
from shards.atomic import open_atomic
from shards.console import say
from shards.errors import EnvironmentFault

MINUTES = 15
"""Limit of the doctor's own job."""
END = "@doctor-end"
RANKS = "@doctor-ranks"
"""Stands in the log between what nodes and what ranks say: tasks are numbered from 0 in both."""
LATE = 15.0
"""Seconds that the log of a job that is over may take to be seen here."""


@dataclass
class Told:
    """What came back: words, both logs, the job's number, its last state, and the nodes whose tokens are seen here."""

    heard: words.Heard = field(default_factory=dict)
    log: str = ""
    ranks_log: str = ""
    job: str = ""
    state: str = ""
    tokens: set[str] = field(default_factory=set)


def script(job: JobDescription, arguments: Sequence[str], folder: Path) -> str:
    """Return the job: train.sbatch with one look at each node, then one at all ranks together, in place of training.

    Nothing is staged, signalled or queued again.
    """
    before = common("doctor")[0]
    short = replace(job, name="bloodcell-doctor", minutes=min(job.minutes, MINUTES), array=0)
    options = {**directives(short), "output": str(folder / "job.out")}
    options.pop("signal")
    asked = [f"#SBATCH --{name}" + (f"={shlex.quote(value)}" if value else "") for name, value in options.items()]
    cpus = '--cpus-per-task="$SRUN_CPUS_PER_TASK"'
    each = f'srun --label --ntasks-per-node=1 --ntasks="$SLURM_JOB_NUM_NODES" {cpus}'
    ranks = f"srun --label --kill-on-bad-exit=1 {cpus}"
    steps = [
        f'{start} "${{SRUN[@]}}" "${{BLOODCELL[@]}}" doctor --probe {what} "$@"'
        for start, what in ((each, "nodes"), (ranks, "ranks"))
    ]
    return "\n".join(
        [
            "#!/bin/bash",
            *asked,
            "",
            *head(short, [arguments]),
            "",
            *before,
            steps[0],
            f"echo {RANKS}",
            steps[1],
            f"echo {END}",
            "",
        ]
    )


def on_cluster(job: JobDescription, arguments: Sequence[str], folder: Path, secret: str) -> Told:
    """Submit, wait for the end, and listen: to the log first, and to the folder for whose it is.

    Raises:
        BadInput: sbatch refuses the job.
    """
    file = folder / "doctor.sbatch"
    with open_atomic(file, "w") as handle:
        handle.write(script(job, arguments, folder))
    try:
        number = slurm("sbatch", "--parsable", str(file)).strip().split(";")[0]
    except EnvironmentFault as problem:
        raise refused(problem.what) from None
    say(f"job {number}: looks at {job.nodes} nodes; its log is {folder / 'job.out'}")
    try:
        state = wait([number], "slurm", [])["states"][number]
    except KeyboardInterrupt:
        slurm("scancel", number)
        raise
    log = _log(folder / "job.out")
    numbers = {str(node) for node in range(job.nodes)}
    seen = {node for node in numbers if folders.sees(folder, node, secret)}
    of_nodes, _, of_ranks = log.partition(RANKS)
    return Told(words.heard(log), of_nodes, of_ranks, number, state, seen)


def _log(file: Path) -> str:
    end = time.monotonic() + LATE
    text = ""
    while END not in text and time.monotonic() < end:
        try:
            os.listdir(file.parent)
            text = file.read_text(errors="replace")
        except OSError:
            text = ""
        time.sleep(0.2)
    return text


def here(ranks: int, arguments: Sequence[str]) -> Told:
    """Start the ranks on this machine, through torchrun; what they print besides is the log."""
    environment = {**without_job(os.environ), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    command = torchrun(ranks, "doctor", "--probe", "ranks", *arguments)
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, check=False
    )
    return Told(words.heard(done.stdout), done.stdout, done.stdout)


def blamed(log: str) -> str:
    """Return the line of a log that says why a rank failed: ours, else the last one of a Python error."""
    lines = [re.sub(r"^\s*\d+: ", "", line).strip() for line in log.splitlines()]
    ours = [line for line in lines if line.startswith("bloodcell")]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Fault)\b", line)]
    return next(iter([*ours[:1], *errors[-1:]]), "it left no word")[:300]
