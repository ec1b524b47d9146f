"""`bloodcell submit`: resolve a run once, check what would fail in the queue, and hand the path of the run to Slurm."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bloodcell.config import Config, Flat, override, parse_flags
from jobs.groups import grouped
from jobs.slurm.cluster import Cluster, cluster_names, find_cluster, minutes, python, site_lines, srun_options
from jobs.slurm.description import JobDescription
from shards.console import say
from shards.errors import BadInput, nearest

TAKES_CONFIG = True
CHAIN = ("pack", "train", "evaluate")


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare what is trained, where, with how much of it, and in which order."""
    from jobs import train

    train.add_arguments("train", parser)
    for action in parser._actions:
        if action.dest == "folds":
            parser._remove_action(action)
            del parser._option_string_actions["--folds"]
            break
    add_place(parser)
    several = parser.add_argument_group("several jobs")
    several.add_argument("--seeds", type=int, default=0, metavar="N", help="an array of N runs, DIR/seed0, ...")
    several.add_argument("--folds", type=int, default=0, metavar="N", help="an array of the N folds, DIR/fold0, ...")
    several.add_argument("--chain", default="train", help="steps, each after the one before: pack,train,evaluate")
    several.add_argument("--images", type=Path, metavar="DIR", help="what the step `pack` packs to SET")
    several.add_argument("--pack", default="", metavar="FLAGS", help="further flags of that step, in one word")
    add_how(parser)


def add_place(parser: argparse.ArgumentParser) -> None:
    """Declare the cluster, and how much of it a job asks for."""
    place = parser.add_argument_group("the cluster")
    place.add_argument("--cluster", metavar="NAME", help=f"a .toml file, or one of {', '.join(cluster_names())}")
    place.add_argument("--nodes", type=int, default=1, help="machines (1)")
    for flag, about in (
        ("tasks-per-node", "processes on each (one for each GPU)"),
        ("gpus-per-node", "GPUs of each (all)"),
        ("cpus-per-task", "cores of each process (an equal share of the node's)"),
        ("signal-lead", "seconds before the time limit at which the ranks save"),
    ):
        place.add_argument(f"--{flag}", type=int, help=f"{about}; the cluster file's otherwise")
    place.add_argument("--memory", type=float, help="GB of each node")
    for flag in ("time", "partition", "account", "qos", "constraint"):
        place.add_argument(f"--{flag}", help=f"{flag}, as sbatch takes it; the cluster file's otherwise")
    place.add_argument("--dependency", default="", help="as sbatch takes it: afterok:JOB")
    place.add_argument("--max-requeues", type=int, default=20, help="how often the job may queue itself again (20)")


def add_how(parser: argparse.ArgumentParser) -> None:
    """Declare how jobs are submitted; for every verb that submits."""
    how = parser.add_argument_group("how")
    how.add_argument("--parallel", type=int, default=0, help="jobs of an array that run at once (all)")
    how.add_argument("--through", choices=["submitit", "sbatch"], default="submitit", help="who submits (submitit)")
    how.add_argument("--snapshot", action="store_true", help="run from a copy of the code as it is now")
    how.add_argument("--dry-run", action="store_true", help="print the script; nothing is submitted or written")
    how.add_argument("--wait", action="store_true", help="wait for the end; the exit code is that of the job")


