"""The trials of a sweep and its journal: a line for each change, from which a restarted sweep knows what was done."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bloodcell.tracking.metrics_log import MetricsLog, read_metrics

JOURNAL = "journal.jsonl"


@dataclass
class Trial:
    """One setting that is tried.

    Attributes:
        number: from 0, in the order of dealing.
        values: {dotted name: value} of what varies.
        sent: epochs up to which it was told to train.
        reached: {epochs: score} where it stopped; a score is larger where it is better.
        finished: it trained to its end (or stopped early by its own patience).
        failed: why it failed, or empty.
    """

    number: int
    values: dict[str, Any]
    sent: int = 0
    reached: dict[int, float] = field(default_factory=dict)
    finished: bool = False
    failed: str = ""

    @property
    def over(self) -> bool:
        """Whether it can train no further."""
        return self.finished or bool(self.failed)

    @property
    def under_way(self) -> bool:
        """Whether it was sent further than it has come."""
        return not self.over and self.sent not in self.reached

    @property
    def score(self) -> float:
        """The score at its last stop; -inf for a trial that failed or has none yet."""
        return -math.inf if self.failed or not self.reached else self.reached[max(self.reached)]

    def score_at(self, epochs: int) -> float | None:
        """Return the score after `epochs`, None if that is not known yet. What is over keeps its last score."""
        if self.failed:
            return -math.inf
        if self.finished and epochs > max(self.reached):
            return self.score
        return self.reached.get(epochs)


class Journal:
    """The trials so far, kept in DIR/journal.jsonl: each change is one line, written whole and synced.

    Args:
        folder: of the sweep; it exists.

    Raises:
        BadInput: a line of an earlier journal is no record.
        EnvironmentFault: the disk is full or fails.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / JOURNAL
        self._log = MetricsLog(path, sys.maxsize)  # takes away a torn last line, and nothing else
        self.trials: list[Trial] = []
        records = read_metrics(path)
        self._count = len(records)
        for record in records:
            self._take(record)

    def send(self, number: int, epochs: int, values: dict[str, Any]) -> Trial:
        """Note that a trial, perhaps a new one, is told to train up to `epochs`; return it."""
        self._write(event="sent", trial=number, epochs=epochs, values=values)
        return self.trials[number]

    def reach(self, number: int, epochs: int, score: float, finished: bool) -> None:
        """Note that a trial has trained `epochs`."""
        self._write(event="reached", trial=number, epochs=epochs, score=score, finished=finished)

    def fail(self, number: int, reason: str) -> None:
        """Note that a trial cannot be finished."""
        self._write(event="failed", trial=number, reason=reason)

    def close(self) -> None:
        """Close the file."""
        self._log.close()

    def _write(self, **record: Any) -> None:
        self._log.write({"step": self._count, **record})
        self._log.sync()
        self._count += 1
        self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        number = record["trial"]
        if record["event"] == "sent":
            if number == len(self.trials):
                self.trials.append(Trial(number, record["values"]))
            self.trials[number].sent = record["epochs"]
        elif record["event"] == "reached":
            self.trials[number].reached[record["epochs"]] = record["score"]
            self.trials[number].finished = record["finished"]
        else:
            self.trials[number].failed = record["reason"]


def ranked(trials: list[Trial]) -> list[Trial]:
    """Return the trials with a score, finished ones first, better ones before worse ones."""
    return sorted(
        (trial for trial in trials if trial.reached and not trial.failed),
        key=lambda trial: (not trial.finished, -trial.score, trial.number),
    )
