"""Weights & Biases as a view of the metrics: the real client, online or offline, one run id over all restarts.

Measured facts that shape this file (client 0.31): W&B counts the records that it is sent, and leaves out one whose
number it has passed, so each carries its place in metrics.jsonl: what a resumed run measures again, or `bloodcell sync`
sends again, is there once. The training step is a metric of its own. Without time limits the client waits 90 s for a
server and for ever at the end; its usage reports ask for an outside host even offline, and hold up the exit by 18 s
where that host is silent.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bloodcell.tracking.confusion import draw_confusion
from bloodcell.tracking.metrics_log import plain_number
from bloodcell.tracking.names import METRICS, STEP
from bloodcell.tracking.results import Gather
from bloodcell.tracking.view import View, one_line
from bloodcell.tracking.wandb_results import send_results, within
from shards.atomic import open_atomic
from shards.console import say, warn
from shards.errors import BadInput

Mode = Literal["auto", "online", "offline", "off"]

KEY_FIX = "run `wandb login`, set WANDB_API_KEY, or use tracking.wandb = auto"


@dataclass(frozen=True)
class WandbRun:
    """How the run is filed in W&B, and how long the client may make the training wait.

    Args:
        project: the W&B project.
        entity: the user or team; None for the default one of the key.
        name: the name that is shown.
        group: runs that belong together, such as the folds of one experiment; None for none.
        job_type: the part that this run plays in its group; None for none.
        init_timeout: seconds that the server has to answer before the run goes on offline.
        finish_timeout: seconds that the results, and then the last data, have to reach the server; what does not
            stays on disk.
    """

    project: str
    entity: str | None
    name: str
    group: str | None
    job_type: str | None
    init_timeout: float = 20.0
    finish_timeout: float = 30.0


def check_wandb(mode: Mode) -> None:
    """Raise BadInput if `mode` is an explicit "online" and there is no usable API key. Asks no server."""
    if mode != "online":
        return
    wandb = client()
    try:
        problem = _key_problem(wandb)
    finally:
        end_client(wandb)
    if problem:
        raise BadInput(f"W&B cannot be used online: {problem}", "tracking.wandb", KEY_FIX)


def wandb_plan(mode: Mode) -> tuple[str, str]:
    """Return what `mode` means here, "online", "offline" or "off", and why; the key itself is never told.

    Raises:
        BadInput: as `check_wandb`.
    """
    check_wandb(mode)
    wandb = client()
    try:
        return _choose(wandb, mode)
    finally:
        end_client(wandb)


def open_wandb(run: Path, config: dict[str, Any], mode: Mode, filed: WandbRun) -> WandbView | None:
    """Start the W&B run of the folder `run` and say in one line where it goes; None if it cannot or shall not be.

    Call `check_wandb` before.

    Raises:
        BadInput: an explicit "online" whose key the server refuses.
    """
    for variable in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):  # else the home folder, small or read-only on many clusters
        os.environ.setdefault(variable, str(run.resolve() / "wandb" / "client"))
    try:
        wandb = client()
        chosen, reason = _choose(wandb, mode)
        if chosen == "off":
            say(f"tracking: no W&B ({reason})")
            return None
        if chosen == "online" and (view := _open_online(wandb, run, config, filed, explicit=mode == "online")):
            return view
        view = WandbView(wandb, run, config, "offline", filed)
    except BadInput:
        raise
    except Exception as error:  # a view that cannot be opened must not keep the training from starting
        warn(f"tracking: no W&B ({one_line(error)}); metrics.jsonl has everything")
        return None
    if chosen == "offline":
        say(f"tracking: W&B offline ({reason}); to send it: bloodcell sync {run}")
    return view


def run_id(run: Path) -> str:
    """Return the W&B id of a run folder: drawn once, kept in RUN/wandb/run_id, the same after every restart.

    For a trial that W&B's own sweep agent starts, the server has drawn it.
    """
    file = run / "wandb" / "run_id"
    if file.exists() and re.fullmatch(r"[0-9a-z]{4,64}", known := file.read_text().strip()):
        return known
    file.parent.mkdir(parents=True, exist_ok=True)
    given = os.environ.get("WANDB_RUN_ID", "") if os.environ.get("WANDB_SWEEP_ID") else ""
    new = given if re.fullmatch(r"[0-9a-z]{4,64}", given) else secrets.token_hex(8)
    with open_atomic(file, "w") as handle:
        handle.write(new + "\n")
    return new


class WandbView(View):
    """One session of a W&B run; the constructor starts the client.

    Args:
        wandb: the client's module.
        run: the run folder; the client writes to `run`/wandb.
        config: the configuration of the run.
        mode: "online" or "offline".
        filed: how the run is filed, and the time limits.
        folder: where the client writes if not in the run folder.
    """

    name = "W&B"

    def __init__(
        self, wandb: Any, run: Path, config: dict[str, Any], mode: str, filed: WandbRun, folder: Path | None = None
    ) -> None:
        self._wandb, self._finish_timeout, self._folder = wandb, filed.finish_timeout, run / "wandb"
        identity = run_id(run)
        wandb.setup(settings=_settings(wandb, silent=True, mode=mode))
        self._run = wandb.init(
            dir=str(folder or run),
            id=identity,
            resume="allow",
            mode=mode,
            project=filed.project,
            entity=filed.entity,
            name=filed.name,
            group=filed.group,
            job_type=filed.job_type,
            config=config,
            settings=_settings(wandb, **_quiet(filed)),
        )
        self._number = 0
        self._step = 0
        self._run.define_metric(STEP)
        for name in METRICS:
            self._run.define_metric(name, step_metric=STEP)
        self._run.define_metric("*", step_metric=STEP)

    @property
    def url(self) -> str:
        """The page of the run; empty offline."""
        return self._run.url or ""

    def log(self, record: dict[str, Any], number: int) -> None:
        self._number, self._step = number, record["step"]
        values = {name: plain_number(value) for name, value in record.items() if name != "time" and value is not None}
        self._run.log(values, step=number)

    def confusion(self, split: str, step: int, classes: Sequence[str], matrix: list[list[int]]) -> None:
        # A picture, not a W&B table: a table asks the server while the training waits (19 s where it does not answer).
        picture = self._wandb.Image(draw_confusion(classes, matrix))
        self._run.log({f"{split}/confusion": picture, "step": step}, step=self._number)

    def summary(self, values: dict[str, Any]) -> None:
        self._run.summary.update({name: plain_number(value) for name, value in values.items()})

    def results(self, gather: Gather) -> None:
        found = gather()
        within(self._finish_timeout, lambda: send_results(self._wandb, self._run, found, self._number, self._step))

    def alert(self, title: str, text: str, failed: bool) -> None:
        level = self._wandb.AlertLevel.ERROR if failed else self._wandb.AlertLevel.INFO
        self._run.alert(title=title, text=text or title, level=level)

    def close(self, outcome: str) -> None:
        self._run.summary["outcome"] = outcome
        if outcome == "preempted":
            self._run.mark_preempting()
        if not self.finish(0 if outcome == "done" else 1):
            warn(
                f"tracking: W&B did not take everything in {self._finish_timeout:g} s;"
                f" to send the rest: bloodcell sync {self._folder.parent}"
            )

    def finish(self, exit_code: int) -> bool:
        """End the session; return whether everything was sent in time."""
        begin = time.monotonic()
        self._run.finish(exit_code=exit_code)
        self.abandon()
        return time.monotonic() - begin < self._finish_timeout

    def abandon(self) -> None:
        end_client(self._wandb)


def _open_online(wandb: Any, run: Path, config: dict[str, Any], filed: WandbRun, *, explicit: bool) -> WandbView | None:
    try:
        view = WandbView(wandb, run, config, "online", filed)
    except Exception as error:  # whatever keeps the client from its server, the run goes on offline
        end_client(wandb)  # the client refuses to open the same id again before
        if explicit and is_refusal(wandb, error):
            raise BadInput("the W&B server refuses the API key", "tracking.wandb", KEY_FIX) from None
        warn(
            f"tracking: W&B could not be reached ({one_line(error)}); this run is logged offline,"
            f" to send it: bloodcell sync {run}"
        )
        return None
    say(f"tracking: W&B online at {view.url}")
    return view


def client() -> Any:
    """Import the client, without its usage reports."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    import wandb

    os.environ["WANDB_ERROR_REPORTING"] = "false"  # where it was imported before, it has written "True" there
    return wandb


