"""What a run reports while it trains: loss, learning rate, images per second, waiting for data, memory."""

from __future__ import annotations

import resource
import time

import torch

from bloodcell.engine.guard import StepReport


class Meter:
    """Averages over the steps since the last record.

    Args:
        device: of this rank.
        global_batch: images in a step, over all ranks.
    """

    def __init__(self, device: torch.device, global_batch: int) -> None:
        self.device, self.global_batch = device, global_batch
        self.images = 0
        """Images trained on in this process's lifetime, over all ranks."""
        self.seconds = 0.0
        """Seconds spent in training steps, without evaluation and saving."""
        self.waited = 0.0
        """Of those, seconds of waiting for data."""
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._mark = time.perf_counter()
        self._waited = 0.0
        self._before = (0, 0.0, 0.0)  # images, seconds and waiting at the last record

    def restart(self, waited: float) -> None:
        """Leave out the time since the last step (evaluation, saving) from the rates."""
        self._mark = time.perf_counter()
        self._waited = waited

    def step(self, waited: float) -> None:
        """Note that a step is done; `waited`: the loader's total seconds of waiting."""
        now = time.perf_counter()
        self.seconds += now - self._mark
        self.waited += waited - self._waited
        self.images += self.global_batch
        self._mark, self._waited = now, waited

    @property
    def step_seconds(self) -> float:
        """Mean seconds of a step so far."""
        return self.seconds * self.global_batch / self.images if self.images else 0.0

    def note(self, report: StepReport | None) -> None:
        """Take in the report of a finished step."""
        if report is not None:
            self._losses.append(report.loss)
            self._norms.append(report.grad_norm)

    def record(self, rate: float, size: int) -> dict[str, float]:
        """Return the means since the last record and forget them; `rate` and `size` are those of the last step."""
        images, seconds, waited = self.images, self.seconds, self.waited
        before = self._before
        span = max(seconds - before[1], 1e-9)
        values = {
            "train/lr": rate,
            "train/size": size,
            "train/images_per_s": (images - before[0]) / span,
            "train/data_wait": (waited - before[2]) / span,
            "train/memory_mib": self.memory(),
        }
        if self._losses:
            values["train/loss"] = sum(self._losses) / len(self._losses)
            values["train/grad_norm"] = sum(self._norms) / len(self._norms)
        self._before = (images, seconds, waited)
        self._losses, self._norms = [], []
        return values

    def memory(self) -> float:
        """Return the peak memory of this rank in MiB: of the GPU, or of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
