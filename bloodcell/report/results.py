"""One split of evaluation.json made ready for the page: names, texts, interval bars, confusion matrix."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from bloodcell.report.sections import sections_of
from shards.document import decimal, interval, percent
from shards.plots import whisker

MOST_CLASSES = 30
"""Classes up to which the confusion matrix is shown whole; with more, the most common confusions are listed."""

MOST_CONFUSIONS = 20

SPOKEN = {"val": "validation", "train": "training"}
"""Names of splits for people."""

METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy (mean sensitivity)",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "macro_precision": "macro precision",
    "weighted_precision": "weighted precision",
    "macro_recall": "macro sensitivity (recall)",
    "weighted_recall": "weighted sensitivity (recall)",
    "macro_specificity": "macro specificity",
    "weighted_specificity": "weighted specificity",
    "macro_auroc": "macro AUROC",
    "macro_average_precision": "macro average precision",
    "mcc": "Matthews' correlation",
    "kappa": "Cohen's kappa",
    "nll": "negative log-likelihood (nats)",
}
"""Names for people, in the order of the table; metrics that are not here follow under their own name."""

SHARES = ("accuracy", "f1", "precision", "recall", "specificity")
"""Last words of metrics that are shown in percent; average precision, an area, is not one of them."""

CLASS_METRICS = {
    "recall": ("sensitivity", "recall"),
    "precision": ("precision", "PPV"),
    "f1": ("F1", ""),
    "specificity": ("specificity", ""),
    "auroc": ("AUROC", "against the rest"),
    "average_precision": ("average precision", "against the rest"),
}


def result_of(split: str, result: dict[str, Any], groups: dict[str, int] | None = None) -> dict[str, Any]:
    """Return one split of evaluation.json ready for the page: named and ordered metrics, classes, confusion matrix.

    Args:
        split: its name.
        result: what evaluation.json says of it.
        groups: class -> its independent groups in the split, where they are known.
    """
    metrics = result.get("metrics") or {}
    names = [name for name in METRICS if name in metrics] + sorted(name for name in metrics if name not in METRICS)
    values = [{"name": METRICS.get(name, name.replace("_", " ")), **value_of(name, metrics[name])} for name in names]
    shares = [value for value in values if value["share"] and value["value"] is not None]
    scale = _scale(shares)
    for value in shares:
        value["whisker"] = whisker(value["value"], value["low"], value["high"], scale)
    confusion = result.get("confusion") or []
    classes = [str(name) for name in result.get("classes") or []]
    wrong = sum(sum(row) for row in confusion) - sum(row[i] for i, row in enumerate(confusion))
    return {
        "split": split,
        "name": SPOKEN.get(split, split),
        "samples": int(result.get("samples") or 0),
        "groups": result.get("groups"),
        "metrics": values,
        **{name: _named(values, names, name) for name in ("accuracy", "macro_f1")},
        "scale": scale,
        "per_class": _per_class(result.get("per_class") or {}, classes, groups or {}),
        "has_class_groups": bool(groups),
        "classes": classes,
        "matrix": _matrix(confusion) if len(classes) <= MOST_CLASSES else [],
        "confusions": confusions(confusion, classes),
        "wrong": wrong,
        "interval": result.get("interval") or {},
        **sections_of(result, classes),
    }


def _named(values: list[dict[str, Any]], names: list[str], name: str) -> dict[str, Any] | None:
    """Return one metric, None if it is missing or undefined."""
    return next(
        (value for value, n in zip(values, names, strict=True) if n == name and value["value"] is not None), None
    )


def value_of(name: str, entry: dict[str, Any] | None) -> dict[str, Any]:
    """Return a metric with its interval as numbers and as text; a share is written in percent."""
    entry = entry or {}
    value, low, high = (_finite(entry.get(key)) for key in ("value", "low", "high"))
    share = is_share(name)
    return {
        "value": value,
        "low": low,
        "high": high,
        "share": share,
        "text": percent(value) if share else decimal(value),
        "interval": interval(low, high, share),
        "whisker": Markup(""),
    }


def is_share(name: str) -> bool:
    """Whether a metric is shown in percent."""
    return name.endswith(SHARES) and not name.endswith("average_precision")


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _scale(values: list[dict[str, Any]]) -> tuple[float, float]:
    """Return an axis from a round number below all values and intervals to 1."""
    low = min((value["value"] if value["low"] is None else value["low"] for value in values), default=0.0)
    return (0.9, 1.0) if low >= 0.9 else (max(0.0, math.floor(low * 10) / 10), 1.0)


def _per_class(per_class: dict[str, Any], classes: list[str], groups: dict[str, int]) -> dict[str, Any]:
    names = [name for name in CLASS_METRICS if any(name in (entry or {}) for entry in per_class.values())]
    rows = []
    for label in [name for name in classes if name in per_class]:
        entry = per_class[label]
        values = [value_of(name, entry.get(name)) for name in names]
        support = entry.get("support", 0)
        rows.append({"name": label, "support": support, "groups": groups.get(label), "values": values})
    scale = (0.0, 1.0)
    if "recall" in names:
        place = names.index("recall")
        recalls = [row["values"][place] for row in rows]
        scale = _scale([value for value in recalls if value["value"] is not None])
        for value in recalls:
            value["whisker"] = whisker(value["value"], value["low"], value["high"], scale)
    return {"columns": [CLASS_METRICS[name] for name in names], "rows": rows, "scale": scale}


def _matrix(confusion: list[list[int]]) -> list[list[dict[str, Any]]]:
    """Return the confusion matrix as cells: count, share of its row, and how dark the cell is."""
    rows = []
    for true, row in enumerate(confusion):
        total = max(1, sum(row))
        cells = []
        for predicted, number in enumerate(row):
            share = number / total
            # Few errors in a large class must still be seen: errors are shaded by the root of their share.
            shade = 0.42 * share if predicted == true else 0.5 * math.sqrt(share)
            cells.append({"count": number, "share": share, "hit": predicted == true, "shade": f"{shade:.3f}"})
        rows.append(cells)
    return rows


def confusions(confusion: list[list[int]], classes: list[str]) -> list[dict[str, Any]]:
    """Return the most common errors: {"true", "predicted", "count", "of": samples of the true class}."""
    found: list[dict[str, Any]] = [
        {"true": classes[i], "predicted": classes[j], "count": number, "of": sum(row)}
        for i, row in enumerate(confusion)
        for j, number in enumerate(row)
        if i != j and number
    ]
    return sorted(found, key=lambda item: -item["count"])[:MOST_CONFUSIONS]
