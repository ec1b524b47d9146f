"""What Slurm allows this job: time, being queued again, and a warning that comes early enough for a save."""

from __future__ import annotations

import re
from typing import Any

from jobs.doctor.findings import Finding, bad, good, unknown
from jobs.slurm.checks import default_partition
from jobs.slurm.cluster import minutes
from jobs.slurm.control import facts, job_facts, slurm
from jobs.slurm.description import JobDescription

LEAVING = 15
"""Seconds for the ranks to leave and for the job script to queue the job again: it starts Python, and asks Slurm."""


def look(job: JobDescription, number: str) -> dict[str, Any]:
    """Return what Slurm says of the doctor's own job and its partition, both as scontrol words."""
    name = job.partition or default_partition()
    text = slurm("scontrol", "show", "partition", "-o", name) if name else ""
    return {"partition": facts(text.splitlines()[0]) if text.strip() else {}, "job": job_facts(number)}


def needed(step: float, save: float) -> float:
    """Return the seconds between signal and end: ranks agree within two steps, save, and leave."""
    return 2 * step + save + LEAVING


def judge(job: JobDescription, seen: dict[str, Any], step: float | None, save: float | None) -> list[Finding]:
    """Say whether a long run survives here; `step` and `save` as measured, None where they were not."""
    partition, own = seen["partition"], seen["job"]
    limit = partition.get("MaxTime", "UNLIMITED")
    longest = f"{minutes(limit, 'scontrol')} min" if limit[:1].isdigit() else "any time"
    where = partition.get("PartitionName", "the default partition")
    found = [good("time limit", f"{job.minutes} min are asked for, {where} allows {longest}")]
    again = "being queued again"
    if own.get("Requeue") == "0":
        fix = "take no-requeue out of the cluster file's options, or ask the site why it forbids it"
        found.append(bad(again, "Slurm will not queue this job again", fix))
    else:
        found.append(good(again, f"allowed, up to {job.max_requeues} times") if own else unknown(again, "job unknown"))
    return [*found, *_leads(job, partition, step, save)]


def _leads(job: JobDescription, partition: dict[str, str], step: float | None, save: float | None) -> list[Finding]:
    names = ("warning before the end", "warning before preemption")
    if step is None or save is None:
        return [unknown(name, "a step and a save of the recipe were not timed") for name in names]
    need = needed(step, save)
    parts = f"two steps ({2 * step:.2g} s), a save ({save:.2g} s) and leaving ({LEAVING} s)"
    said = f"{job.signal_lead} s; {parts} need {need:.3g} s"
    fix = f"--signal-lead {round(need) + 30} or more (cluster file: signal_lead)"
    found = [bad(names[0], said, fix) if job.signal_lead < need else good(names[0], said)]
    if "REQUEUE" not in partition.get("PreemptMode", ""):
        return [*found, good(names[1], "jobs of this partition are not preempted")]
    grace = re.match(r"\d+", partition.get("GraceTime", "0"))
    seconds = int(grace.group()) if grace else 0
    said = f"a preempted job gets {seconds} s; {parts} need {need:.3g} s"
    fix = "save often (--train.save_every), or choose a partition with a longer GraceTime"
    return [*found, bad(names[1], said, fix) if seconds < need else good(names[1], said)]
