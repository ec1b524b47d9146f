"""Validation during training: exact metrics of the val split, the same number on every rank."""

from __future__ import annotations

import torch
import torch.distributed as dist

from bloodcell.engine.setup import Job
from bloodcell.evaluation.metrics import confusion_matrix, overall
from shards.errors import Stopped

METRICS = ("accuracy", "balanced_accuracy", "macro_recall", "macro_f1")


class Validation:
    """Evaluates the val split and reports the monitored metric.

    Args:
        job: the run.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.monitor = job.config.train.monitor
        self.smaller_is_better = self.monitor == "val/loss"
        self.stop_wanted = False

    def run(self, step: int) -> float | None:
        """Return the monitored metric after `step` steps; note in `stop_wanted` whether to stop here. Collective.

        None if a signal asked a rank to stop: nothing was recorded, all of it is to be done again.
        """
        job = self.job
        try:
            job.refresh_average()
            with job.average.applied() if job.average.active else job.strategy.averaged():
                predictions = job.inference(job.strategy.model, job.split("val"))
        except Stopped:
            return None
        shared = torch.zeros(2, dtype=torch.float64)
        if predictions is not None:
            matrix = confusion_matrix(predictions.labels, predictions.predicted(), len(predictions.classes))
            exact = overall(matrix)
            values = {name: float(exact[name]) for name in METRICS}
            values["loss"] = float(predictions.losses().mean())
            job.tracker.log(step, {f"val/{name}": v for name, v in values.items()}, job.plan.epoch(step))
            job.tracker.confusion("val", step, predictions.classes, matrix.tolist())
            shared[0] = values[self.monitor.removeprefix("val/")]
            shared[1] = float(job.run.stop_asked(job.plan.epoch(step)))
        dist.broadcast(shared, 0)
        self.stop_wanted = bool(shared[1])
        return float(shared[0])
