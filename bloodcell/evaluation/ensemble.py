"""Several models as one: the mean of their probabilities, and what it gains over each of them alone.

Averaging probabilities of networks that differ in their seed is the deep ensemble of Lakshminarayanan, Pritzel and
Blundell (NeurIPS 2017). The table holds the logarithm of the mean as logits, whose softmax is the mean again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bloodcell.evaluation.align import align
from bloodcell.evaluation.paired import OVERALL, SMALLER_IS_BETTER, Measured, differences, measure
from bloodcell.evaluation.predictions import Predictions

COMPARED = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "nll")
"""Metrics whose gain is told."""


def average(tables: Sequence[Predictions], names: Sequence[str], run: str) -> Predictions:
    """Return the predictions of the ensemble: log of the mean probability as logits, float32 [samples, classes].

    One member keeps its own logits.

    Args:
        tables: of the members, at least one.
        names: of the members, for messages.
        run: name of the ensemble.

    Raises:
        BadInput: the members do not predict the same samples; says how many differ.
    """
    aligned = align(tables, names)
    if len(aligned) == 1:
        return replace(aligned[0], run=run)
    return replace(aligned[0], run=run, logits=mean_logits([table.logits for table in aligned]))


def mean_logits(logits: Sequence[np.ndarray]) -> np.ndarray:
    """Return the log of the mean softmax of several logits, float32 [samples, classes]; never infinite.

    Args:
        logits: floats [samples, classes], each finite.
    """
    total: np.ndarray | None = None
    for values in logits:
        shifted = values.astype(np.float64)
        shifted -= shifted.max(axis=1, keepdims=True)
        shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        total = shifted if total is None else np.logaddexp(total, shifted)
    assert total is not None
    return np.maximum(total - np.log(len(logits)), np.finfo(np.float32).min).astype(np.float32)


def gain(together: Predictions, members: Sequence[Predictions], names: Sequence[str]) -> dict[str, Any]:
    """Return what `together` gains over the best member and over the mean of the members, metric by metric.

    The best member is chosen for each metric on these very samples, which flatters the member and not the gain. An
    entry is {value, low, high}; for the loss (nll) a negative value is a gain. `members` holds each one's metrics.

    Args:
        together: predictions of the combination.
        members: aligned with it.
        names: of the members.
    """
    combined, alone = measure(together), [measure(member) for member in members]
    against_mean = differences(combined, alone, ())["overall"]
    found = {}
    for name in COMPARED:
        best = _best(alone, name)
        entry = differences(combined, [alone[best]], ())["overall"][name]
        found[name] = {"best": names[best], "over_best": entry, "over_mean": against_mean[name]}
    singles = {
        name: {metric: _plain(measured.values[metric]) for metric in OVERALL}
        for name, measured in zip(names, alone, strict=True)
    }
    return {"gain": found, "members": singles}


def gain_lines(found: dict[str, Any]) -> list[str]:
    """Return the gain as lines of text."""
    lines = []
    for name, entry in found["gain"].items():
        lines.append(
            f"{name}: {said(entry['over_best'])} over the best member ({entry['best']}), "
            f"{said(entry['over_mean'])} over their mean"
        )
    return lines


def said(entry: dict[str, float | None]) -> str:
    """Return a difference with its interval as text."""
    if entry["value"] is None:
        return "undefined"
    bounds = "" if entry["low"] is None else f" [{entry['low']:+.4f}, {entry['high']:+.4f}]"
    return f"{entry['value']:+.4f}{bounds}"


def _best(measured: Sequence[Measured], name: str) -> int:
    sign = -1.0 if name in SMALLER_IS_BETTER else 1.0
    values = [sign * float(one.values[name]) for one in measured]
    return int(np.argmax(np.nan_to_num(values, nan=-np.inf)))


def _plain(value: Any) -> float | None:
    return None if np.isnan(value) else float(f"{float(value):.10g}")
