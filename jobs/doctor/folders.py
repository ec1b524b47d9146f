"""Folders and disks as a node sees them: is the run folder one and the same, are renames whole, is there room."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.doctor.findings import Finding, bad, good, listed, unknown
from jobs.stage import SPARE
from shards.atomic import disk_errors
from shards.errors import EnvironmentFault

PATIENCE = 30.0
"""Seconds that a file written on another node may take to be seen here: NFS remembers for as long what is not there."""
RENAMES = 200
TRIAL = 4 << 20
"""Bytes that are written to see whether, and how fast, a disk takes them."""
LEAST_FREE = 1 << 30
"""Bytes that a run folder's disk needs where nothing is known of the checkpoints."""
LEAST_SHM = {"cuda": 1 << 30, "cpu": 16 << 20}
"""NCCL and loaders exchange data there; NVIDIA's containers ask for 1 GB (docs.nvidia.com/deeplearning/nccl)."""

Node = dict[str, Any]


def token(folder: Path, who: str) -> Path:
    """Return the file by which a node (its number) or the submitter shows that it sees this folder."""
    return folder / f"token-{who}"


def leave_token(folder: Path, who: str, secret: str) -> None:
    """Write one's own; raises EnvironmentFault where the disk is full or fails."""
    with disk_errors(folder):
        token(folder, who).write_text(json.dumps({"secret": secret}))


def sees(folder: Path, who: str, secret: str) -> bool:
    """Whether another's token is here, and of this visit."""
    try:
        os.listdir(folder)  # makes network file systems ask again
        return bool(json.loads(token(folder, who).read_text())["secret"] == secret)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def look(folder: Path, secret: str, number: int, nodes: int) -> dict[str, Any]:
    """Return {shared, renames, run, scratch, shm}, what this node sees of each; only the token stays."""
    return {
        "path": str(folder),
        "shared": _shared(folder, secret, number, nodes),
        "renames": _renames(folder, number) if folder.is_dir() else "",
        "run": _disk(folder),
        "scratch": _disk(Path(place)) if (place := os.environ.get("BLOODCELL_SCRATCH")) else {},
        "shm": shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else -1,
    }


def _shared(folder: Path, secret: str, number: int, nodes: int) -> dict[str, Any]:
    """Return {there, unseen: whose tokens do not show in time, "submitter" or a node's number}."""
    if not folder.is_dir():
        return {"there": False, "unseen": []}
    try:
        leave_token(folder, str(number), secret)
    except (OSError, EnvironmentFault) as error:
        return {"there": True, "unseen": [], "problem": str(error)}
    waiting = {"submitter", *map(str, range(nodes))}
    end = time.monotonic() + PATIENCE
    while waiting:
        waiting = {who for who in waiting if not sees(folder, who, secret)}
        if time.monotonic() > end:
            break
        time.sleep(0.2 if waiting else 0)
    return {"there": True, "unseen": sorted(waiting)}


def _renames(folder: Path, number: int) -> str:
    """Replace a file again and again while another thread reads it: it must always be there, and whole."""
    file, over, problems = folder / f"renamed-{number}", threading.Event(), []
    text = "whole" * 1000

    def read() -> None:
        while not over.is_set():
            try:
                if file.read_text() != text:
                    problems.append("a file was read half-written")
            except OSError as error:
                problems.append(f"a file vanished while it was replaced ({error.strerror})")

    link, reader = folder / f"link-{number}", threading.Thread(target=read)
    try:
        file.write_text(text)
        reader.start()
        for _ in range(RENAMES):
            fresh = folder / f"fresh-{number}"
            fresh.write_text(text)
            os.replace(fresh, file)
        link.symlink_to(file.name)
        os.replace(link, folder / f"last-{number}")
    except OSError as error:
        problems.append(f"{error.strerror}: {error.filename}")
    finally:
        over.set()
        if reader.ident:
            reader.join()
        for name in ("renamed", "fresh", "link", "last"):
            (folder / f"{name}-{number}").unlink(missing_ok=True)
    return problems[0] if problems else ""


