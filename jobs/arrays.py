"""`bloodcell submit pack|sweep|reproduce`: other verbs as arrays of jobs; each goes on where it was ended."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bloodcell.config import override, parse_flags
from jobs.slurm.cluster import Cluster, cluster_names, find_cluster, site_lines
from jobs.slurm.description import JobDescription
from jobs.submit import Run, add_how, add_place, check_place, describe, resolved
from shards.console import say
from shards.errors import BadInput

TAKES_CONFIG = True
OWN = ("part", "append", "workers", "join", "silence", "collect")
"""Flags of those verbs that an array sets itself."""


@dataclass(frozen=True)
class Plan:
    """What is submitted.

    Attributes:
        place: folder whose slurm/ takes logs and decisions.
        job: what Slurm is asked for, for each job of the array.
        verb: of the jobs of the array.
        words: its arguments, for each of them; none if nothing is left to be done but what follows.
        runs: the run folders that they train.
        last: verb and arguments of the job that follows, and what it waits for; None if none does.
        prepare: writes what the jobs expect to find.
    """

    place: Path
    job: JobDescription
    verb: str
    words: list[tuple[str, ...]]
    runs: list[Run] = field(default_factory=list)
    last: tuple[str, tuple[str, ...], str] | None = None
    prepare: Callable[[], None] = lambda: None


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb itself, and those of its submission."""
    from jobs import data
    from jobs.reproduce import cli as reproduce
    from jobs.sweep import cli as sweep

    inner = verb.split()[1]
    {"pack": data, "sweep": sweep, "reproduce": reproduce}[inner].add_arguments(inner, parser)
    for action in [action for action in parser._actions if action.dest in OWN]:
        parser._remove_action(action)
        for name in action.option_strings:
            del parser._option_string_actions[name]
    add_place(parser)
    add_how(parser)
    if inner != "reproduce":
        parser.add_argument("--jobs", type=int, default=4, metavar="N", help="jobs of the array (4)")


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Submit; return the jobs and the lines for people."""
    if not parsed.cluster:
        there = ", ".join(cluster_names())
        raise BadInput("no cluster is named", "command line", f"add --cluster NAME: {there}, or your own .toml file")
    cluster, name = find_cluster(parsed.cluster)
    if cluster.launcher != "slurm":
        fix = "leave `submit` and --cluster out, or use a cluster that runs Slurm"
        raise BadInput("this machine is one node with one job", f"--cluster {parsed.cluster}", fix)
    if getattr(parsed, "jobs", 1) < 1 or parsed.nodes != 1:
        raise BadInput("an array is of one or more jobs, each on one node", "--jobs, --nodes", "give --jobs 1 or more")
    job = describe(parsed, cluster)
    inner = verb.split()[1]
    plan = {"pack": _pack, "sweep": _sweep, "reproduce": _reproduce}[inner](parsed, cluster, job)
    for place in (plan.place, *(each.folder for each in plan.runs[:1])):
        check_place(place, cluster)
    job = replace(plan.job, array=len(plan.words), name=f"bloodcell-{plan.place.name}")
    if parsed.dry_run:
        return _shown(replace(plan, job=job), parsed)
    from jobs.slurm.checks import check_queue

    check_queue(job)
    plan.prepare()
    return _submit(replace(plan, job=job), parsed, cluster, name)


def _pack(parsed: argparse.Namespace, cluster: Cluster, job: JobDescription) -> Plan:
    """An array of the parts, and the job that merges them."""
    from jobs.data import options_from
    from shards.pack import PackOptions
    from shards.work import refuse_existing

    if parsed.flags:
        raise BadInput(f"unknown argument {parsed.flags[0]!r}", "command line", "see `bloodcell submit pack --help`")
    parsed.workers = 0
    options = options_from(parsed, PackOptions)
    if not parsed.source.exists():
        raise BadInput("there are no images", parsed.source, "name a folder of images, or an .npz")
    _ = options.treatment  # raises BadInput if it cannot be done
    source, target = parsed.source.resolve(), parsed.target.resolve()
    refuse_existing(target)
    flags = []
    for leaf in dataclasses.fields(options):
        value, flag = getattr(options, leaf.name), f"--{leaf.name.replace('_', '-')}"
        if isinstance(value, bool) and value != leaf.default:
            flags += [flag if value else f"--no-{flag[2:]}"]
        elif value != leaf.default:
            flags += [word for one in (value if isinstance(value, tuple) else (value,)) for word in (flag, str(one))]
    words = [(str(source), str(target), *flags, "--part", f"{part + 1}/{parsed.jobs}") for part in range(parsed.jobs)]
    cores = job.cpus_per_task * job.tasks_per_node
    job = replace(job, tasks_per_node=1, gpus_per_node=0, cpus_per_task=cores)
    place = target.with_name(f"{target.name}.jobs")
    return Plan(place, job, "pack", words, last=("merge", (str(target),), "afterok"))


def _sweep(parsed: argparse.Namespace, cluster: Cluster, job: JobDescription) -> Plan:
    """An array of workers that share the sweep; the last one writes its report."""
    from jobs.sweep.cli import asked
    from jobs.sweep.stored import make, settle

    if parsed.recipe is None:
        raise BadInput("no recipe is named", "command line", "give RECIPE")
    parsed.workers = 1
    job, out = one_task(job), parsed.out.resolve()
    begun = asked(parsed)

    def prepare() -> None:
        make(out)
        settle(out, *begun, job.cpus_per_task)

    return Plan(out, job, "sweep", [("--out", str(out), "--join")] * parsed.jobs, prepare=prepare)


def _reproduce(parsed: argparse.Namespace, cluster: Cluster, job: JobDescription) -> Plan:
    """An array of the trainings that are missing, and the job that averages, pools and writes the table."""
    from jobs.reproduce.cli import planned
    from jobs.train import find_recipe

    parsed.workers, job, out = 1, one_task(job), parsed.out.resolve()
    if parsed.dry_run and parsed.quick:
        raise BadInput("quick mode draws its sets first", "--dry-run, --quick", "leave one of them out")
    tasks = planned(parsed, write=not parsed.dry_run)
    runs = []
    for task in [task for task in tasks if task.row.recipe and not task.done]:
        base, recipe = find_recipe(task.row.recipe)
        for fold, place in enumerate(task.runs):
            flags = {**task.flags, "train.seed": task.seed, "data.set": str(task.data.resolve())}
            flags |= {"data.fold": fold} if task.folds else {}
            override(base, flags)
            runs.append(resolved(base, recipe, flags, place, cluster, job))
    last = (*parsed.rows, *(["--data", *(str(path.resolve()) for path in parsed.data)] if parsed.data else []))
    last = (*last, "--out", str(out), "--seeds", str(parsed.seeds), "--collect")
    last = (*last, *(f"--{name}" for name in ("quick", "folds") if getattr(parsed, name)))
    last = (*last, *(("--watts", str(parsed.watts)) if parsed.watts else ()), *parsed.flags)
    parse_flags(parsed.flags)
    return Plan(out, job, "train", [each.words for each in runs], runs, ("reproduce", last, "afterany"))


def one_task(job: JobDescription) -> JobDescription:
    """Return the share of a node that one process with one GPU has."""
    memory = round(job.memory_gb / job.tasks_per_node, 3)
    return replace(job, tasks_per_node=1, gpus_per_node=min(job.gpus_per_node, 1), memory_gb=memory)


def _shown(plan: Plan, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from jobs.slurm.render import sbatch_script
    from jobs.slurm.send import at, submitit_text

    render = sbatch_script if parsed.through == "sbatch" else submitit_text
    text = render(at(plan.job, plan.place), plan.words, plan.place / "slurm", plan.verb)
    then = [f"# then, {plan.last[2]}: bloodcell {plan.last[0]} {shlex.join(plan.last[1])}"] if plan.last else []
    return {"script": text, "runs": [str(each.folder) for each in plan.runs]}, [*text.rstrip().splitlines(), *then]


def _submit(plan: Plan, parsed: argparse.Namespace, cluster: Cluster, name: str) -> tuple[dict[str, Any], list[str]]:
    from bloodcell.runfolder import RunFolder
    from jobs.slurm.send import at, private, send, send_script
    from jobs.slurm.snapshot import snapshot
    from jobs.submit import note

    logs = plan.place / "slurm"
    private(logs)
    job = plan.job
    if parsed.snapshot:
        job = replace(job, site=tuple(site_lines(cluster, str(snapshot(logs / "code")))))
    job = at(job, plan.place)
    for each in plan.runs:
        if each.content is not None:
            RunFolder(each.folder).create(each.content)
    ids = (send_script if parsed.through == "sbatch" else send)(job, plan.words, logs, plan.verb) if plan.words else []
    lines = [f"job {ids[0].split('_')[0]}: an array of {len(ids)} ({plan.verb})"] if ids else []
    result: dict[str, Any] = {"jobs": ids, "logs": str(logs), "runs": [str(each.folder) for each in plan.runs]}
    for each, number in zip(plan.runs, ids, strict=bool(plan.runs)):
        note(each.folder, number, name, "slurm", logs)
    if ids:
        note(plan.place, ids[0].split("_")[0], name, "slurm", logs)
    if plan.last:
        verb, words, kind = plan.last
        waits = f"{kind}:{ids[0].split('_')[0]}" if ids else job.dependency
        result["last"] = send(replace(job, array=0, dependency=waits), [words], logs, verb)[0]
        lines.append(f"job {result['last']}: {verb}, when they are done")
    lines.append(f"logs: {logs}")
    if parsed.wait:
        from jobs.slurm.waiting import wait

        for line in lines:
            say(line)
        ends = wait([*ids, *([result["last"]] if plan.last else [])], "slurm", [each.folder for each in plan.runs])
        return {**result, **ends}, ends.pop("lines")
    return result, lines
