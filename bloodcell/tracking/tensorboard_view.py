"""TensorBoard as a view of the metrics: event files in RUN/tensorboard."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bloodcell.tracking.confusion import draw_confusion
from bloodcell.tracking.metrics_log import plain_number
from bloodcell.tracking.view import View
from shards.errors import BadInput


def check_tensorboard() -> None:
    """Raise BadInput if TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise BadInput("TensorBoard is not installed", "tracking.tensorboard", "pip install 'bloodcell[tensorboard]'")


class TensorBoardView(View):
    """Writes scalars, confusion matrices and texts.

    Args:
        folder: where the event files go.
        config: the configuration of the run, shown as a text.
        resume_step: the step of the checkpoint that the run goes on from; later events of earlier attempts are hidden.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path, config: dict[str, Any], resume_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = 0 if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(log_dir=str(folder), purge_step=purge_step)
        self._last_step = resume_step or 0
        listing = json.dumps(config, indent=1, ensure_ascii=False, default=str)
        self._writer.add_text("config", "\n".join(f"    {line}" for line in listing.splitlines()), self._last_step)

    def log(self, record: dict[str, Any], number: int) -> None:
        self._last_step = record["step"]
        for name, value in record.items():
            number = plain_number(value)
            if name not in ("step", "time") and isinstance(number, int | float):
                self._writer.add_scalar(name, number, record["step"], walltime=record["time"])

    def confusion(self, split: str, step: int, classes: Sequence[str], matrix: list[list[int]]) -> None:
        self._writer.add_image(f"{split}/confusion", draw_confusion(classes, matrix), step, dataformats="HWC")
        head = "| true \\ predicted | " + " | ".join(classes) + " |\n" + "|---" * (len(classes) + 1) + "|\n"
        rows = (f"| {name} | " + " | ".join(map(str, row)) + " |" for name, row in zip(classes, matrix, strict=True))
        self._writer.add_text(f"{split}/confusion", head + "\n".join(rows), step)

    def summary(self, values: dict[str, Any]) -> None:
        rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
        self._writer.add_text("summary", f"| name | value |\n|---|---|\n{rows}", self._last_step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self, outcome: str) -> None:
        self._writer.add_text("outcome", outcome, self._last_step)
        self._writer.close()

    def abandon(self) -> None:
        with contextlib.suppress(Exception):
            self._writer.close()