def _disk(folder: Path) -> dict[str, Any]:
    """Return {path, free, mb_s}, or why nothing can be written: {path, free, problem}; folders are made and removed."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    found: dict[str, Any] = {"path": str(folder), "free": shutil.disk_usage(there).free}
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    trial = folder / f"trial-{os.uname().nodename}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        with open(trial, "wb") as file:
            file.write(os.urandom(TRIAL))
            file.flush()
            os.fsync(file.fileno())
        found["mb_s"] = round(TRIAL / 1e6 / (time.perf_counter() - begin), 1)
    except OSError as error:
        found["problem"] = error.strerror or str(error)
    finally:
        if folder.is_dir():
            trial.unlink(missing_ok=True)
        for place in made:
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
    return found


def judge_shared(nodes: Sequence[Node], seen_here: set[str]) -> Finding:
    """Say which nodes have another folder under this path; `seen_here`: numbers whose tokens the submitter sees."""
    name = "run folder is shared"
    problems, path = [], nodes[0]["folders"]["path"]
    for node in nodes:
        shared, where = node["folders"]["shared"], node["node"]
        if not shared["there"]:
            problems.append(f"{where} has no such folder")
        elif "problem" in shared:
            problems.append(f"{where} cannot write there ({shared['problem']})")
        elif "submitter" in shared["unseen"] or str(node["number"]) not in seen_here:
            problems.append(f"{where} has another folder under this path")
        elif shared["unseen"]:
            problems.append(f"{where} does not see the files of {listed(_names(nodes, shared['unseen']))}")
    if problems:
        fix = "choose --run below a folder that is mounted on this machine and on every node, and say so in `shared`"
        return bad(name, f"{path}: {listed(problems)}", fix)
    return good(name, f"{path}: {len(nodes)} nodes and this machine see each other's files")


def _names(nodes: Sequence[Node], numbers: Sequence[str]) -> list[str]:
    known = {str(node["number"]): node["node"] for node in nodes}
    return [known.get(number, f"node {number}") for number in numbers]


def judge_renames(nodes: Sequence[Node]) -> Finding:
    """Checkpoints appear by a rename, and `last` is a link: both must work."""
    problems = [f"{node['node']}: {said}" for node in nodes if (said := node["folders"]["renames"])]
    if problems:
        return bad("renames are whole", listed(problems), "choose --run on a file system with atomic renames and links")
    return good("renames are whole", f"{RENAMES} files replaced under a reader's eyes, links work")


def judge_room(nodes: Sequence[Node], needed: int, device: str) -> list[Finding]:
    """Say where a run folder or /dev/shm is too small; `needed` bytes for the checkpoints that are kept, 0: unknown."""
    problems, least = [], max(needed, LEAST_FREE)
    for node in nodes:
        disk, where = node["folders"]["run"], node["node"]
        if "problem" in disk and node["folders"]["shared"]["there"]:
            problems.append(f"{where} cannot write to {disk['path']} ({disk['problem']})")
        elif disk["free"] < least:
            problems.append(f"{where} has {size(disk['free'])} free in {disk['path']}, a run needs {size(least)}")
    speeds = [node["folders"]["run"].get("mb_s", 0) for node in nodes]
    free = min(node["folders"]["run"]["free"] for node in nodes)
    wants = f" (checkpoints need {size(needed)})" if needed else ""
    enough = good("room for the run", f"{size(free)} free{wants}, written at {min(speeds):,.0f} MB/s or more")
    small = [node for node in nodes if 0 <= node["folders"]["shm"] < LEAST_SHM[device]]
    shm = ", ".join(f"{node['node']} has {size(node['folders']['shm'])}" for node in small)
    free_shm = size(min(node["folders"]["shm"] for node in nodes))
    return [
        bad("room for the run", listed(problems), "free some space, or choose another --run") if problems else enough,
        bad("/dev/shm", shm, f"{size(LEAST_SHM[device])} are needed: in a container, --shm-size or --ipc=host")
        if small
        else good("/dev/shm", f"{free_shm} free"),
    ]


def judge_scratch(nodes: Sequence[Node], needed: int) -> Finding:
    """Say which nodes cannot hold a copy of the shards; `needed` bytes, 0 where no set is named."""
    name = "scratch of the nodes"
    if not any(node["folders"]["scratch"] for node in nodes):
        return unknown(name, "the cluster file names none (scratch): shards are read where they lie")
    problems = []
    for node in nodes:
        disk, where = node["folders"]["scratch"], node["node"]
        if "problem" in disk:
            problems.append(f"{where} cannot write to {disk['path']} ({disk['problem']}, {size(disk['free'])} free)")
        elif disk["free"] < needed * SPARE:
            problems.append(f"{where} has {size(disk['free'])} free, a copy of the set needs {size(needed * SPARE)}")
    if problems:
        return bad(
            name, listed(problems), "clean it up there, or take out `scratch`: such a node reads the shared folder"
        )
    return good(name, f"{size(min(node['folders']['scratch']['free'] for node in nodes))} free or more")


def size(count: float) -> str:
    """Return bytes as people say them."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} bytes"