def _choose(wandb: Any, mode: Mode) -> tuple[str, str]:
    """Return "online", "offline" or "off", and why."""
    if mode != "auto":
        return mode, f"tracking.wandb = {mode}"
    asked = os.environ.get("WANDB_MODE", "").lower()
    if asked in ("offline", "dryrun"):
        return "offline", f"WANDB_MODE={asked}"
    if asked == "disabled":
        return "off", "WANDB_MODE=disabled"
    problem = _key_problem(wandb)
    return ("offline", problem) if problem else ("online", "there is an API key")


def _key_problem(wandb: Any) -> str:
    """Return why there is no usable API key, or an empty string. Looks where the client looks, and asks no server."""
    wandb.setup(settings=_settings(wandb, silent=True, mode="online"))
    try:
        return "" if wandb.login(prompt=False, verify=False) else "no API key is configured"
    except wandb.errors.AuthenticationError:
        return "the API key is malformed"


def _settings(wandb: Any, **values: Any) -> Any:
    """Return client settings; a setting that this version of the client does not know is left out."""
    return wandb.Settings(**{name: value for name, value in values.items() if name in wandb.Settings.model_fields})


def _quiet(filed: WandbRun) -> dict[str, Any]:
    """Time limits, and nothing taken or printed that nobody asked for: environment.json says what the machine is."""
    return {
        "init_timeout": filed.init_timeout,
        "finish_timeout": filed.finish_timeout,
        "silent": True,
        "console": "off",
        "allow_val_change": True,
        "disable_code": True,
        "disable_git": True,
        "disable_job_creation": True,
        "label_disable": True,
        "program": "bloodcell",
        "save_code": False,
        "x_disable_meta": True,
        "x_save_requirements": False,
    }


def end_client(wandb: Any) -> None:
    """End the client's process. A client that is broken may raise, or even ask for the end of this process."""
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown(exit_code=0)


def is_refusal(wandb: Any, error: Exception) -> bool:
    return isinstance(error, wandb.errors.AuthenticationError) or bool(re.search(r"\b40[13]\b", str(error)))
