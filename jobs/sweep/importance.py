"""How much each setting mattered: permutation importance of a random forest fitted to the trials."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jobs.sweep.settings import Settings
from jobs.sweep.trials import Trial

LEAST = 6
"""Trials below which a forest says nothing."""


def importance(settings: Settings, trials: Sequence[Trial]) -> dict[str, float] | None:
    """Return each setting's share (they sum to 1) of what the forest explains; None where there is too little to say.

    The forest predicts a trial's score from its values (log ranges by their logarithm, choices by one column each); the
    loss of R² when a setting's columns are shuffled together is its importance (Breiman 2001, Machine Learning 45:5).

    Args:
        settings: of the sweep.
        trials: all; those without a score do not count. Pauses mix lengths: each counts with its last score.
    """
    from sklearn.ensemble import RandomForestRegressor

    scored = [trial for trial in trials if trial.reached and not trial.failed]
    scores = np.array([trial.score for trial in scored])
    if len(scored) < LEAST or np.ptp(scores) == 0:
        return None
    columns = {d.key: _columns(settings, d.key, scored) for d in settings.space}
    table = np.concatenate(list(columns.values()), axis=1)
    forest = RandomForestRegressor(200, random_state=settings.seed, n_jobs=1).fit(table, scores)
    draws, whole = np.random.default_rng(settings.seed), forest.score(table, scores)
    lost, first = {}, 0
    for key, part in columns.items():
        drops = []
        for _ in range(20):
            shuffled = table.copy()
            shuffled[:, first : first + part.shape[1]] = part[draws.permutation(len(scored))]
            drops.append(whole - forest.score(shuffled, scores))
        lost[key], first = max(0.0, float(np.mean(drops))), first + part.shape[1]
    total = sum(lost.values())
    return {key: value / total for key, value in lost.items()} if total > 0 else None


def _columns(settings: Settings, key: str, trials: Sequence[Trial]) -> np.ndarray:
    """Return the values of one setting as numbers, float64 [trials, 1], or [trials, choices] of 0 and 1."""
    dimension = next(d for d in settings.space if d.key == key)
    values = [trial.values[key] for trial in trials]
    if dimension.choices:
        return np.array([[float(value == choice) for choice in dimension.choices] for value in values])
    return np.array([[dimension.share(value)] for value in values])
