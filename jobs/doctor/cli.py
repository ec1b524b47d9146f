"""`bloodcell doctor`: is this machine, or are the nodes of a cluster, fit for training? One page, green and red."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bloodcell.config import Config, override, parse_flags
from shards.errors import BadInput, EnvironmentFault, Stop

if TYPE_CHECKING:
    from jobs.slurm.description import JobDescription

TAKES_CONFIG = True
EPILOG = """\
Without --cluster it looks at this machine; with it, a short job looks at the nodes that a run would get: the same
partition, GPUs and processes as `submit` would ask for. With --data it reads the set, with RECIPE it does two steps
of it and one save. Exit code 0: all green; 1: something is red; 2: bad input.

--json: {nodes, ranks, job, checks: [{name, state: green | red | not checked, what, fix}], red, exit,
facts: {nodes: {name: …}, network, steps: {rank: …}}}"""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare what is looked at, and where."""
    from jobs.submit import add_place

    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="recipe whose steps are tried; config flags follow")
    parser.add_argument("--data", type=Path, metavar="SET", help="shard set")
    parser.add_argument("--run", type=Path, metavar="DIR", default=Path("runs"), help="where runs shall lie (runs)")
    parser.add_argument("--ranks", type=int, metavar="N", help="processes on this machine (one a GPU, or two)")
    add_place(parser)
    for hidden in ("--probe", "--secret", "--device", "--wandb"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    parser.epilog = EPILOG


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Look; return the findings and the page. As --probe: look for the one who waits for it."""
    if parsed.probe:
        _probe(parsed)
        return {}, []
    from bloodcell.data.order import check_world
    from jobs.slurm.cluster import find_cluster
    from jobs.submit import describe

    config = _config(parsed)
    parsed.parallel, parsed.wandb = 0, config.tracking.wandb
    cluster, _ = find_cluster(parsed.cluster or "local")
    if cluster.launcher == "local":
        if parsed.nodes != 1:
            raise BadInput("this machine is one node", "--nodes", "add --cluster NAME of one that runs Slurm")
        return _here(parsed, config, replace(describe(parsed, cluster), signal_lead=0))
    from jobs.slurm.checks import check_queue

    job = describe(parsed, cluster)
    check_queue(job)
    if parsed.recipe:
        check_world(config.train.micro_batches, job.world)
    parsed.run, parsed.secret, parsed.device = _folder(parsed.run), secrets.token_hex(8), cluster.device
    return _on_cluster(parsed, job)


def _config(parsed: argparse.Namespace) -> Config:
    """Return the config, of a recipe or of none; raises BadInput for what is no recipe, flag or set."""
    from jobs.train import find_recipe
    from shards.format import read_dataset

    flags = parse_flags(parsed.flags)
    base = find_recipe(parsed.recipe)[0] if parsed.recipe else Config()
    if parsed.data is not None:
        read_dataset(parsed.data)
        flags["data.set"] = str(parsed.data.resolve())
    elif parsed.recipe and not flags.get("data.set"):
        raise BadInput("a recipe can only be tried on a set", "command line", "add --data SET")
    return override(base, flags)


def _folder(run: Path) -> Path:
    """Make and return the folder for this visit, on the disk of the run."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        for number in range(1000):
            place = run.resolve() / f"doctor-{time.strftime('%Y%m%d-%H%M%S')}{f'-{number}' if number else ''}"
            try:
                place.mkdir()
                return place
            except FileExistsError:
                continue
    except OSError as error:
        raise BadInput(f"nothing can be written here: {error.strerror}", run, "choose another --run") from error
    raise EnvironmentFault("too many visits at once", run, "try again")


def _words(parsed: argparse.Namespace) -> list[str]:
    """Return the arguments of the probes: everything by name, because the folder may not be shared."""
    recipe = []
    if parsed.recipe:
        recipe = [str(Path(parsed.recipe).resolve()) if parsed.recipe.endswith(".toml") else parsed.recipe]
    data = ["--data", str(parsed.data.resolve())] if parsed.data is not None else []
    place = ["--run", str(parsed.run), "--secret", parsed.secret, "--device", parsed.device, "--wandb", parsed.wandb]
    return [*recipe, *data, *place, *parsed.flags]


def _probe(parsed: argparse.Namespace) -> None:
    """Be the doctor on a node, or on a rank."""
    from jobs.doctor import versions
    from jobs.doctor.words import node_name, speak

    number = int(os.environ.get("SLURM_NODEID", 0))
    if parsed.probe == "nodes":
        speak("versions", number, {"node": node_name(), "number": number, "versions": versions.look()})
        speak("node", number, _look_at_node(parsed, number, int(os.environ.get("SLURM_JOB_NUM_NODES", 1))))
        return
    from jobs.doctor.ranks import look

    config = override(_config(parsed), {"tracking.wandb": "off"})
    look(config if parsed.recipe else None, parsed.device, parsed.run)


def _look_at_node(parsed: argparse.Namespace, number: int, nodes: int) -> dict[str, Any]:
    from jobs.doctor.nodes import Visit, look

    return look(Visit(parsed.run, parsed.secret, parsed.data, parsed.device, parsed.wandb, number, nodes))


def _here(parsed: argparse.Namespace, config: Config, job: JobDescription) -> tuple[dict[str, Any], list[str]]:
    from bloodcell.data.order import check_world
    from jobs.doctor import folders, gather, page, versions

    seen = versions.look()
    device = "cuda" if seen["driver"] or seen["visible"] else "cpu"
    ranks = parsed.ranks or seen["visible"] or job.tasks_per_node
    if ranks < 1:
        raise BadInput(f"{ranks} processes", "--ranks", "ask for at least one")
    if parsed.recipe:
        check_world(config.train.micro_batches, ranks)
    parsed.run, parsed.secret, parsed.device = _folder(parsed.run), secrets.token_hex(8), device
    try:
        folders.leave_token(parsed.run, "submitter", parsed.secret)
        node = {"versions": seen, **_look_at_node(parsed, 0, 1)}
        told = gather.here(ranks, _words(parsed))
    finally:
        shutil.rmtree(parsed.run, ignore_errors=True)
    told.tokens = {"0"}
    told.heard["versions", 0] = told.heard["node", 0] = node
    return page.settle(told, job, None, page.Asked(ranks, device, bool(parsed.recipe), _bytes(parsed.data)))


def _on_cluster(parsed: argparse.Namespace, job: JobDescription) -> tuple[dict[str, Any], list[str]]:
    from jobs.doctor import folders, gather, page, queue

    try:
        folders.leave_token(parsed.run, "submitter", parsed.secret)
        told = gather.on_cluster(job, _words(parsed), parsed.run, parsed.secret)
    except Stop:
        shutil.rmtree(parsed.run, ignore_errors=True)
        raise
    asked = page.Asked(job.world, parsed.device, bool(parsed.recipe), _bytes(parsed.data))
    value, lines = page.settle(told, job, queue.look(job, told.job), asked)
    if value["exit"]:
        lines.append(f"log: {parsed.run / 'job.out'}")
    else:
        shutil.rmtree(parsed.run, ignore_errors=True)
    return value, lines


def _bytes(data: Path | None) -> int:
    """Return the bytes of a set's shards, 0 without one."""
    from shards.format import read_dataset

    return sum(shard.bytes for shard in read_dataset(data).shards) if data is not None else 0
