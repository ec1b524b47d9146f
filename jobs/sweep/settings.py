"""The `[sweep]` table of a recipe: what is searched for, how, and for how long."""

from __future__ import annotations

import typing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bloodcell.config import SWEEP, TrainConfig, read_toml
from jobs.sweep.space import Dimension, read_space
from shards.errors import BadInput, nearest

METHODS = ("random", "hyperband", "asha", "tpe")
OBJECTIVES = typing.get_args(typing.get_type_hints(TrainConfig)["monitor"])
LEAST = {"trials": 1, "epochs": 1, "min_epochs": 1, "eta": 2, "seed": 0}
"""The whole numbers of the table and their smallest values."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a sweep does.

    Attributes:
        space: what varies.
        objective: the validation metric that is made large (val/loss: small); trials keep their best weights by it.
        method: random, hyperband, asha or tpe.
        trials: how many settings are tried.
        epochs: how long a trial trains that is never paused.
        min_epochs: the first pause of hyperband and asha comes no earlier.
        eta: of so many paused trials, one goes on; it then trains about so many times as long.
        seed: of the draws.
    """

    space: tuple[Dimension, ...]
    objective: str = "val/macro_f1"
    method: str = "random"
    trials: int = 10
    epochs: int = 10
    min_epochs: int = 1
    eta: int = 3
    seed: int = 0

    @property
    def smaller_is_better(self) -> bool:
        """Whether the objective is made small."""
        return self.objective == "val/loss"

    def plain(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        space = {
            d.key: {"choices": list(d.choices)} if d.choices else {"low": d.low, "high": d.high, "log": d.log}
            for d in self.space
        }
        names = ("objective", "method", "trials", "epochs", "min_epochs", "eta", "seed")
        return {**{name: getattr(self, name) for name in names}, "space": space}

    def changed(self, where: object, **values: Any) -> Settings:
        """Return the settings with those of `values` that are not None; raises BadInput like read_settings."""
        given = {name: value for name, value in values.items() if value is not None}
        _check(given, where)
        return _whole(replace(self, **given), where)


def read_settings(path: Path) -> Settings | None:
    """Return the settings in a recipe file, None if it has no `[sweep]` table.

    Raises:
        BadInput: the file cannot be read, or a key or value of the table will not do.
    """
    table = read_toml(path).get(SWEEP)
    if table is None:
        return None
    where = f"[{SWEEP}] of {path}"
    if not isinstance(table, dict):
        raise BadInput(f"{SWEEP} is not a table", path, f"write its keys below [{SWEEP}]")
    return settings_of(table, where)


def settings_of(table: dict[str, Any], where: object) -> Settings:
    """Return the settings of a `[sweep]` table, or of what `Settings.plain` returned; raises BadInput."""
    known = ["space", "objective", "method", *LEAST]
    for key in table:
        if key not in known:
            raise BadInput(f"unknown key {key!r}", where, nearest(key, known) or f"known keys: {', '.join(known)}")
    given = {key: value for key, value in table.items() if key != "space"}
    _check(given, where)
    return _whole(Settings(space=tuple(read_space(table.get("space"), where)), **given), where)


def _check(given: dict[str, Any], where: object) -> None:
    for key, least in LEAST.items():
        value = given.get(key, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise BadInput(f"{key} = {value!r} will not do", where, f"give a whole number, {least} or more")
    for key, choices in (("method", METHODS), ("objective", OBJECTIVES)):
        value = given.get(key, choices[0])
        if value in choices:
            continue
        if key == "objective" and str(value).startswith(("test/", "train/")):
            fix = f"a choice is made on the validation split alone: take one of {', '.join(choices)}"
        else:
            fix = nearest(str(value), list(choices)) or f"choose one of {', '.join(choices)}"
        raise BadInput(f"{key} = {value!r} will not do", where, fix)


def _whole(settings: Settings, where: object) -> Settings:
    if settings.min_epochs > settings.epochs:
        what = f"min_epochs {settings.min_epochs} is more than epochs {settings.epochs}"
        raise BadInput(what, where, "a trial that is paused first must have something left")
    return settings
