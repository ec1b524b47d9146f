"""The tracker of a run: writes every record to metrics.jsonl, then shows it in the views."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bloodcell.tracking.metrics_log import MetricsLog
from bloodcell.tracking.results import Gather
from bloodcell.tracking.tensorboard_view import TensorBoardView, check_tensorboard
from bloodcell.tracking.view import LARGEST_CHART, View, one_line
from bloodcell.tracking.wandb_view import Mode, WandbRun, check_wandb, open_wandb
from shards.console import warn


class Tracker:
    """Takes what a run measures. Without a log and views (every rank but 0) it does nothing.

    A view that fails is given up, which is said once; the log and the training go on.

    Args:
        log: the log that is the truth; None to write nothing.
        views: where the records are shown.
    """

    def __init__(self, log: MetricsLog | None = None, views: Sequence[View] = ()) -> None:
        self._log = log
        self._views = list(views)

    def log(self, step: int, metrics: dict[str, float], epoch: float) -> None:
        """Record metrics of one step; NaN and infinities are null in the log.

        Args:
            step: optimizer steps done so far in the whole run.
            metrics: values by name, such as `train/loss`: numbers or scalars of NumPy or torch.
            epoch: passes over the training set so far, with fraction.

        Raises:
            EnvironmentFault: metrics.jsonl cannot be written.
        """
        if self._log is None:
            return
        record = {"step": step, "epoch": epoch, "time": round(time.time(), 3), **metrics}
        number = self._log.write(record)
        self._show(lambda view: view.log(record, number))

    def confusion(self, split: str, step: int, classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> None:
        """Show a confusion matrix of counts in the views, up to 100 classes.

        Args:
            split: the split that was evaluated.
            step: optimizer steps done so far.
            classes: class names in index order.
            matrix: counts [classes, classes]; rows are the true classes, columns the predicted ones.
        """
        if len(classes) <= LARGEST_CHART:
            counts = [[int(count) for count in row] for row in matrix]
            self._show(lambda view: view.confusion(split, step, classes, counts))

    def summary(self, values: dict[str, Any]) -> None:
        """Show final values in the views, by name."""
        self._show(lambda view: view.summary(values))

    def results(self, gather: Gather) -> None:
        """Show what a finished run has beside its metrics; only views that can show it call `gather`."""
        self._show(lambda view: view.results(gather))

    def alert(self, title: str, text: str, failed: bool = True) -> None:
        """Tell people through the views that something has happened; one line each, without secrets."""
        self._show(lambda view: view.alert(title, text, failed))

    def flush(self) -> None:
        """Let the views hand on what they hold."""
        self._show(lambda view: view.flush())

    def sync(self) -> None:
        """Make the records durable, from any thread: before a checkpoint appears, so that its records are never lost.

        Raises:
            EnvironmentFault: the disk is full or fails.
        """
        log = self._log
        if log is not None:
            log.sync()

    def close(self, outcome: str) -> None:
        """End the log and the views; the tracker does nothing afterwards.

        W&B online may take its finish timeout to send the last data: call it after everything else is saved.

        Args:
            outcome: "done", "preempted" or the way in which the run failed.

        Raises:
            EnvironmentFault: the disk is full or fails.
        """
        log, self._log = self._log, None
        try:
            if log is not None:
                log.close()
        finally:
            self._show(lambda view: view.close(outcome))
            self._views = []

    def _show(self, what: Callable[[View], None]) -> None:
        for view in list(self._views):
            try:
                what(view)
            except Exception as error:  # a view may fail in any way; the training must not
                self._views.remove(view)
                warn(f"tracking: {view.name} failed ({one_line(error)}) and is given up; metrics.jsonl has everything")
                view.abandon()


def check_tracking(mode: Mode, tensorboard: bool) -> None:
    """Raise BadInput if tracking as asked for cannot start; for the one who starts the ranks, before they start.

    Args:
        mode: what to do with W&B.
        tensorboard: whether TensorBoard is asked for.
    """
    check_wandb(mode)
    if tensorboard:
        check_tensorboard()


def open_tracker(
    run: Path,
    config: dict[str, Any],
    *,
    mode: Mode,
    project: str,
    entity: str | None,
    name: str,
    group: str | None,
    job_type: str | None,
    tensorboard: bool,
    rank: int,
    resume_step: int | None,
    again: str | None = None,
    init_timeout: float = 20.0,
    finish_timeout: float = 30.0,
) -> Tracker:
    """Open the tracker of a run folder: a real one on rank 0, one that does nothing on the others.

    Args:
        run: the run folder, which exists; gets metrics.jsonl, wandb/ and tensorboard/.
        config: the resolved configuration, shown in the views; must hold no secrets.
        mode: W&B "online" and "offline" as they say, "off" for none; "auto" is online where an API key is configured
            and WANDB_MODE does not say otherwise, else offline.
        project: the W&B project.
        entity: the W&B user or team; None for the default one of the key.
        name: the name of the run in W&B.
        group: the W&B group; None for none.
        job_type: the W&B job type; None for none.
        tensorboard: whether to write TensorBoard's event files too.
        rank: the global rank of this process.
        resume_step: the step of the checkpoint that the run goes on from; None at the beginning of a run.
        again: names that begin like this are measured again at that step.
        init_timeout: seconds that the W&B server has to answer; then the run goes on offline.
        finish_timeout: seconds that the results of a finished run, and then the last data, have to reach the server.

    Raises:
        BadInput: an explicit "online" without a usable API key; TensorBoard is asked for and not installed.
        EnvironmentFault: metrics.jsonl cannot be written.
    """
    if rank != 0:
        return Tracker()
    check_tracking(mode, tensorboard)
    views: list[View] = []
    if mode != "off":
        filed = WandbRun(project, entity, name, group, job_type, init_timeout, finish_timeout)
        view = open_wandb(run, config, mode, filed)
        if view is not None:
            views.append(view)
    if tensorboard:
        views.append(TensorBoardView(run / "tensorboard", config, resume_step))
    return Tracker(MetricsLog(run / "metrics.jsonl", resume_step, again), views)
