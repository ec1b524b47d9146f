"""The sections of a judgement ready for the page: calibration, patients, thresholds, selection, sets, worst groups."""

from __future__ import annotations

from typing import Any

from bloodcell.report.charts import reliability, risk_coverage

NAMES = ("calibration", "patients", "operating_points", "selective", "conformal", "worst_groups")
MOST_CLASSES = 20
"""Classes whose thresholds and fractions are shown; evaluation.json has all."""
MOST_PATIENTS = 40
MOST_FRACTIONS = 6
"""Classes whose shares are shown patient by patient."""
MOST_GROUPS = 12
SCORES = {
    "ece": "expected calibration error (ECE)",
    "adaptive_ece": "adaptive ECE",
    "classwise_ece": "classwise ECE",
    "brier": "Brier score",
    "nll": "negative log-likelihood (nats)",
}
METHODS = {"lac": "LAC", "aps": "APS", "raps": "RAPS"}


def sections_of(result: dict[str, Any], classes: list[str]) -> dict[str, Any]:
    """Return each section of a judgement ready for the page, None for one that it does not have.

    Args:
        result: of one split, as in evaluation.json.
        classes: class names in index order.
    """
    make = {
        "calibration": lambda section: _calibration(section),
        "patients": lambda section: _patients(section, classes),
        "operating_points": lambda section: _operating(section),
        "selective": lambda section: {**section, "chart": risk_coverage(section)},
        "conformal": lambda section: _conformal(section),
        "worst_groups": lambda section: _worst(section),
    }
    return {name: make[name](result[name]) if result.get(name) else None for name in NAMES}


def _calibration(section: dict[str, Any]) -> dict[str, Any]:
    before, after = section["before"], section["after"]
    return {
        **section,
        "chart": reliability(section),
        "scores": [
            {
                "name": title,
                "before": before[name],
                "after": after[name] if after is not None else None,
                "expected": before[name].get("expected_if_calibrated"),
            }
            for name, title in SCORES.items()
        ],
    }


def _patients(section: dict[str, Any], classes: list[str]) -> dict[str, Any]:
    """Return the section with the rows that a reader wants first: wrong diagnoses, then the worst fractions."""
    rows = section["rows"] or []

    def order(row: dict[str, Any]) -> tuple[bool, float, str]:
        pairs = zip(row["true_fractions"], row["predicted_fractions"], strict=True)
        return row["label"] == row["mean_probability"], -max(abs(a - b) for a, b in pairs), row["patient"]

    shown = classes[:MOST_FRACTIONS]
    fractions = list((section["fractions"] or {}).items())
    return {
        **section,
        "rows": sorted(rows, key=order)[:MOST_PATIENTS],
        "listed": len(rows),
        "classes": shown,
        "fractions": fractions[:MOST_CLASSES],
    }


def _operating(section: dict[str, Any]) -> dict[str, Any]:
    """Return the section with one row for each class, for the first goal, and all goals of the first classes."""
    shown = list(section["per_class"].items())[:MOST_CLASSES]
    rows = [
        {"name": name, "asked": goal_text(point), "threshold": _threshold(point["thresholds"]), **point}
        for name, found in shown
        for point in found["points"]
    ]
    return {
        **section,
        "rows": rows,
        "first": [row for row in rows if (row["goal"], row["at"]) == (rows[0]["goal"], rows[0]["at"])],
        "left": [(name, found["left_out"]) for name, found in shown if found["left_out"]],
        "more": max(0, len(section["per_class"]) - MOST_CLASSES),
    }


def goal_text(point: dict[str, Any]) -> str:
    """Return what a threshold was chosen for, in words."""
    if point["goal"] == "cost":
        alarms = "one false alarm" if point["at"] == 1 else f"{point['at']:g} false alarms"
        return f"a miss costs as much as {alarms}"
    return f"{point['goal']} at least {point['at']:.0%}"


def _threshold(values: list[float | None]) -> str:
    if len(values) > 1:
        return "one for each fold"
    return "none is called so" if not values or values[0] is None else f"{values[0]:.4f}"


def _conformal(section: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for found in section["sets"]:
        known = [(entry["value"], name) for name, entry in found["per_class"].items() if entry["value"] is not None]
        rows.append(
            {**found, "title": METHODS.get(found["method"], found["method"]), "worst": min(known, default=None)}
        )
    return {**section, "sets": rows}


def _worst(section: dict[str, Any]) -> dict[str, Any] | None:
    kinds = [
        {"kind": kind, "title": title, **section[kind], "shown": section[kind]["rows"][:MOST_GROUPS]}
        for kind, title in (("source", "source"), ("patient", "patient or slide"))
        if section[kind]
    ]
    return {"fewest": section["fewest_samples"], "kinds": kinds} if kinds else None
