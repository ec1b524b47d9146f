"""Charts of a judgement: the reliability diagram, and the risk among the samples that are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from bloodcell.report.curves import Curve
from shards.document import decimal, percent
from shards.plots import Line, line_chart


def reliability(section: dict[str, Any]) -> Curve:
    """Return the reliability diagram of the section `calibration`: accuracy against confidence, bin by bin.

    The bars are the intervals before temperature scaling.
    """
    lines = [Line("perfect", "raw", np.array([0.0, 1.0]), np.array([0.0, 1.0]))]
    legend = [("raw", "perfectly calibrated", "")]
    if section["after"] is not None:
        lines.append(_bins("after", "second", section["after"], spread=False))
        legend.append(("second", "after scaling", _error(section["after"])))
    lines.append(_bins("before", "main", section["before"], spread=True))
    legend.append(("main", "before scaling", _error(section["before"])))
    svg = line_chart(lines, "Reliability diagram", "confidence (mean of each bin)", (0.0, 1.0), as_percent=True)
    return Curve("Accuracy against confidence", legend[::-1], svg)


def _bins(name: str, style: str, side: dict[str, Any], spread: bool) -> Line:
    rows = [row for row in side["reliability"] if row["samples"]]
    x = np.array([row["confidence"] for row in rows], dtype=np.float64)
    y, low, high = (
        np.array([np.nan if (v := row["accuracy"][key]) is None else v for row in rows], dtype=np.float64)
        for key in ("value", "low", "high")
    )
    return Line(name, style, x, y, low, high) if spread else Line(name, style, x, y)


def _error(side: dict[str, Any]) -> str:
    return f"ECE {decimal(side['ece']['value'])}"


def risk_coverage(section: dict[str, Any]) -> Curve:
    """Return the risk-coverage curve of the section `selective`: errors among the most confident samples."""
    x = np.array(section["curve"]["coverage"], dtype=np.float64)
    y = np.array([np.nan if risk is None else risk for risk in section["curve"]["risk"]], dtype=np.float64)
    whole = float(section["error_rate"] or 0.0)
    top = max(float(np.nanmax(y)), whole) * 1.06 or 0.01
    lines = [
        Line("all", "raw", x[[0, -1]], np.array([whole, whole])),
        Line("risk", "main", x, y),
    ]
    legend = [
        ("main", "errors among those kept", f"AURC {decimal(section['aurc']['value'])}"),
        ("raw", "errors among all", percent(whole)),
    ]
    svg: Markup = line_chart(lines, "Risk-coverage curve", "share of the images that is kept", (0.0, top), True)
    return Curve("Errors when the least confident are left to a person", legend, svg)
