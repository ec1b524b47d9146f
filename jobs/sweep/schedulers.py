"""Who trains next, and how long: pure functions of what the trials have reached, so that a restart decides alike.

A trial is told to train up to a rung (a number of epochs), pauses there, and goes on if it is among the best.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from jobs.sweep.settings import Settings
from jobs.sweep.trials import Trial, ranked

Next = tuple[int, int]
"""A trial's number (that of a new trial is the number of trials so far) and the epochs up to which it shall train."""


def rungs(settings: Settings) -> list[int]:
    """Return the epochs at which trials pause: whole numbers that end in `epochs`, each about `eta` times the last."""
    found, share = [], 1
    while settings.epochs / share >= settings.min_epochs:
        found.append(round(settings.epochs / share))
        share *= settings.eta
    return found[::-1]


def whole(settings: Settings, trials: Sequence[Trial]) -> Next | None:
    """Every trial trains to its end (random search, TPE)."""
    return (len(trials), settings.epochs) if len(trials) < settings.trials else None


def asha(settings: Settings, trials: Sequence[Trial]) -> Next | None:
    """Promote whoever is among the best 1/eta of a rung, else start a new trial; nobody waits for others.

    When no new trial is left and nothing runs, the best go on until one is trained to its end (Li et al. 2020, A System
    for Massively Parallel Hyperparameter Tuning, arXiv:1810.05934, algorithm 2).
    """
    steps = rungs(settings)
    for below, above in reversed(list(itertools.pairwise(steps))):
        there = _best([trial for trial in trials if trial.score_at(below) is not None], below)
        for trial in there[: len(there) // settings.eta]:
            if not trial.over and trial.sent < above:
                return trial.number, above
    if len(trials) < settings.trials:
        return len(trials), steps[0]
    if any(trial.finished or trial.under_way for trial in trials):
        return None
    left = [trial for trial in trials if not trial.over]
    if not left:
        return None
    furthest = max(trial.sent for trial in left)
    best = _best([trial for trial in left if trial.sent == furthest], furthest)[0]
    return best.number, next(step for step in steps if step > best.sent)


def hyperband(settings: Settings, trials: Sequence[Trial]) -> Next | None:
    """Brackets of successive halving, from many short trials to few long ones, over and again until trials run out.

    While a rung is not complete, the next bracket goes on (Li et al. 2018, Hyperband, JMLR 18:185, algorithm 1).
    """
    first = 0
    for count, steps in itertools.cycle(brackets(settings)):
        if first >= settings.trials:
            return None
        members = range(first, min(first + count, settings.trials))
        found = _halving(members, steps, settings.eta, trials)
        if found is not None:
            return found
        first += count
    return None


def brackets(settings: Settings) -> list[tuple[int, list[int]]]:
    """Return for each bracket how many trials begin it, and its rungs."""
    steps = rungs(settings)
    most = len(steps) - 1
    return [(-(-(most + 1) * settings.eta**s // (s + 1)), steps[most - s :]) for s in range(most, -1, -1)]


def _halving(members: range, steps: list[int], eta: int, trials: Sequence[Trial]) -> Next | None:
    """Return who of a bracket is to train next; None if it is done or has to wait."""
    numbers = list(members)
    for level, step in enumerate(steps):
        for number in numbers:
            if number >= len(trials):
                return len(trials), step
            if trials[number].sent < step and not trials[number].over:
                return number, step
        if any(trials[number].score_at(step) is None for number in numbers):
            return None
        keep = max(1, len(members) // eta ** (level + 1))
        numbers = [trial.number for trial in _best([trials[number] for number in numbers], step)[:keep]]
    return None


def _best(trials: list[Trial], step: int) -> list[Trial]:
    def key(trial: Trial) -> tuple[float, int]:
        score = trial.score_at(step)
        return (-score if score is not None else float("inf"), trial.number)

    return sorted(trials, key=key)


SCHEDULERS: dict[str, Callable[[Settings, Sequence[Trial]], Next | None]] = {
    "random": whole,
    "tpe": whole,
    "asha": asha,
    "hyperband": hyperband,
}


def following(settings: Settings, trials: list[Trial], running: set[int]) -> Next | None:
    """Return who trains next: first whoever was interrupted, then whom the method chooses; None if nobody can now.

    Args:
        settings: of the sweep.
        trials: all so far.
        running: numbers of those that train at the moment.
    """
    for trial in trials:
        if trial.under_way and trial.number not in running:
            return trial.number, trial.sent
    return SCHEDULERS[settings.method](settings, trials)


def winner(trials: list[Trial]) -> Trial | None:
    """Return the best of the trials that were trained to their end, None if there is none."""
    return next((trial for trial in ranked(trials) if trial.finished), None)
