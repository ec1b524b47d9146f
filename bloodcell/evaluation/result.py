"""The result of an evaluation: every metric with its interval, from a table of predictions to evaluation.json."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from bloodcell.evaluation import estimates, metrics
from bloodcell.evaluation.estimates import Estimate
from bloodcell.evaluation.predictions import Predictions
from bloodcell.evaluation.resample import bootstrap, cluster_index
from shards.atomic import write_json
from shards.errors import BadInput, Fault

SCHEMA = "bloodcell/evaluation/1"
DIGITS = 10
OVERALL = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "weighted_f1",
    "macro_precision",
    "macro_recall",
    "macro_auroc",
    "mcc",
    "kappa",
    "nll",
)
PER_CLASS = ("precision", "recall", "f1", "specificity", "auroc")

WORK = 2_000_000_000
"""Samples times resamples that the metrics of the confusion matrix and the loss may take, and the AUROCs a quarter."""
FEWEST = 200
"""Resamples that are taken however large the split is."""

METHODS = {
    True: "Wilson score for accuracy, precision, recall, specificity; for the others bootstrap over samples, expanded "
    "percentiles joined with Wilson score at the bootstrap's effective n",
    False: "cluster bootstrap over groups, expanded percentiles joined with Wilson score at the bootstrap's effective "
    "n",
}


def evaluate_predictions(
    predictions: Predictions, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Return the result for one split as JSON-native values, floats to 10 significant digits, undefined ones None.

    Equal predictions give equal results. For very large splits fewer resamples are drawn, but never under 200 (or what
    was asked for): `interval.resamples` and `interval.resamples_auroc` say how many.

    Args:
        predictions: of every sample of the split.
        level: of the intervals, in (0, 1).
        resamples: of the bootstrap, at least 1.
        seed: of the bootstrap.

    Raises:
        BadInput: the split is empty.
        Fault: level or resamples make no sense.
    """
    p = predictions
    if not len(p.ids):
        raise BadInput("the split has no samples to evaluate", p.split, "choose another split")
    if not (0 < level < 1 and resamples >= 1):
        raise Fault(f"no intervals with level {level} and {resamples} resamples", p.split)
    classes, cluster, predicted = len(p.classes), cluster_index(p.groups), p.predicted()
    probabilities, losses = p.probabilities(), p.losses()
    many, fewer = (min(resamples, max(FEWEST, work // len(p.ids))) for work in (WORK, WORK // 4))
    statistics = [
        estimates.decision_statistic(p.labels, predicted, cluster, classes, many),
        estimates.ranking_statistic(p.labels, probabilities, cluster, fewer),
        estimates.loss_statistic(losses, cluster, many),
    ]
    draws = bootstrap(statistics, cluster, seed)
    found = [
        estimates.decisions(p.labels, predicted, cluster, classes, draws, level),
        estimates.ranking(p.labels, probabilities, cluster, draws, level),
        estimates.loss(losses, cluster, draws, level),
    ]
    overall = {name: estimate for part in found for name, estimate in part.overall.items()}
    per_class = {name: values for part in found for name, values in part.per_class.items()}
    support = np.bincount(p.labels, minlength=classes).tolist()
    groups = int(cluster.max()) + 1
    return {
        "run": p.run,
        "data": p.data,
        "split": p.split,
        "samples": len(p.ids),
        "groups": groups,
        "classes": list(p.classes),
        "metrics": {name: _entry(overall[name]) for name in OVERALL},
        "per_class": {
            name: {"support": support[index], **{kind: _entry(per_class[kind][index]) for kind in PER_CLASS}}
            for index, name in enumerate(p.classes)
        },
        "confusion": metrics.confusion_matrix(p.labels, predicted, classes).tolist(),
        "interval": {
            "level": level,
            "method": METHODS[groups == len(p.ids)],
            "resamples": many,
            "resamples_auroc": fewer,
            "seed": seed,
        },
    }


def write_evaluation(path: Path, split: str, result: dict[str, Any]) -> None:
    """Put the result of `split` into evaluation.json at `path`, beside those of other splits, atomically.

    Raises:
        BadInput: the file that is there is damaged, of another kind or of a newer version.
        EnvironmentFault: the disk is full or fails.
    """
    splits = {**_splits(path), split: result}
    write_json(path, {"schema": SCHEMA, "splits": dict(sorted(splits.items()))})


def _splits(path: Path) -> dict[str, Any]:
    fix = "move it away, then evaluate again"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadInput(f"the evaluation cannot be read: {error}", path, fix) from error
    if not isinstance(value, dict) or value.get("schema") != SCHEMA or not isinstance(value.get("splits"), dict):
        raise BadInput(f"not an evaluation of format {SCHEMA}", path, fix)
    return dict(value["splits"])


def table(result: dict[str, Any]) -> list[str]:
    """Return a result as aligned lines of text: the metrics with their intervals, then a row for each class."""
    level = result["interval"]["level"]
    lines = [
        f"{result['split']}: {result['samples']:,} samples in {result['groups']:,} groups, {level:.0%} intervals",
        "",
    ]
    lines += _aligned([[name, *_cells(entry)] for name, entry in result["metrics"].items()])
    rows = [["class", "support", *(cell for kind in PER_CLASS for cell in (kind, ""))]]
    for name, entry in result["per_class"].items():
        rows.append([name, f"{entry['support']:,}", *(cell for kind in PER_CLASS for cell in _cells(entry[kind]))])
    return [*lines, "", *_aligned(rows)]


def _cells(entry: dict[str, Any]) -> list[str]:
    value = "undefined" if entry["value"] is None else f"{entry['value']:.4f}"
    known = entry["low"] is not None and entry["high"] is not None
    return [value, f"[{entry['low']:.4f}, {entry['high']:.4f}]" if known else ""]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _entry(estimate: Estimate) -> dict[str, float | None]:
    value, interval = estimate
    return {"value": _rounded(value), "low": _rounded(interval.low), "high": _rounded(interval.high)}


def _rounded(value: float) -> float | None:
    """Round to DIGITS significant digits, so that the last bits of a sum do not show; None where undefined."""
    return float(f"{value:.{DIGITS}g}") + 0.0 if math.isfinite(value) else None
