"""Validation during training: exact metrics of the val split, the same number on every rank."""

from __future__ import annotations

import torch
import torch.distributed as dist

from bloodcell.engine.setup import Job
from bloodcell.evaluation.metrics import confusion_matrix, overall


class Validation:
    """Evaluates the val split and reports the monitored metric.

    Args:
        job: the run.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.monitor = job.config.train.monitor
        self.smaller_is_better = self.monitor == "val/loss"

    def run(self, step: int) -> float:
        """Return the monitored metric after `step` steps. Collective."""
        job = self.job
        with job.strategy.averaged():
            predictions = job.inference(job.strategy.model, job.split("val"))
        value = torch.zeros((), dtype=torch.float64)
        if predictions is not None:
            matrix = confusion_matrix(predictions.labels, predictions.predicted(), len(predictions.classes))
            exact = overall(matrix)
            values = {name: float(exact[name]) for name in ("accuracy", "balanced_accuracy", "macro_f1")}
            values["loss"] = float(predictions.losses().mean())
            job.tracker.log(step, {f"val/{name}": v for name, v in values.items()}, job.plan.epoch(step))
            job.tracker.confusion("val", step, predictions.classes, matrix.tolist())
            value.fill_(values[self.monitor.removeprefix("val/")])
        dist.broadcast(value, 0)
        return float(value)
