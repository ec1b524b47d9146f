"""Slurm's commands as this program calls them: few, short, and without the variables of a job around us."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from shards.errors import BadInput, EnvironmentFault

LEAKING = re.compile(
    r"(SLURM_|SBATCH_|SRUN_|PMIX?_|SUBMITIT_|LOCAL_|GROUP_|TORCHELASTIC_)|(RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT)$"
)
KEPT = ("SLURM_CONF",)


def without_job(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what an outer job or launcher left there: inner jobs would obey it."""
    return {key: value for key, value in environment.items() if key in KEPT or not LEAKING.match(key)}


@contextmanager
def scrubbed() -> Iterator[None]:
    """Take an outer job's variables out of this process's environment for the length of the block."""
    before = dict(os.environ)
    clean = without_job(before)
    for key in set(before) - set(clean):
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(before)


def slurm(*command: str) -> str:
    """Return what a Slurm command prints.

    Raises:
        BadInput: the command is not installed here.
        EnvironmentFault: it fails; its own words are in the message.
    """
    if not shutil.which(command[0]):
        raise BadInput(
            f"there is no {command[0]} here",
            "Slurm",
            "submit from a login node of the cluster, or choose --cluster local",
        )
    try:
        environment = without_job(os.environ)
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(f"{command[0]} does not answer", "Slurm", "is the controller up?") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"code {done.returncode}"
        raise EnvironmentFault(f"{command[0]} failed: {said}", "Slurm", "is the controller up? try `sinfo`")
    return done.stdout


def job_facts(job: str) -> dict[str, str]:
    """Return what the controller knows about a job (JobState, Reason, NodeList, ...); {} if it has forgotten it.

    No accounting is asked: it may be off, and it is slow.
    """
    try:
        text = slurm("scontrol", "show", "job", "-o", job)
    except EnvironmentFault as problem:
        if "Invalid job id" in str(problem):
            return {}
        raise
    return facts(text.splitlines()[0]) if text.strip() else {}


def all_jobs() -> dict[str, dict[str, str]]:
    """Return {job id: facts} of all jobs that the controller knows, in one call; array tasks as 12_3."""
    found = {}
    for line in slurm("scontrol", "show", "job", "-o").splitlines():
        if (known := facts(line)).get("JobId"):
            found[known["JobId"]] = known
            for task in tasks(known.get("ArrayTaskId", "")):
                found[f"{known['ArrayJobId']}_{task}"] = known
    return found


def tasks(text: str) -> list[int]:
    """Return the numbers that an ArrayTaskId names: 3, or those that still wait together: 0-2,5%4."""
    ranges = re.findall(r"(\d+)(?:-(\d+))?", text.partition("%")[0])
    return [number for first, last in ranges for number in range(int(first), int(last or first) + 1)]


def facts(line: str) -> dict[str, str]:
    """Return the KEY=VALUE words of a line of scontrol."""
    return dict(re.findall(r"(?:^| )([A-Za-z][\w/:-]*)=(\S*)", line))
