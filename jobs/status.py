"""`status`, `logs`, `cancel` and `requeue`: looking after runs, by their folders and one question to the controller."""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path
from typing import Any

from jobs.slurm import ends
from shards.errors import BadInput

SILENT = 120.0
"""Seconds without a sign after which a run that says it trains is doubted."""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare the runs, and what each verb takes besides."""
    if verb == "status":
        parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders, or folders of them (runs)")
    elif verb == "requeue":
        parser.add_argument("words", nargs="*", metavar="RUN", help="run folder")
        parser.add_argument("--now", action="store_true", help="at once: the steps since the last checkpoint are lost")
        about = "in a job script: the verb ended with CODE, its arguments stand behind `--`; and says: again?"
        parser.add_argument("--after", type=int, metavar="CODE", help=about)
    else:
        parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    if verb == "logs":
        parser.add_argument("--lines", type=int, default=30, help="of the end of each log (30)")
        parser.add_argument("--rank", type=int, help="only this one")


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Run one of the four verbs."""
    return {"status": _status, "logs": _logs, "cancel": _cancel, "requeue": _requeue}[verb](parsed)


def _status(parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    runs = find_runs(parsed.runs or [Path("runs")])
    notes = {run: _note(run) for run in runs}
    queue: dict[str, dict[str, str]] = {}
    if any(note.get("launcher") == "slurm" for note in notes.values()):
        from jobs.slurm.control import all_jobs

        queue = all_jobs()
    rows = [row(run, notes[run], queue) for run in runs]
    lines = []
    for one in rows:
        lines.append(f"{one['run']}: {one['state']}" + (f" (job {one['job']})" if one["job"] else ""))
        done = f"step {one['step']}/{one['steps']}, epoch {one['epoch']}" if one["steps"] else ""
        speed = f"{one['images_per_s']} images/s" if one["images_per_s"] else ""
        left = f"{one['seconds_left']:,} s left" if one["seconds_left"] is not None else ""
        where = f"on {one['node']}" if one["node"] else ""
        said = [part for part in (done, speed, left, where, f"start {one['attempts']}") if part]
        lines.append(f"  {', '.join(said)}")
        if one["left_out"]:
            lines.append(f"  left out of training, as they could not be read: {one['left_out']} (skipped.csv)")
        if one["stopped"]:
            lines.append(f"  last stop: {one['stopped']}")
    return {"runs": rows}, lines or ["no runs here"]


def find_runs(places: list[Path]) -> list[Path]:
    """Return the run folders among `places` and up to two folders below them; raises BadInput for what is not there."""
    found: list[Path] = []
    for place in places:
        if not place.is_dir():
            raise BadInput("no such folder", place, "give run folders, or a folder of them")
        if (place / "config.json").exists():
            found.append(place)
        else:
            found += sorted(file.parent for depth in ("*", "*/*") for file in place.glob(f"{depth}/config.json"))
    return found


def row(run: Path, note: dict[str, Any], queue: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Return how one run stands, from its folder, the note of its submission, and what the controller knows."""
    from bloodcell.runfolder import RunFolder

    folder = RunFolder(run)
    status = folder.read("status.json") or {}
    job = str(note.get("job") or status.get("job") or "")
    known = queue.get(job, {})
    step, steps, rate = int(status.get("step", 0)), int(status.get("steps", 0)), float(status.get("images_per_s", 0))
    data, train = (folder.stored()["config"][name] for name in ("data", "train"))
    batch = int(data["micro_batch"]) * int(train["micro_batches"])
    training = status.get("state") == "training"
    return {
        "run": str(run),
        "state": _state(status, known, bool(note) and not known and bool(queue)),
        "job": job,
        "node": known.get("NodeList", "").replace("(null)", "") or status.get("node", ""),
        "step": step,
        "steps": steps,
        "epoch": status.get("epoch", 0),
        "images_per_s": rate,
        "seconds_left": round((steps - step) * batch / rate) if training and rate else None,
        "attempts": int(status.get("attempt", 0)),
        "left_out": (status.get("left_out") or {}).get("samples", 0),
        "stopped": _stopped(run, status),
    }


def _state(status: dict[str, Any], known: dict[str, str], forgotten: bool) -> str:
    """Say it in one phrase: Slurm's word where it decides, the run's own where it knows more."""
    own = str(status.get("state", "not started"))
    slurms = known.get("JobState", "")
    if slurms == "PENDING":
        return f"queued ({known.get('Reason', '')})"
    if slurms == "COMPLETING":
        return own if own == "done" else f"ending; the run: {own}"
    if slurms == "RUNNING":
        same = str(status.get("job", "")) == known.get("JobId") and str(status.get("restart")) == known.get("Restarts")
        return own if same and own not in ("stopped", "failed") else "starting"
    if slurms and slurms != "COMPLETED":
        return f"{slurms.lower()} ({known.get('Reason', '')}); the run: {own}"
    over = own in ("done", "failed", "stopped", "not started")
    if forgotten and not over:
        return f"gone: Slurm has forgotten its job; the run: {own}"
    age = time.time() - float(status.get("time", time.time()))
    return own if over or slurms or age < SILENT else f"{own}, but silent for {age:,.0f} s"


def _stopped(run: Path, status: dict[str, Any]) -> str:
    outcome = status.get("outcome")
    said = str(outcome.get("what", "")) if isinstance(outcome, dict) and outcome.get("code") else ""
    decisions = ends.read(run / "slurm" / "requeues.jsonl")
    if not decisions:
        return said
    last = decisions[-1]
    here: dict[str, Any] = {key: last[key] for key in ("job", "restart") if key in last}
    told = ends.explain(run, here)
    what = f" (rank {told['rank']} on {told['node']}: {told['what']})" if told else ""
    return f"{last['why']}{what}" + (", queued again" if last["again"] else "")


def _note(run: Path) -> dict[str, Any]:
    from bloodcell.runfolder import RunFolder

    return RunFolder(run).read("slurm/job.json") or {}


def _logs(parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    note = _note(parsed.run)
    folder = Path(note.get("logs", parsed.run / "slurm"))
    job = str(note.get("job", ""))
    files = {_rank(path): path for path in sorted(folder.glob(f"{job or '*'}_*_log.out"))}
    if not files:
        raise BadInput("no logs yet", folder, "is the job still queued? see `bloodcell status`")
    last = ends.read(parsed.run / "slurm" / "ends.jsonl")[-1:]
    told = ends.explain(parsed.run, {"job": last[0]["job"], "restart": last[0]["restart"]}) if last else None
    first = [told["rank"]] if told and told["rank"] in files else []
    ranks = [parsed.rank] if parsed.rank is not None else list(dict.fromkeys([*first, *files]))
    missing = [rank for rank in ranks if rank not in files]
    if missing:
        raise BadInput(f"no log of rank {missing[0]}", folder, f"there are {', '.join(map(str, files))}")
    lines = []
    for rank in ranks:
        reason = f": {told['what']}" if told and rank == told["rank"] else ""
        lines += [f"== rank {rank}{reason} ({files[rank]})", *tail(files[rank], parsed.lines)]
    return {"logs": {str(rank): str(files[rank]) for rank in ranks}, "failed": told}, lines


def tail(file: Path, lines: int) -> list[str]:
    """Return the last lines of a file that may be large."""
    with open(file, "rb") as handle:
        handle.seek(max(0, handle.seek(0, os.SEEK_END) - 400 * lines))
        return handle.read().decode(errors="replace").splitlines()[-lines:]


def _rank(path: Path) -> int:
    return int(path.name.removesuffix("_log.out").rpartition("_")[2])


def _job(run: Path) -> tuple[str, str]:
    """Return the job of a run and its launcher; raises BadInput if it was never submitted."""
    from bloodcell.runfolder import RunFolder

    note = _note(run)
    job = note.get("job") or (RunFolder(run).read("status.json") or {}).get("job")
    if not job:
        raise BadInput("this run has no job", run, "`bloodcell submit` gives it one")
    return str(job), str(note.get("launcher", "slurm"))


def _cancel(parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    job, launcher = _job(parsed.run)
    if launcher == "local":
        _cancel_local(int(job), parsed.run)
    else:
        from jobs.slurm.control import slurm

        slurm("scancel", job)
    return {"job": job}, [f"job {job}: cancelled; `bloodcell submit --run {parsed.run}` goes on from its checkpoint"]


def _cancel_local(job: int, run: Path) -> None:
    """Let the ranks save and end: the process that looks after them (behind a shell, perhaps) passes the signal on."""
    import psutil

    try:
        root = psutil.Process(job)
        family = [root, *root.children()]
        found = [one for one in family if "submitit.local._local" in one.cmdline()]
    except psutil.Error:
        found = []
    if not found:
        raise BadInput(f"job {job} does not run any more", run, "see `bloodcell status`")
    found[-1].send_signal(signal.SIGTERM)


def _requeue(parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    if parsed.after is not None:
        from jobs.slurm.after import after

        code, again = after(parsed.after, _run_of(parsed.words))
        return {"exit": code, "again": again}, ["again"] if again else []
    if len(parsed.words) != 1:
        raise BadInput("which run?", "command line", "give one RUN")
    from jobs.slurm.control import job_facts, slurm

    run = Path(parsed.words[0])
    job, launcher = _job(run)
    facts = job_facts(job) if launcher == "slurm" else {}
    if not facts:
        raise BadInput(f"there is no job {job} any more", run, f"bloodcell submit --run {run} goes on")
    if facts["JobState"] == "PENDING":
        return {"job": job, "way": "queued"}, [f"job {job} is queued already"]
    if facts["JobState"] == "RUNNING" and not parsed.now:
        slurm("scancel", "--signal=USR2", job)
        return {"job": job, "way": "saved"}, [f"job {job}: its ranks save, then the job is queued again"]
    slurm("scontrol", "requeue", job)
    return {"job": job, "way": "now"}, [f"job {job}: queued again"]


def _run_of(words: list[str]) -> Path:
    """Return what --run says among the arguments of `bloodcell train`; of other verbs, what their job's script says."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--run", type=Path)
    found = parser.parse_known_args(words)[0].run or os.environ.get("BLOODCELL_PLACE")
    if not found:
        raise BadInput("a job that can be queued again needs to know its run", "job script", "add --run RUN")
    return Path(found)
