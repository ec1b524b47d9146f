"""The values of a trial: drawn as a pure function of (seed, number), or proposed by Optuna's TPE from what is known."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from jobs.sweep.settings import Settings
from jobs.sweep.trials import Trial
from shards.errors import BadInput


def values(settings: Settings, number: int, trials: list[Trial]) -> dict[str, Any]:
    """Return {dotted name: value} for the new trial `number`.

    Raises:
        BadInput: TPE is asked for and Optuna is not installed.
    """
    if settings.method == "tpe":
        return propose(settings, number, trials)
    return draw(settings, number)


def draw(settings: Settings, number: int) -> dict[str, Any]:
    """Return values drawn for trial `number`: the same ones whatever was tried before, whatever else varies."""
    found = {}
    for dimension in settings.space:
        stream = np.random.default_rng([settings.seed, number, zlib.crc32(dimension.key.encode())])
        found[dimension.key] = dimension.at(float(stream.random()))
    return found


def propose(settings: Settings, number: int, trials: list[Trial]) -> dict[str, Any]:
    """Return what the tree-structured Parzen estimator proposes (Bergstra et al. 2011, NeurIPS 24).

    The study is built anew from the journal each time: nothing but the journal has to be kept.
    """
    study = _study(settings, number, trials)
    asked = study.ask(_distributions(settings))
    return dict(asked.params)


def check_installed(settings: Settings) -> None:
    """Raise BadInput if the method needs Optuna and it is not there."""
    if settings.method != "tpe":
        return
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise BadInput(
            "the method tpe needs Optuna, which is not installed",
            "sweep.method",
            "install bloodcell[sweep], or choose random, hyperband or asha",
        ) from error


def _study(settings: Settings, number: int, trials: list[Trial]) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=(settings.seed * 1_000_003 + number) % 2**32, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = _distributions(settings)
    states = optuna.trial.TrialState
    for trial in trials:
        state = states.COMPLETE if trial.finished else states.FAIL if trial.failed else states.RUNNING
        known = optuna.trial.create_trial(
            state=state,
            params=trial.values,
            distributions=distributions,
            value=trial.score if trial.finished else None,
        )
        study.add_trial(known)
    return study


def _distributions(settings: Settings) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for d in settings.space:
        if d.choices:
            found[d.key] = CategoricalDistribution(d.choices)
        elif d.whole:
            found[d.key] = IntDistribution(int(d.low), int(d.high), log=d.log)
        else:
            found[d.key] = FloatDistribution(d.low, d.high, log=d.log)
    return found
