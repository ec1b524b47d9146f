"""`bloodcell sync`: send runs that were tracked without a network to W&B, from a machine that has one."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import EnvironmentFault

if TYPE_CHECKING:
    from bloodcell.tracking.sync import Standing

EPILOG = """\
Sends the replay of metrics.jsonl, not the client's own files: every record once and in order, one W&B run for each
run folder, however often training was killed and resumed, and however often sync was stopped and started. Of a run
that has not ended the records up to its newest checkpoint are sent: those can change no more. When it has ended its
results, confusion matrices and report follow. Runs that were tracked online are completed.

Reads the key from where the client does: WANDB_API_KEY, or `wandb login`.

--json: {runs: [{run, id, url, sent, total, finished}]}"""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of sync."""
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders, or folders of them (runs)")
    parser.add_argument("--every", type=float, metavar="SECONDS", help="look again until all runs have ended")
    parser.add_argument("--project", help="W&B project (that of the run)")
    parser.add_argument("--entity", help="W&B user or team (that of the run)")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds for the server to take a run's data (60)")
    parser.epilog = EPILOG


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Send; return what was sent and a line for each run."""
    from bloodcell.tracking.wandb_view import check_wandb
    from jobs.status import find_runs

    runs = [path for path in find_runs(parsed.runs or [Path("runs")]) if (path / "metrics.jsonl").exists()]
    check_wandb("online")
    found: dict[Path, dict[str, Any]] = {}
    while True:
        for path in runs:
            found[path] = _together(found.get(path), _send(path, parsed))
        if parsed.every is None or all(row["finished"] for row in found.values()):
            break
        time.sleep(parsed.every)
    rows = list(found.values())
    lines = [
        f"{row['run']}: {row['sent']:,} records sent, {row['total']:,} in all"
        + ("" if row["finished"] else ", not ended yet")
        + (f": {row['url']}" if row["url"] else "")
        for row in rows
    ]
    return {"runs": rows}, lines or ["no runs with metrics here"]


def _together(before: dict[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    return now if before is None else {**now, "sent": before["sent"] + now["sent"]}


def _send(path: Path, parsed: argparse.Namespace) -> dict[str, Any]:
    from bloodcell.config import encode
    from bloodcell.runfolder import RunFolder
    from bloodcell.tracking.sync import send
    from bloodcell.tracking.wandb_view import WandbRun, run_id
    from shards.console import warn

    config = RunFolder(path).config()
    tracking = config.tracking
    filed = WandbRun(
        project=parsed.project or tracking.project,
        entity=parsed.entity or tracking.entity,
        name=path.resolve().name,
        group=tracking.group,
        job_type=tracking.job_type,
        finish_timeout=parsed.patience,
    )
    try:
        sent = send(path, encode(config), filed, standing(path))
    except EnvironmentFault as fault:
        if parsed.every is None:
            raise
        warn(f"{fault}; trying again in {parsed.every:g} s")
        return {"run": str(path), "id": run_id(path), "url": "", "sent": 0, "total": 0, "finished": False}
    return {
        "run": str(path),
        "id": run_id(path),
        "url": sent.url,
        "sent": sent.now,
        "total": sent.total,
        "finished": sent.finished,
    }


def standing(path: Path) -> Standing:
    """Return how far a run is, from its folder alone."""
    from bloodcell.engine.run import newest_step
    from bloodcell.engine.shown import gather
    from bloodcell.runfolder import RunFolder
    from bloodcell.tracking.results import Results
    from bloodcell.tracking.sync import Standing

    folder = RunFolder(path)
    config = folder.config()
    status = folder.read("status.json") or {}
    outcome = status.get("outcome") or {}
    if status.get("state") != "done":
        kind = str(outcome["kind"]) if status.get("state") in ("failed", "stopped") and "kind" in outcome else None
        so_far = Results(summary={"step": status.get("step", 0)})
        return Standing(newest_step(folder), kind, str(outcome.get("what", "")) if kind else "", lambda: so_far)
    return Standing(None, "done", "", lambda: gather(folder, config))
