"""A judgement in a few lines for the terminal: calibration, patients, selection, conformal sets, the worst groups."""

from __future__ import annotations

from typing import Any

RULES = ("mean_probability", "vote")
"""How a patient's diagnosis follows from the cells."""


def summary(result: dict[str, Any]) -> list[str]:
    """Return a line for each section of judge.judge; none for a result of evaluate_predictions alone."""
    if "calibration" not in result:
        return []
    return [
        f"calibration: {_calibration(result['calibration'])}",
        f"patients: {_patients(result['patients'])}",
        f"most confident samples: {_selective(result['selective'])}",
        f"conformal sets: {_conformal(result['conformal'])}",
        *(
            f"worst {kind}: {_worst(result['worst_groups'][kind], result['worst_groups']['fewest_samples'])}"
            for kind in ("patient", "source")
            if result["worst_groups"][kind]
        ),
    ]


def number(entry: dict[str, Any]) -> str:
    """Return an entry {value, low, high} as '0.9123 [0.8911, 0.9302]'."""
    if entry["value"] is None:
        return "undefined"
    known = entry["low"] is not None and entry["high"] is not None
    return f"{entry['value']:.4f}" + (f" [{entry['low']:.4f}, {entry['high']:.4f}]" if known else "")


def _calibration(section: dict[str, Any]) -> str:
    before = section["before"]["ece"]
    chance = before["expected_if_calibrated"]
    text = f"ECE {number(before)}" + (f", {chance:.4f} if it were calibrated" if chance is not None else "")
    if section["after"] is None:
        return f"{text}; no temperature: {section['temperature']['left_out']}"
    values = ", ".join(f"{value:.3f}" for value in section["temperature"]["values"])
    return f"{text}; after temperature {values}: {number(section['after']['ece'])}"


def _patients(section: dict[str, Any]) -> str:
    if section["left_out"]:
        return str(section["left_out"])
    diagnosis = section["diagnosis"]
    if diagnosis["left_out"]:
        return f"{section['patients']:,}; no diagnosis: {diagnosis['left_out']}"
    rules = [f"{name.replace('_', ' ')} {number(diagnosis[name]['metrics']['accuracy'])}" for name in RULES]
    left = f" ({diagnosis['mixed']:,} with several labels left out)" if diagnosis["mixed"] else ""
    return f"{diagnosis['patients']:,}{left}, accuracy by {', by '.join(rules)}"


def _selective(section: dict[str, Any]) -> str:
    return "accuracy " + ", ".join(f"{number(at['accuracy'])} of {at['coverage']:.0%}" for at in section["at_coverage"])


def _conformal(section: dict[str, Any]) -> str:
    if section["left_out"]:
        return f"none: {section['left_out']}"
    return "; ".join(
        f"{s['method'].upper()} {s['level']:.0%} holds {number(s['coverage'])}, {s['mean_size']['value']:.2f} classes"
        for s in section["sets"]
    )


def _worst(section: dict[str, Any], fewest: int) -> str:
    worst = section["worst"]
    if worst is None:
        return f"none of {section['groups']:,} has {fewest} samples"
    return f"{worst['name']}, accuracy {number(worst['accuracy'])} of {worst['samples']:,} samples"
