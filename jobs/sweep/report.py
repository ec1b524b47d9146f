"""The page of a sweep: its winner, the curves of all trials, parallel coordinates, what mattered, the list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import PackageLoader
from markupsafe import Markup, escape

from jobs.sweep.importance import importance
from jobs.sweep.runner import curve
from jobs.sweep.schedulers import rungs, winner
from jobs.sweep.settings import Settings
from jobs.sweep.space import Dimension
from jobs.sweep.trials import Trial, ranked
from shards.document import environment, plain, shorten, write_page
from shards.plots import Line, line_chart

WIDTH, HEIGHT, TOP, BOTTOM, SIDE = 920, 330, 34, 34, 70
MOST = 200
"""Trials drawn and listed, the best first; the journal holds all."""


def write_report(path: Path, settings: Settings, trials: Sequence[Trial], place: Callable[[int], Path]) -> Path:
    """Write the page of a sweep; return its path.

    Args:
        path: of the page.
        settings: of the sweep.
        trials: all of them.
        place: the run folder of a trial by its number.

    Raises:
        EnvironmentFault: the disk is full or fails.
    """
    order = ranked(list(trials))[:MOST]
    best = winner(list(trials))
    mattered = importance(settings, trials)
    content = {
        "settings": settings,
        "trials": trials,
        "best": best,
        "value": _value(settings, best) if best else None,
        "finished": sum(trial.finished for trial in trials),
        "failed": [trial for trial in trials if trial.failed],
        "keys": [d.key for d in settings.space],
        "rows": [_row(settings, trial) for trial in order],
        "rungs": rungs(settings) if settings.method in ("asha", "hyperband") else [],
        "curves": _curves(settings, order, place),
        "parallel": parallel(settings, order),
        "importance": sorted(mattered.items(), key=lambda item: -item[1]) if mattered else [],
        "space": [(d.key, _said(d)) for d in settings.space],
    }
    return write_page(path, environment(PackageLoader("jobs.sweep", "templates")), "sweep.html", content)


def _value(settings: Settings, trial: Trial) -> float:
    return -trial.score if settings.smaller_is_better else trial.score


def _row(settings: Settings, trial: Trial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "value": _value(settings, trial),
        "epochs": max(trial.reached),
        "state": "finished" if trial.finished else "paused",
        "values": [plain(trial.values[d.key]) for d in settings.space],
    }


def _said(dimension: Dimension) -> str:
    if dimension.choices:
        return "one of " + ", ".join(map(plain, dimension.choices))
    how = ", even in the logarithm" if dimension.log else ""
    return f"{plain(dimension.low)} to {plain(dimension.high)}{how}"


def _curves(settings: Settings, order: Sequence[Trial], place: Callable[[int], Path]) -> Markup:
    """Return the objective of every trial over its epochs, the best one on top."""
    lines = []
    for trial in order[::-1]:
        points = curve(place(trial.number), settings.objective)
        if points:
            x, y = np.array(points).T
            lines.append(Line(f"trial {trial.number}", "main" if trial is order[0] else "raw", x, y))
    if not lines:
        return Markup("")
    values = np.concatenate([line.y for line in lines])
    if settings.smaller_is_better:
        low, high = 0.0, float(np.quantile(values, 0.98)) * 1.06
    else:
        low, high = max(0.0, float(np.quantile(values, 0.02)) - 0.02), 1.0
    title = f"{settings.objective} of every trial"
    return line_chart(lines, title, "epoch", (low, high if high > low else low + 1), not settings.smaller_is_better)


def parallel(settings: Settings, order: Sequence[Trial]) -> Markup:
    """Return parallel coordinates as SVG: an axis for each setting and the objective, a line for each trial.

    Args:
        settings: of the sweep.
        order: trials with a score, the best first: it is drawn on top and in colour.
    """
    if not order:
        return Markup("")
    values = np.array([_value(settings, trial) for trial in order])
    low, high = float(values.min()), float(values.max())
    axes = len(settings.space)
    across = [SIDE + (WIDTH - 2 * SIDE) * i / axes for i in range(axes + 1)]
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Parallel coordinates">']
    names = [*(d.key for d in settings.space), settings.objective]
    marks = [*map(_marks, settings.space), [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")]]
    for x, name in zip(across, names, strict=True):
        parts.append(f'<path class="axis" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{TOP - 16}" text-anchor="middle">{escape(name)}</text>')
    for trial in order[::-1]:
        shares = [d.share(trial.values[d.key]) for d in settings.space]
        shares.append((_value(settings, trial) - low) / (high - low) if high > low else 1.0)
        points = " ".join(f"{x:.1f},{HEIGHT - BOTTOM - s * _tall():.1f}" for x, s in zip(across, shares, strict=True))
        parts.append(f'<polyline class="line {"main" if trial is order[0] else "raw"}" points="{points}"/>')
    for x, axis in zip(across, marks, strict=True):
        for share, text in axis:
            y = HEIGHT - BOTTOM - share * _tall() + 4
            parts.append(f'<text class="tick" x="{x + 7:.1f}" y="{y:.1f}">{escape(shorten(text, 24))}</text>')
    return Markup("".join(parts) + "</svg>")


def _tall() -> float:
    return HEIGHT - TOP - BOTTOM


def _marks(dimension: Dimension) -> list[tuple[float, str]]:
    """Return what is written at an axis: (place from 0 to 1, text)."""
    if dimension.choices:
        return [(dimension.share(choice), plain(choice)) for choice in dimension.choices]
    return [(0.0, plain(dimension.low)), (1.0, plain(dimension.high))]
