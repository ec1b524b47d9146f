"""How numbers enter evaluation.json: rounded so that the last bits of a sum do not show, undefined ones as null."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from bloodcell.evaluation.estimates import Estimate

DIGITS = 10
"""Significant digits."""


def rounded(value: float) -> float | None:
    """Return the value to DIGITS significant digits, None where it is undefined or infinite."""
    return float(f"{value:.{DIGITS}g}") + 0.0 if math.isfinite(value) else None


def entry(estimate: Estimate) -> dict[str, float | None]:
    """Return {value, low, high} of an estimate."""
    value, interval = estimate
    return {"value": rounded(value), "low": rounded(interval.low), "high": rounded(interval.high)}


def numbers(values: np.ndarray | Iterable[float]) -> list[float | None]:
    """Return many values, each as `rounded` does."""
    return [rounded(float(value)) for value in values]