@dataclass(frozen=True)
class Run:
    """One run of a submission: its folder, the arguments of `train` that start it, and what config.json shall hold."""

    folder: Path
    words: tuple[str, ...]
    content: dict[str, Any] | None


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Submit; return the jobs and the lines for people."""
    if not parsed.cluster:
        there = ", ".join(cluster_names())
        raise BadInput("no cluster is named", "command line", f"add --cluster NAME: {there}, or your own .toml file")
    cluster, name = find_cluster(parsed.cluster)
    steps = _steps(parsed)
    job = describe(parsed, cluster)
    _check(job, cluster, parsed)
    runs, base = plan_runs(parsed, cluster, job, steps)
    job = replace(job, array=len(runs) if parsed.seeds or parsed.folds else 0, name=f"bloodcell-{base.name}")
    for each in {base, Path(runs[0].words[3]) if len(runs[0].words) > 3 else base}:
        check_place(each, cluster)
    if parsed.dry_run:
        return _shown(job, runs, base, parsed)
    return _submit(parsed, job, cluster, name, runs, base, steps)


def describe(parsed: argparse.Namespace, cluster: Cluster) -> JobDescription:
    """Return the job that the flags and the cluster file ask for."""
    gpus = cluster.gpus_per_node if parsed.gpus_per_node is None else parsed.gpus_per_node
    tasks = parsed.tasks_per_node or (cluster.tasks_per_node if parsed.gpus_per_node is None else 0) or gpus or 1
    if parsed.nodes < 1 or tasks < 1 or gpus < 0:
        raise BadInput(f"{parsed.nodes} nodes of {tasks} processes", "command line", "ask for at least one of each")
    return JobDescription(
        name="bloodcell",
        nodes=parsed.nodes,
        tasks_per_node=tasks,
        gpus_per_node=gpus,
        cpus_per_task=parsed.cpus_per_task or max(1, cluster.cpus_per_node // tasks),
        minutes=minutes(parsed.time or cluster.time, "--time" if parsed.time else "time"),
        memory_gb=cluster.memory_gb if parsed.memory is None else parsed.memory,
        partition=parsed.partition or cluster.partition,
        account=parsed.account or cluster.account,
        qos=parsed.qos or cluster.qos,
        constraint=parsed.constraint or cluster.constraint,
        signal_lead=parsed.signal_lead or cluster.signal_lead,
        max_requeues=parsed.max_requeues,
        parallel=parsed.parallel,
        dependency=parsed.dependency,
        options=tuple(cluster.options.items()),
        site=tuple(site_lines(cluster, "")),
        srun=srun_options(cluster),
        boxed=cluster.container is not None and cluster.container.kind == "pyxis",
        program=(*python(cluster, sys.executable), "-m", "jobs.cli"),
    )


def _steps(parsed: argparse.Namespace) -> list[str]:
    steps = [step.strip() for step in parsed.chain.split(",")]
    for step in steps:
        if step not in CHAIN:
            raise BadInput(f"no step {step!r}", "--chain", nearest(step, list(CHAIN)) or f"steps: {', '.join(CHAIN)}")
    if "train" not in steps or steps != [step for step in CHAIN if step in steps]:
        raise BadInput(f"the chain {parsed.chain}", "--chain", "give train, with pack before or evaluate behind it")
    if ("pack" in steps) != (parsed.images is not None):
        raise BadInput("the step pack and --images DIR belong together", "--chain", "give both, or none")
    if parsed.seeds and parsed.folds:
        raise BadInput("seeds and folds in one array", "--seeds, --folds", "submit them one after the other")
    if len(steps) > 1 and parsed.through == "sbatch":
        raise BadInput("chains go through submitit", "--through", "leave --through out")
    return steps


def _check(job: JobDescription, cluster: Cluster, parsed: argparse.Namespace) -> None:
    from jobs.slurm.checks import check_queue

    if cluster.launcher == "slurm":
        if not parsed.dry_run:
            check_queue(job)
        return
    if job.nodes > 1 or parsed.seeds or parsed.folds or parsed.chain != "train":
        raise BadInput("this machine is one node with one job", "--cluster local", "use a cluster that runs Slurm")


def check_place(path: Path, cluster: Cluster) -> None:
    """Refuse a folder that the nodes do not see; raises BadInput."""
    from jobs.slurm.checks import check_shared

    if cluster.launcher == "slurm":
        check_shared(path, "this folder", cluster)


def plan_runs(
    parsed: argparse.Namespace, cluster: Cluster, job: JobDescription, steps: list[str]
) -> tuple[list[Run], Path]:
    """Return the runs of the submission and the folder that they lie in (or that one run is).

    Raises:
        BadInput: whatever `train` would raise before it meets other ranks.
    """
    from jobs.train import start_from

    base, recipe, path = start_from(parsed.recipe, parsed.run)
    flags = parse_flags(parsed.flags)
    if parsed.data is not None:
        flags["data.set"] = str(parsed.data.resolve())
    several = parsed.seeds or parsed.folds
    if several and path is None:
        raise BadInput("an array needs a folder for its runs", "command line", "add --run DIR")
    wanted: list[tuple[str, Flat]] = [("", {})]
    if parsed.seeds:
        first = int(flags.get("train.seed", base.train.seed))
        wanted = [(f"seed{first + number}", {"train.seed": first + number}) for number in range(parsed.seeds)]
    elif parsed.folds:
        wanted = [(f"fold{number}", {"data.fold": number}) for number in range(parsed.folds)]
    if several and path is not None:
        flags |= grouped(override(base, flags), path, "seed" if parsed.seeds else "fold")
    runs = []
    for name, own in wanted:
        place = path / name if path is not None and name else path
        if "pack" in steps:
            runs.append(_later(parsed, base, {**flags, **own}, place))
        else:
            runs.append(resolved(base, recipe, {**flags, **own}, place, cluster, job))
    return runs, (path if several and path is not None else runs[0].folder).resolve()


def _later(parsed: argparse.Namespace, base: Config, flags: Flat, path: Path | None) -> Run:
    """A run on a set that a job before it will pack: nothing can be resolved yet, so the job gets recipe and flags."""
    if path is None or "data.set" not in flags:
        raise BadInput("a chain with pack needs a set and a run", "command line", "add --data SET --run DIR")
    override(base, flags)
    given = [word for key, value in flags.items() if key != "data.set" for word in (f"--{key}", str(value))]
    recipe = str(Path(parsed.recipe).resolve()) if parsed.recipe.endswith(".toml") else parsed.recipe
    return Run(path.resolve(), (recipe, "--data", flags["data.set"], "--run", str(path.resolve()), *given), None)


def resolved(base: Config, recipe: str, flags: Flat, path: Path | None, cluster: Cluster, job: JobDescription) -> Run:
    """Return a run whose config is resolved for the nodes that it will run on; raises BadInput as `train` does."""
    from bloodcell.engine.resolve import Machine
    from bloodcell.engine.setup import check
    from bloodcell.ranks import Ranks
    from jobs.train import settle

    ranks = Ranks(0, job.world, 0, job.tasks_per_node, "submit")
    machine = None if cluster.launcher == "local" else Machine(cluster.device, job.cpus_per_task)
    config, folder, content, shards = settle(base, recipe, flags, path, ranks, machine)
    check(config, shards, ranks)
    place = folder.path.resolve()
    return Run(place, ("--run", str(place)), content)


def _shown(
    job: JobDescription, runs: list[Run], base: Path, parsed: argparse.Namespace
) -> tuple[dict[str, Any], list[str]]:
    from jobs.slurm.render import sbatch_script
    from jobs.slurm.send import submitit_text

    words = [each.words for each in runs]
    text = (sbatch_script if parsed.through == "sbatch" else submitit_text)(job, words, base / "slurm")
    return {"script": text, "runs": [str(each.folder) for each in runs]}, text.rstrip().splitlines()


def _submit(
    parsed: argparse.Namespace,
    job: JobDescription,
    cluster: Cluster,
    name: str,
    runs: list[Run],
    base: Path,
    steps: list[str],
) -> tuple[dict[str, Any], list[str]]:
    from bloodcell.runfolder import RunFolder
    from jobs.slurm.send import at, private, send, send_local, send_script
    from jobs.slurm.snapshot import snapshot

    for each in runs:
        if each.content is not None:
            RunFolder(each.folder).create(each.content)
    logs = base / "slurm"
    private(logs)
    if parsed.snapshot:
        job = replace(job, site=tuple(site_lines(cluster, str(snapshot(logs / "code")))))
    words = [each.words for each in runs]
    others: dict[str, str] = {}
    if "pack" in steps:
        flags = (str(parsed.images.resolve()), words[0][2], *shlex.split(parsed.pack))
        cores = job.cpus_per_task * job.tasks_per_node
        packing = replace(job, nodes=1, tasks_per_node=1, gpus_per_node=0, cpus_per_task=cores, array=0, name="pack")
        packing = at(packing, base)
        others["pack"] = send(packing, [flags], logs, "pack")[0]
        job = replace(job, dependency=f"afterok:{others['pack']}")
    if cluster.launcher == "local":
        ids = send_local(job, words[0], logs)
    else:
        ids = (send_script if parsed.through == "sbatch" else send)(job, words, logs)
    if "evaluate" in steps:
        after = replace(job, array=0, dependency=f"afterok:{ids[0].split('_')[0]}", name="evaluate")
        after = at(after, base)
        folders = [str(each.folder) for each in runs]
        others["evaluate"] = send(after, [folders], logs, "evaluate")[0]
    for each, number in zip(runs, ids, strict=True):
        note(each.folder, number, name, cluster.launcher, logs)
    result = {"jobs": ids, **others, "runs": [str(each.folder) for each in runs], "logs": str(logs)}
    lines = [f"job {number}: {each.folder}" for each, number in zip(runs, ids, strict=True)]
    lines += [f"job {number}: {step}" for step, number in others.items()]
    lines += [f"logs: {logs}", f"next: bloodcell status {runs[0].folder}"]
    if parsed.wait:
        from jobs.slurm.waiting import wait

        for line in lines:
            say(line)
        ends = wait([*ids, *others.values()], cluster.launcher, [each.folder for each in runs])
        return {**result, **ends}, ends.pop("lines")
    return result, lines


def note(folder: Path, job: str, cluster: str, launcher: str, logs: Path) -> None:
    """Leave in a folder which job works on it: `status`, `logs`, `cancel` and `requeue` look there."""
    from bloodcell.runfolder import RunFolder
    from jobs.slurm.send import private

    private(folder / "slurm")
    content = {"job": job, "cluster": cluster, "launcher": launcher, "logs": str(logs)}
    RunFolder(folder).write("slurm/job.json", {**content, "submitted": round(time.time(), 3)})
