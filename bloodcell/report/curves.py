"""Training curves of a run as charts: metrics.jsonl in, SVG with a legend out."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from shards.document import count, decimal, percent
from shards.plots import Line, line_chart, power, smooth


@dataclass(frozen=True)
class Curve:
    """One chart: its title, a legend of (style, name, last value), and the drawing."""

    title: str
    legend: list[tuple[str, str, str]]
    svg: Markup


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl in their order; [] without the file.

    A line that is not whole (the last one of a run that was killed) is passed over.
    """
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def curves(records: list[dict[str, Any]]) -> list[Curve]:
    """Return the charts for which there are numbers: loss, validation, learning rate, size, images per second."""
    axis = "epoch" if any("epoch" in record for record in records) else "step"
    charts = (_loss, _validation, _rate, _size, _speed)
    return [curve for chart in charts if (curve := chart(records, axis)) is not None]


def _series(records: list[dict[str, Any]], name: str, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the finite values of one metric with their place on the axis, float64 [n] each."""
    points = [(record[axis], record[name]) for record in records if _number(record, name) and _number(record, axis)]
    return np.array([x for x, _ in points], dtype=np.float64), np.array([y for _, y in points], dtype=np.float64)


def _number(record: dict[str, Any], name: str) -> bool:
    value = record.get(name)
    return isinstance(value, int | float) and math.isfinite(value)


def _loss(records: list[dict[str, Any]], axis: str) -> Curve | None:
    x, y = _series(records, "train/loss", axis)
    lines, legend, tops = [], [], []
    if len(x):
        mean = smooth(y, max(1, len(y) // 25))
        if len(x) >= 25:
            lines.append(Line("training", "raw", x, y))
            legend.append(("raw", "training", ""))
        lines.append(Line("smoothed", "soft", x, mean))
        legend.append(("soft", "smoothed" if len(x) >= 25 else "training", decimal(mean[-1])))
        tops += [float(mean.max()), float(np.quantile(y, 0.98))]
    val_x, val_y = _series(records, "val/loss", axis)
    if len(val_x):
        lines.append(Line("validation", "main", val_x, val_y))
        legend.append(("main", "validation", decimal(val_y[-1])))
        tops.append(float(np.quantile(val_y, 0.98)))
    if not lines:
        return None
    top = max(tops) * 1.06
    return Curve("Loss", legend, line_chart(lines, "Loss", axis, (0.0, top if top > 0 else 1.0)))


def _validation(records: list[dict[str, Any]], axis: str) -> Curve | None:
    lines, legend = [], []
    for name, style, title in (("val/macro_f1", "second", "macro F1"), ("val/accuracy", "main", "accuracy")):
        x, y = _series(records, name, axis)
        if len(x):
            lines.append(Line(title, style, x, y))
            legend.append((style, title, percent(float(y[-1]))))
    if not lines:
        return None
    low = min(float(line.y.min()) for line in lines)
    floor = max(0.0, math.floor((low - 0.02) * 10) / 10) if low < 0.95 else 0.9
    svg = line_chart(lines, "Accuracy and macro F1 on the validation split", axis, (floor, 1.0), as_percent=True)
    return Curve("On the validation split", legend[::-1], svg)


def _rate(records: list[dict[str, Any]], axis: str) -> Curve | None:
    x, y = _series(records, "train/lr", axis)
    if len(x) < 2 or y.max() <= 0:
        return None
    exponent = math.floor(math.log10(float(y.max())))
    y = y / 10.0**exponent
    top = float(y.max())
    svg = line_chart([Line("learning rate", "main", x, y)], "Learning rate", axis, (0.0, top * 1.06))
    return Curve(f"Learning rate, in {power(exponent)}", [("main", "highest", f"{top:.3g}·{power(exponent)}")], svg)


def _size(records: list[dict[str, Any]], axis: str) -> Curve | None:
    """Return the course of the images' side; None where it never changes."""
    x, y = _series(records, "train/size", axis)
    if len(x) < 2 or y.min() == y.max():
        return None
    svg = line_chart([Line("side", "main", x, y)], "Side of the training images", axis, (0.0, float(y.max()) * 1.06))
    return Curve("Side of the training images, pixels", [("main", "last", count(float(y[-1])))], svg)


def _speed(records: list[dict[str, Any]], axis: str) -> Curve | None:
    x, y = _series(records, "train/images_per_s", axis)
    if len(x) < 2 or y.max() <= 0:
        return None
    svg = line_chart([Line("images per second", "main", x, y)], "Images per second", axis, (0.0, float(y.max()) * 1.06))
    return Curve("Training images per second", [("main", "median", count(float(np.median(y))))], svg)
