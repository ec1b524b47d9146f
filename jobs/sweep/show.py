"""What a sweep shows while it runs: a live table on a terminal, plain lines in a log."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from rich.live import Live
from rich.table import Table

from jobs.sweep.settings import Settings
from jobs.sweep.trials import Journal, Trial, ranked
from shards.console import is_terminal, say, terminal

ROWS = 20
"""Trials that the table shows: those that run, and the best of the others."""


class Board:
    """Shows the trials of a sweep on stderr.

    Args:
        settings: of the sweep.
        journal: its trials.
        place: the run folder of a trial by its number.
    """

    def __init__(self, settings: Settings, journal: Journal, place: Callable[[int], Path]) -> None:
        self.settings, self.journal, self.place = settings, journal, place
        self._told = {trial.number: _state(trial) for trial in journal.trials}
        self._live = Live(console=terminal(), auto_refresh=False) if is_terminal() else None

    def __enter__(self) -> Board:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.update(self._table(set()), refresh=True)
            self._live.stop()

    def follow(self, journal: Journal) -> None:
        """Show what another reading of the journal holds from now on."""
        self.journal = journal

    def update(self, running: set[int]) -> None:
        """Show how things stand; `running`: the trials that train now."""
        if self._live:
            self._live.update(self._table(running), refresh=True)
            return
        for trial in self.journal.trials:
            state = _state(trial)
            if self._told.get(trial.number) != state:
                self._told[trial.number] = state
                say(self._line(trial))

    def _line(self, trial: Trial) -> str:
        values = ", ".join(f"{key} {value}" for key, value in trial.values.items())
        if trial.failed:
            return f"trial {trial.number} failed ({values}): {trial.failed}"
        if trial.under_way:
            return f"trial {trial.number} trains up to epoch {trial.sent} of {self.settings.epochs} ({values})"
        how = "finished" if trial.finished else f"paused after epoch {trial.sent}"
        return f"trial {trial.number} {how}: {self._score(trial)} ({values})"

    def _score(self, trial: Trial) -> str:
        value = -trial.score if self.settings.smaller_is_better else trial.score
        return f"{self.settings.objective} {value:.4f}"

    def _table(self, running: set[int]) -> Table:
        trials = self.journal.trials
        over = sum(trial.over for trial in trials)
        table = Table(title=f"{len(trials)} of {self.settings.trials} trials dealt, {over} over")
        for name in ("trial", "state", "epochs", self.settings.objective, *(d.key for d in self.settings.space)):
            table.add_column(name)
        for trial in [*(trials[number] for number in sorted(running)), *ranked(trials)][:ROWS]:
            if trial.number in running:
                state, epochs = "trains", f"{self._epoch(trial.number):.1f}/{trial.sent}"
            else:
                state, epochs = "finished" if trial.finished else "paused", str(trial.sent)
            score = self._score(trial).split()[-1] if trial.reached else ""
            table.add_row(str(trial.number), state, epochs, score, *(str(value) for value in trial.values.values()))
        return table

    def _epoch(self, number: int) -> float:
        try:
            return float(json.loads((self.place(number) / "status.json").read_text(encoding="utf-8"))["epoch"])
        except (OSError, ValueError, KeyError):
            return 0.0


def _state(trial: Trial) -> tuple[int, bool, bool, str]:
    return trial.sent, trial.under_way, trial.finished, trial.failed
