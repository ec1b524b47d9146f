"""The search space: the settings that vary, each with a range or with choices, checked against the config."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bloodcell.config import decode, fields
from shards.errors import BadInput, nearest

FIXED = {
    "data.set": "--data names the set",
    "train.epochs": "sweep.epochs says how long a trial trains",
    "train.monitor": "sweep.objective is what a trial monitors",
}
KEYS = ("low", "high", "log", "choices")


@dataclass(frozen=True)
class Dimension:
    """One setting that varies.

    Attributes:
        key: dotted name of the config field.
        low, high: ends of the range, both included; of no meaning with choices.
        log: whether the range is even in its logarithm.
        whole: whether only whole numbers count.
        choices: the values, where they are listed; else empty.
    """

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()

    def at(self, share: float) -> Any:
        """Return the value at `share` in [0, 1) of the range or of the list."""
        if self.choices:
            return self.choices[int(share * len(self.choices))]
        low, high = (self.low, self.high + 1) if self.whole else (self.low, self.high)
        if self.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        if self.whole:
            return min(int(value), int(self.high))
        return min(max(float(f"{value:.6g}"), self.low), self.high)  # six digits are enough, and can be read

    def share(self, value: Any) -> float:
        """Return where a value lies: 0 at the low end or the first choice, 1 at the other end."""
        if self.choices:
            return self.choices.index(value) / max(1, len(self.choices) - 1)
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return float((value - self.low) / (self.high - self.low))


def read_space(table: Any, where: object) -> list[Dimension]:
    """Return the dimensions of a `[sweep.space]` table, sorted by name.

    Raises:
        BadInput: no table, an unknown setting (the nearest is named), or a range or list that makes no sense.
    """
    if not isinstance(table, dict) or not table:
        raise BadInput(
            "nothing to search", where, 'add [sweep.space] with lines like "optim.lr" = {low=1e-4, high=1.0}'
        )
    return [_dimension(key, entry, where) for key, entry in sorted(table.items())]


def _dimension(key: str, entry: Any, where: object) -> Dimension:
    known = fields()
    if key not in known:
        fix = nearest(key, list(known)) or "give a config field: see `bloodcell train --help`"
        if isinstance(entry, dict) and key in {name.split(".")[0] for name in known}:
            fix = f'write the whole name in quotes: "{key}.{next(iter(entry), "name")}" = …'
        raise BadInput(f"unknown key {key!r} in the space", where, fix)
    if key in FIXED or known[key].metadata["runtime"]:
        raise BadInput(f"{key} cannot be searched", where, FIXED.get(key, "it does not change what is learned"))
    if not isinstance(entry, dict):
        raise BadInput(f"the space of {key} is no table", where, "write {low=…, high=…} or {choices=[…]}")
    for name in entry:
        if name not in KEYS:
            raise BadInput(
                f"unknown key {name!r} of {key}", where, nearest(name, list(KEYS)) or f"known: {', '.join(KEYS)}"
            )
    if "choices" in entry:
        return _choices(key, entry, where)
    return _range(key, entry, where)


def _choices(key: str, entry: dict[str, Any], where: object) -> Dimension:
    if len(entry) > 1:
        raise BadInput(f"{key} has choices and a range", where, "keep one of them")
    if not isinstance(entry["choices"], list) or not entry["choices"]:
        raise BadInput(f"{key} has no choices", where, "list at least one value: choices=[…]")
    values = tuple(_checked(key, value, where) for value in entry["choices"])
    if len(set(values)) < len(values):
        raise BadInput(f"{key} names a choice twice", where, "list each value once")
    return Dimension(key, choices=values)


def _range(key: str, entry: dict[str, Any], where: object) -> Dimension:
    if "low" not in entry or "high" not in entry:
        raise BadInput(f"{key} needs low and high, or choices", where, "write {low=…, high=…} or {choices=[…]}")
    low, high = (_checked(key, entry[name], where) for name in ("low", "high"))
    log = entry.get("log", False)
    if isinstance(low, str) or isinstance(high, str):
        raise BadInput(f"{key} is no number", where, "list its values: choices=[…]")
    if not isinstance(log, bool):
        raise BadInput(f"log of {key} is {log!r}", where, "write log=true or log=false")
    if not low < high:
        raise BadInput(f"the range of {key} is empty: {low:g} to {high:g}", where, "low must be below high")
    if log and low <= 0:
        raise BadInput(f"the range of {key} begins at {low:g}, which has no logarithm", where, "choose a low above 0")
    return Dimension(key, low, high, log, isinstance(low, int) and isinstance(high, int))


def _checked(key: str, value: Any, where: object) -> Any:
    """Return a value as the config holds it; raises BadInput if the config does not take it."""
    section, name = key.split(".")
    return getattr(getattr(decode({section: {name: value}}, where), section), name)
