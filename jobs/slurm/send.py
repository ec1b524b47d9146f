"""Hand jobs to Slurm, through submitit or sbatch, or to submitit's local executor; show what would be handed over."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.slurm.control import scrubbed, slurm
from jobs.slurm.description import JobDescription
from jobs.slurm.job import Job, LocalJob
from jobs.slurm.render import sbatch_script, submitit_parameters
from shards.atomic import open_atomic
from shards.errors import BadInput, EnvironmentFault


def submitit_text(job: JobDescription, words: Sequence[Sequence[str]], folder: Path, verb: str = "train") -> str:
    """Return the script that `send` makes submitit hand to sbatch."""
    from submitit.slurm.slurm import _make_sbatch_string

    count = {"map_count": job.array} if job.array else {}
    command = f"{_python(job)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return str(_make_sbatch_string(command=command, folder=folder, **submitit_parameters(job, words, verb), **count))


def send(job: JobDescription, words: Sequence[Sequence[str]], folder: Path, verb: str = "train") -> list[str]:
    """Submit through submitit; return the id of each job of the array, or of the one.

    Args:
        job: what Slurm is asked for.
        words: arguments of the verb, for each job of the array.
        folder: for submitit's files and a log of each rank; made, and closed to others: submitit unpickles what lies
            there.
        verb: of the `bloodcell` command.

    Raises:
        BadInput: sbatch refuses the job; its own words are in the message.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.slurm.slurm import SlurmExecutor

    private(folder)
    calls = [Job((verb, *each)) for each in words]
    with scrubbed():
        executor = SlurmExecutor(folder, max_num_timeout=job.max_requeues, python=_python(job))
        executor.update_parameters(**submitit_parameters(job, words, verb))
        try:
            sent = executor.submit_array(calls) if job.array else [executor.submit(calls[0])]
        except (FailedJobError, FailedSubmissionError) as error:
            raise refused(str(error)) from None
    return [str(one.job_id) for one in sent]


def send_script(job: JobDescription, words: Sequence[Sequence[str]], folder: Path, verb: str = "train") -> list[str]:
    """Submit the sbatch rendering; return what `send` returns. The script is kept as FOLDER/job.sbatch."""
    private(folder)
    script = folder / "job.sbatch"
    with open_atomic(script, "w") as file:
        file.write(sbatch_script(job, words, folder, verb))
    try:
        number = slurm("sbatch", "--parsable", str(script)).strip().split(";")[0]
    except EnvironmentFault as problem:
        raise refused(problem.what) from None
    return [f"{number}_{task}" for task in range(job.array)] if job.array else [number]


def send_local(job: JobDescription, words: Sequence[str], folder: Path) -> list[str]:
    """Start the ranks on this machine, in the background; return the number of the process that looks after them."""
    from submitit.local.local import LocalExecutor

    private(folder)
    with scrubbed():
        executor = LocalExecutor(folder)
        gpus = tuple(range(job.gpus_per_node))
        visible = {"gpus_per_node": len(gpus), "visible_gpus": gpus} if gpus else {}
        executor.update_parameters(timeout_min=job.minutes, stderr_to_stdout=True, setup=list(job.site), **visible)
        sent = executor.submit(LocalJob(("train", *words), job.world))
    return [str(sent.job_id)]


def refused(text: str) -> BadInput:
    """Return sbatch's refusal as one line."""
    said = re.findall(r"sbatch: error: (.*)", text)
    reason = " ".join(said).strip() or text.strip().splitlines()[-1]
    return BadInput(f"sbatch refuses the job: {reason}", "Slurm", "ask for what the cluster has: see `sinfo`")


def private(folder: Path) -> None:
    """Make a folder for one's own eyes."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)


def _python(job: JobDescription) -> str:
    """Return how the description's program starts Python: all before `-m jobs.cli`."""
    words = job.program[: job.program.index("-m")] if "-m" in job.program else (sys.executable,)
    return shlex.join(words)


def at(job: JobDescription, place: Path) -> JobDescription:
    """Return a job of another verb than train, with the folder that takes what its script decides when it ends."""
    return replace(job, site=(*job.site, f"export BLOODCELL_PLACE={shlex.quote(str(place))}"))
