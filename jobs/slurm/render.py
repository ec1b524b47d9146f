"""One job description, two renderings that ask Slurm for the same: parameters of submitit, and an sbatch script."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jobs.slurm.description import JobDescription, directives

SLURM = Path(__file__).resolve().parents[2] / "slurm"
"""Scripts, cluster files and the development cluster; beside the packages, in a checkout and in an installed wheel."""

ONE_TASK = 'srun --overlap --nodes=1 --ntasks=1 --ntasks-per-node=1 "${SRUN[@]}"'
"""How the script starts one command where only srun leads into the container."""

MARK = "# ---- the same in every job ----"


@cache
def common(verb: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the lines of train.sbatch that a job of this verb takes: those before the ranks are started, those after.

    Only training finds what is staged.
    """
    lower = (SLURM / "train.sbatch").read_text(encoding="utf-8").partition(MARK)[2].strip().splitlines()
    place = next(number for number, line in enumerate(lower) if line.startswith("srun "))
    before, after = (
        tuple(line for line in part if verb == "train" or "BLOODCELL_SCRATCH" not in line)
        for part in (lower[:place], lower[place + 1 :])
    )
    return before, after


def head(job: JobDescription, arguments: Sequence[Sequence[str]]) -> list[str]:
    """Return the shell lines of this job: what its site needs, how the command is started, what it is told.

    Args:
        job: its description.
        arguments: of the verb, for each job of the array (or for the one job).
    """
    lines = [
        *job.site,
        f"BLOODCELL=({shlex.join(job.program)})",
        f"SRUN=({shlex.join(job.srun)})",
        f"HERE=({ONE_TASK if job.boxed else ''})",
        f"export BLOODCELL_SIGNAL_LEAD={job.signal_lead} BLOODCELL_MAX_REQUEUES={job.max_requeues}",
    ]
    if job.array:
        cases = [f"{number}) set -- {shlex.join(words)} ;;" for number, words in enumerate(arguments)]
        return [*lines, 'case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac"]
    return [*lines, f"set -- {shlex.join(arguments[0])}"]


def sbatch_script(job: JobDescription, arguments: Sequence[Sequence[str]], logs: Path, verb: str = "train") -> str:
    """Return the whole script for sbatch: train.sbatch with this job's options and lines in place of its own.

    Args:
        job: its description.
        arguments: see `head`.
        logs: folder for one log of each rank.
        verb: of the `bloodcell` command.
    """
    before, after = common(verb)
    number = "%A_%a" if job.array else "%j"
    options = {**directives(job), "output": f"{logs}/{number}_0_log.out"}
    asked = [f"#SBATCH --{name}" + (f"={shlex.quote(value)}" if value else "") for name, value in options.items()]
    ranks = shlex.quote(f"{logs}/{number}_%t_log.out")
    start = f'srun --unbuffered --output={ranks} --kill-on-bad-exit=1 --cpus-per-task="$SRUN_CPUS_PER_TASK"'
    command = f'{start} "${{SRUN[@]}}" "${{BLOODCELL[@]}}" {verb} "$@"'
    return "\n".join(["#!/bin/bash", *asked, "", *head(job, arguments), "", *before, command, *after, ""])


def submitit_parameters(job: JobDescription, arguments: Sequence[Sequence[str]], verb: str) -> dict[str, Any]:
    """Return what submitit's SlurmExecutor.update_parameters takes for this job."""
    before, after = common(verb)
    asked = directives(job)
    own = ("array", "signal", "open-mode", "requeue", "kill-on-invalid-dep")
    named = {name.replace("-", "_"): value for name, value in asked.items() if name not in own}
    known = ("job_name", "partition", "account", "qos", "constraint", "mem", "dependency")
    further = dict(job.options)
    return {
        **{name: value for name, value in named.items() if name in known},
        "nodes": job.nodes,
        "ntasks_per_node": job.tasks_per_node,
        "cpus_per_task": job.cpus_per_task,
        "time": job.minutes,
        **({"gpus_per_node": job.gpus_per_node} if job.gpus_per_node else {}),
        "signal_delay_s": job.signal_lead,
        "array_parallelism": job.parallel or max(job.array, 1),
        "wckey": None,  # submitit's own name there: some sites refuse keys that they do not know
        "stderr_to_stdout": True,
        "setup": [*head(job, arguments), *before],
        "teardown": list(after),
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={job.cpus_per_task}", *job.srun],
        "additional_parameters": {
            "requeue": True,
            **({"kill-on-invalid-dep": "yes"} if job.dependency else {}),
            **further,
        },
    }
