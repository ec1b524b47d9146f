"""The result of an evaluation: every metric with its interval, from a table of predictions to evaluation.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bloodcell.evaluation import estimates, metrics
from bloodcell.evaluation.entries import entry
from bloodcell.evaluation.judged import Judged
from bloodcell.evaluation.predictions import Predictions
from bloodcell.evaluation.resample import bootstrap
from bloodcell.evaluation.summary import summary
from shards.atomic import write_json
from shards.errors import BadInput, Fault

SCHEMA = "bloodcell/evaluation/1"
OVERALL = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "weighted_f1",
    "macro_precision",
    "weighted_precision",
    "macro_recall",
    "weighted_recall",
    "macro_specificity",
    "weighted_specificity",
    "macro_auroc",
    "macro_average_precision",
    "mcc",
    "kappa",
    "nll",
)
PER_CLASS = ("precision", "recall", "f1", "specificity", "auroc", "average_precision")

METHODS = {
    True: "Wilson score for accuracy, precision, recall, specificity; for the others bootstrap over samples, expanded "
    "percentiles joined with Wilson score at the bootstrap's effective n",
    False: "cluster bootstrap over groups, expanded percentiles joined with Wilson score at the bootstrap's effective "
    "n",
}


def evaluate_predictions(
    predictions: Predictions, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Return the metrics of one split as JSON-native values, floats to 10 significant digits, undefined ones None.

    Equal predictions give equal results. `judge.judge` says more.

    Args:
        predictions: of every sample of the split.
        level: of the intervals, in (0, 1).
        resamples: of the bootstrap, at least 1.
        seed: of the bootstrap.

    Raises:
        BadInput: the split is empty.
        Fault: level or resamples make no sense.
    """
    basics = Basics(Judged.of(predictions, resamples))
    return basics.result(bootstrap(basics.statistics, basics.judged.blocks, seed), level, seed)


class Basics:
    """The metrics of the confusion matrix, the rankings and the loss.

    Args:
        judged: what is judged.
    """

    def __init__(self, judged: Judged) -> None:
        j = self.judged = judged
        classes = len(j.classes)
        self.statistics = [
            estimates.decision_statistic(j.labels, j.predicted, j.blocks, classes, j.resamples),
            estimates.ranking_statistic(j.labels, j.probabilities, j.blocks, j.resamples),
            estimates.loss_statistic(j.losses, j.blocks, j.resamples),
        ]

    def result(self, draws: dict[str, np.ndarray], level: float, seed: int) -> dict[str, Any]:
        """Return what `evaluate_predictions` does; raises Fault if the level makes no sense.

        Args:
            draws: what resample.bootstrap made of `statistics`.
            level: of the intervals, in (0, 1).
            seed: of the draws, for the reader.
        """
        j, p = self.judged, self.judged.predictions
        if not 0 < level < 1:
            raise Fault(f"no intervals with level {level}", p.split)
        classes = len(j.classes)
        found = [
            estimates.decisions(j.labels, j.predicted, j.cluster, classes, draws, level),
            estimates.ranking(j.labels, j.probabilities, j.cluster, draws, level),
            estimates.loss(j.losses, j.cluster, draws, level),
        ]
        overall = {name: estimate for part in found for name, estimate in part.overall.items()}
        per_class = {name: values for part in found for name, values in part.per_class.items()}
        support = np.bincount(j.labels, minlength=classes).tolist()
        return {
            "run": p.run,
            "data": p.data,
            "split": p.split,
            "samples": len(p.ids),
            "groups": j.groups,
            "classes": list(j.classes),
            "metrics": {name: entry(overall[name]) for name in OVERALL},
            "per_class": {
                name: {"support": support[index], **{kind: entry(per_class[kind][index]) for kind in PER_CLASS}}
                for index, name in enumerate(j.classes)
            },
            "confusion": metrics.confusion_matrix(j.labels, j.predicted, classes).tolist(),
            "interval": {
                "level": level,
                "method": METHODS[j.groups == len(p.ids)],
                "resamples": j.resamples,
                "resamples_auroc": j.resamples,
                "seed": seed,
                "blocks": None if j.blocks is j.cluster else int(j.blocks.max()) + 1,
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
    """Return a result as aligned lines of text: metrics with intervals, a row a class, a line for each section."""
    level = result["interval"]["level"]
    lines = [
        f"{result['split']}: {result['samples']:,} samples in {result['groups']:,} groups, {level:.0%} intervals",
        "",
    ]
    lines += _aligned([[name, *_cells(found)] for name, found in result["metrics"].items()])
    rows = [["class", "support", *(cell for kind in PER_CLASS for cell in (kind, ""))]]
    for name, found in result["per_class"].items():
        rows.append([name, f"{found['support']:,}", *(cell for kind in PER_CLASS for cell in _cells(found[kind]))])
    sections = summary(result)
    return [*lines, "", *_aligned(rows), *([""] if sections else []), *sections]


def _cells(found: dict[str, Any]) -> list[str]:
    value = "undefined" if found["value"] is None else f"{found['value']:.4f}"
    known = found["low"] is not None and found["high"] is not None
    return [value, f"[{found['low']:.4f}, {found['high']:.4f}]" if known else ""]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
