"""Send what a run has measured to W&B from its folder: each record once, whatever ran, stopped or was sent before."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bloodcell.tracking.metrics_log import read_metrics
from bloodcell.tracking.results import Gather, Results
from bloodcell.tracking.view import one_line
from bloodcell.tracking.wandb_view import KEY_FIX, WandbRun, WandbView, client, end_client, is_refusal, run_id
from shards.atomic import write_json
from shards.errors import BadInput, EnvironmentFault

FILE = "synced.json"
AGAIN = "start again: nothing is sent twice"


@dataclass(frozen=True)
class Standing:
    """How far a run is.

    Attributes:
        until: records up to this step will stay as they are; None: all of them, the run has ended.
        outcome: of the last attempt ("done", "preempted", …); None while it runs.
        said: why it stopped; "" for a run that is done, or runs.
        results: what it has to show when it has ended.
    """

    until: int | None
    outcome: str | None
    said: str
    results: Gather


@dataclass(frozen=True)
class Sent:
    """What one call did: records sent now and in all, whether the run's end is sent too, the page of the run."""

    now: int
    total: int
    finished: bool
    url: str


def send(run: Path, config: dict[str, Any], filed: WandbRun, standing: Standing) -> Sent:
    """Send the records that have not been sent, and the end if there is one.

    RUN/wandb/synced.json says what was sent. Each record carries its place in metrics.jsonl: one that a broken
    connection left unconfirmed is sent again, and counts once.

    Raises:
        BadInput: no metrics, or the server refuses the key.
        EnvironmentFault: the server is not there, or did not take everything in time.
    """
    records = read_metrics(run / "metrics.jsonl")
    if standing.until is not None:
        records = [record for record in records if record["step"] <= standing.until]
    note = run / "wandb" / FILE
    before = _read(note)
    begin, done = int(before.get("records", 0)), bool(before.get("finished"))
    finished = standing.outcome is not None
    if begin >= len(records) and (done or not finished):
        return Sent(0, begin, done, str(before.get("url", "")))
    run_id(run)  # which makes the folder
    with tempfile.TemporaryDirectory(dir=note.parent, prefix="sync-") as scratch:
        view = _open(run, config, filed, Path(scratch))
        for number in range(begin, len(records)):
            view.log(records[number], number)
        found = standing.results() if finished else None
        try:
            if found is not None:
                _end(view, run.resolve().name, standing, found)
            url, whole = view.url, view.finish(0 if standing.outcome in ("done", None) else 1)
        except Exception as error:  # the client fails in many ways
            view.abandon()
            raise EnvironmentFault(f"W&B did not take everything: {one_line(error)}", run, AGAIN) from None
    if not whole:
        raise EnvironmentFault(f"W&B did not take everything in {filed.finish_timeout:g} s", run, AGAIN)
    write_json(note, {"records": len(records), "finished": finished, "url": url})
    return Sent(max(0, len(records) - begin), len(records), finished, url)


def _end(view: WandbView, name: str, standing: Standing, found: Results) -> None:
    view.results(lambda: found)
    view.summary({"outcome": standing.outcome})
    if standing.outcome != "done":
        view.alert(f"{name}: {standing.outcome}", standing.said, standing.outcome == "failed")


def _open(run: Path, config: dict[str, Any], filed: WandbRun, folder: Path) -> WandbView:
    wandb = client()
    try:
        return WandbView(wandb, run, config, "online", filed, folder)
    except Exception as error:  # the client fails in many ways
        end_client(wandb)
        if is_refusal(wandb, error):
            raise BadInput("the W&B server refuses the API key", "WANDB_API_KEY", KEY_FIX) from None
        what = f"W&B could not be reached: {one_line(error)}"
        raise EnvironmentFault(what, run, "check the network and WANDB_BASE_URL, then start again") from None


def _read(note: Path) -> dict[str, Any]:
    try:
        value = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
