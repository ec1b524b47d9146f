"""What a view of the metrics can be told; each view overrides what it can show."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from bloodcell.tracking.results import Gather

LARGEST_CHART = 100
"""Confusion matrices of more classes are not drawn in the views: nobody can read them."""


class View:
    """A place where people watch a run. It may fail at any time: the tracker then goes on without it."""

    name = "view"

    def log(self, record: dict[str, Any], number: int) -> None:
        """Show one record: `step` (int), `epoch` (float), `time` (seconds since 1970) and metrics by name.

        `number` is its place in metrics.jsonl, from 0; a run that is resumed measures some places again.
        """

    def confusion(self, split: str, step: int, classes: Sequence[str], matrix: list[list[int]]) -> None:
        """Show a confusion matrix of counts; rows are the true classes, columns the predicted ones."""

    def summary(self, values: dict[str, Any]) -> None:
        """Show final values by name."""

    def results(self, gather: Gather) -> None:
        """Show what a finished run has beside its metrics; `gather` collects it, which may take a while."""

    def alert(self, title: str, text: str, failed: bool) -> None:
        """Tell people who do not look here all the time."""

    def flush(self) -> None:
        """Hand on what is still in memory."""

    def close(self, outcome: str) -> None:
        """End the view; `outcome` is "done", "preempted" or the way in which the run failed."""

    def abandon(self) -> None:
        """Let go of everything after a failure, without waiting and without raising."""


def one_line(error: Exception) -> str:
    """Return the kind and the first line of an error, without the W&B API key."""
    text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    key = os.environ.get("WANDB_API_KEY", "")
    return text.replace(key, "***") if key else text
