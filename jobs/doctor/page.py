"""From what was told to the page: which nodes spoke, what each finding is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jobs.doctor import data, decode, findings, folders, network, queue, steps, versions
from jobs.doctor.findings import Finding, bad, good, listed, unknown
from jobs.doctor.gather import Told, blamed
from jobs.doctor.words import last_line
from jobs.slurm.description import JobDescription
from jobs.slurm.ends import DECISIVE

Node = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What was asked for: how many ranks, on "cuda" or "cpu", with dry steps or not, bytes of the set (0: none)."""

    ranks: int
    device: str
    steps: bool
    bytes: int


def settle(
    told: Told, job: JobDescription, slurm: dict[str, Any] | None, asked: Asked
) -> tuple[dict[str, Any], list[str]]:
    """Return the JSON value and the page.

    Args:
        told: what came back.
        job: what a run would ask for.
        slurm: what Slurm says; None without one.
        asked: what was to be looked at.
    """
    early = _sorted(told, "versions")
    nodes = [{**one, **told.heard["node", one["number"]]} for one in early if ("node", one["number"]) in told.heard]
    found = [_answers(told, job, early, nodes)]
    if early:
        found.append(versions.judge_packages(early))
        found += [versions.judge_driver(early, asked.device), versions.judge_cuda(early, asked.device)]
    if nodes:
        found += _of_nodes(told, nodes, asked)
    found += _of_ranks(told, job, slurm, nodes, asked)
    names = [one["node"] for one in early]
    where = f"{len(names)} nodes ({listed(names)})" if job.nodes > 1 or slurm else f"this machine ({listed(names)})"
    title = f"doctor: {where}, {asked.ranks} processes" + (f", job {told.job}" if told.job else "")
    value = {"nodes": names, "ranks": asked.ranks, "job": told.job or None, "facts": _facts(told, nodes)}
    value |= findings.as_json(found)
    return value, findings.page(title, found)


def _facts(told: Told, nodes: list[Node]) -> dict[str, Any]:
    """Return what was measured, for scripts: of each node, of the network, of each rank's dry steps."""
    measured = ("folders", "data", "decode", "wandb", "memory")
    return {
        "nodes": {node["node"]: {name: node[name] for name in measured} for node in nodes},
        "network": told.heard.get(("network", 0)),
        "steps": {str(rank): one for (kind, rank), one in sorted(told.heard.items()) if kind == "steps"},
    }


def _sorted(told: Told, kind: str) -> list[Node]:
    return [value for (what, _), value in sorted(told.heard.items()) if what == kind]


def _answers(told: Told, job: JobDescription, early: list[Node], nodes: list[Node]) -> Finding:
    name = "every node answers"
    if not told.log and not nodes:
        what = f"job {told.job} ended ({told.state}) and left no log here"
        fix = "the first node has another folder under this path: choose --run on a disk that all share"
        return bad(name, what, f"{fix}; or see `scontrol show job {told.job}`")
    heard = {one["number"] for one in nodes}
    problems = []
    for number in range(job.nodes):
        if number not in heard:
            known = next((one["node"] for one in early if one["number"] == number), f"node {number} of the job")
            problems.append(f"{known} broke off: {last_line(told.log, number) or told.state or 'no word'}")
    if problems:
        return bad(
            name, listed(problems), "see its log; is Python there, and the program's environment (cluster file)?"
        )
    return good(name, f"{len(nodes)} of {job.nodes}")


def _of_nodes(told: Told, nodes: list[Node], asked: Asked) -> list[Finding]:
    saved = [one for (kind, _), one in told.heard.items() if kind == "steps"]
    checkpoints = max(((one["keep"] + 2) * one["bytes"] for one in saved), default=0)
    return [
        folders.judge_shared(nodes, told.tokens) if told.job else unknown("run folder is shared", "there is one node"),
        folders.judge_renames(nodes),
        *folders.judge_room(nodes, checkpoints, asked.device),
        folders.judge_scratch(nodes, asked.bytes),
        *data.judge(nodes),
        decode.judge(nodes, asked.device),
        _tracking(nodes),
    ]


def _tracking(nodes: list[Node]) -> Finding:
    """W&B's mode as the nodes would have it; whether there is a key, never the key."""
    name = "Weights & Biases"
    problems = [f"{node['node']}: {said}" for node in nodes if (said := node["wandb"].get("problem"))]
    if problems:
        return bad(name, listed(problems), "export WANDB_API_KEY in your shell, or --tracking.wandb auto")
    modes = {node["wandb"]["mode"] for node in nodes}
    said = " and ".join(sorted({f"{node['wandb']['mode']} ({node['wandb']['why']})" for node in nodes}))
    if len(modes) > 1:
        return bad(name, said, "export WANDB_API_KEY or WANDB_MODE in your shell: it reaches every node")
    return good(name, said)


def _of_ranks(
    told: Told, job: JobDescription, slurm: dict[str, Any] | None, nodes: list[Node], asked: Asked
) -> list[Finding]:
    seen = told.heard.get(("network", 0))
    tried = {who: one for (kind, who), one in told.heard.items() if kind == "steps"}
    whole = len(tried) == asked.ranks
    found = network.judge(seen) if seen else []
    problem = _problem(told, bool(seen), asked.steps and not whole)
    if seen and problem is None:
        limits = {node["node"]: _memory(job, node, bool(slurm)) for node in nodes}
        found += steps.judge(tried, seen["hosts"], limits)
    elif problem is not None:
        found += [problem, unknown("memory", "the dry steps come first")]
    if slurm is None:
        return [*found, unknown("Slurm", "no --cluster is named")]
    step = max(one["step"] for one in tried.values()) if whole else None
    save = max(one["save"] for one in tried.values()) if whole else None
    return [*found, *queue.judge(job, slurm, step, save)]


def _problem(told: Told, met: bool, missing: bool) -> Finding | None:
    """Return what kept the ranks from meeting or from the dry steps: the decisive word, or the log's."""
    order = {code: number for number, code in enumerate(DECISIVE)}
    faults = [(order.get(one["code"], 9), who, one) for (kind, who), one in told.heard.items() if kind == "fault"]
    fix = "see the log, and the red lines above"
    if faults:
        _, who, fault = min(faults, key=lambda one: one[:2])
        return bad(fault["stage"], f"rank {who}: {fault['what']}", fault["fix"] or fix)
    if missing or not met:
        return bad("dry steps" if met else "ranks meet", blamed(told.ranks_log), fix)
    return None


def _memory(job: JobDescription, node: Node, asked: bool) -> int:
    """Return the bytes that a run may use on a node: what the job asks for, and no more than there is."""
    return min(node["memory"], round(job.memory_gb * 2**30)) if asked and job.memory_gb else int(node["memory"])
