"""What came out, beside what was published: collected from the run folders, written as Markdown, JSON and HTML."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import PackageLoader

from jobs.reproduce.rows import Row
from jobs.reproduce.runs import Task, read
from shards.atomic import open_atomic, write_json
from shards.document import duration, environment, write_page

SCHEMA = "bloodcell/reproduction/1"
METRICS = ("accuracy", "macro_recall")
CPU_WATTS, GPU_WATTS = 10.0, 350.0
"""Assumed power: of each core that computes, with its share of the machine; of a GPU with its host."""


def collect(row: Row, tasks: Sequence[Task], all_tasks: Sequence[Task], watts: float | None) -> dict[str, Any]:
    """Return a row of the table as JSON values.

    Args:
        row: which.
        tasks: its own, one for each seed.
        all_tasks: those of every row: an average costs what its members cost.
        watts: power while training; None for the assumption above.
    """
    done = [task for task in tasks if task.done]
    found = {
        "row": row.name,
        "recipe": row.recipe or "mean of " + ", ".join(row.members),
        "classes": row.classes,
        "published": row.published,
        "seeds": [task.seed for task in done],
        "failed": next((task.failed for task in tasks if task.failed), ""),
        "test": {name: _over_seeds([_split(task, "test").get(name) for task in done]) for name in METRICS},
        "validation": {name: _over_seeds([_split(task, "val").get(name) for task in done]) for name in METRICS},
        "note": row.note,
    }
    behind = [other for task in done for other in all_tasks if other is task or other.folder in task.members]
    costs = [_costs(task, watts) for task in behind if not task.members]
    seeds = max(1, len(done))
    return {
        **found,
        "parameters": sum(cost["parameters"] for cost in costs) // seeds or None,
        "images_per_s": _rate(costs, seeds),
        "wall_seconds": round(sum(cost["seconds"] for cost in costs), 1) or None,
        "kwh": float(f"{sum(cost['kwh'] for cost in costs):.3g}") or None,
        "weights": _weights(behind),
        "device": next((cost["device"] for cost in costs), ""),
    }


def _split(task: Task, name: str) -> dict[str, Any]:
    """Return the metrics of a split; the validation parts of folds are not pooled and stay out."""
    return dict(read(task.result / "evaluation.json").get("splits", {}).get(name, {}).get("metrics", {}))


def _over_seeds(entries: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return {mean, sd, low, high} of a metric: the interval of one seed, the span of the intervals of several."""
    known = [entry for entry in entries if entry and entry["value"] is not None]
    if not known:
        return None
    values = [entry["value"] for entry in known]
    lows = [entry["low"] for entry in known if entry["low"] is not None]
    highs = [entry["high"] for entry in known if entry["high"] is not None]
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "low": min(lows, default=None),
        "high": max(highs, default=None),
    }


def _costs(task: Task, watts: float | None) -> dict[str, Any]:
    """Return what the runs of a training took, folds together."""
    from bloodcell.report.curves import read_metrics

    rates, seconds, joules, parameters, device = [], 0.0, 0.0, 0, ""
    for run in task.runs:
        status, known = read(run / "status.json"), read(run / "environment.json")
        threads, device = known.get("threads", {}).get("torch", 1), known.get("device", "cpu")
        ranks = known.get("world", 1)
        power = watts or ranks * (CPU_WATTS * threads if device == "cpu" else GPU_WATTS)
        seconds += status.get("wall_seconds", 0.0)
        joules += power * status.get("wall_seconds", 0.0)
        parameters = status.get("parameters", 0)
        rates += [r["train/images_per_s"] for r in read_metrics(run / "metrics.jsonl") if r.get("train/images_per_s")]
    rate = statistics.median(rates) if rates else None
    return {"seconds": seconds, "kwh": joules / 3.6e6, "parameters": parameters, "rate": rate, "device": device}


def _rate(costs: Sequence[dict[str, Any]], seeds: int) -> float | None:
    """Return training images per second; through all members of an average one after another."""
    rates = [cost["rate"] for cost in costs if cost["rate"]]
    return round(seeds / sum(1 / rate for rate in rates), 1) if rates and len(rates) == len(costs) else None


def _weights(tasks: Sequence[Task]) -> str:
    """Return where the weights started: a file's name, or that they were random, and whether the recipe says so."""
    said = []
    for task in tasks:
        if not task.members:
            file = (read(task.runs[0] / "environment.json").get("weights") or {}).get("file")
            given = task.flags.get("model.weights") == "none"
            random = "--model.weights none" if given else "random, as the recipe says"
            said.append(Path(file).name if file else random)
    return ", ".join(dict.fromkeys(said))


def write_tables(folder: Path, rows: list[dict[str, Any]], about: dict[str, Any]) -> list[Path]:
    """Write table.md, table.json and table.html into `folder`; return their paths.

    Args:
        folder: of the reproduction.
        rows: what `collect` returned.
        about: {quick, folds, seeds, flags, watts, sets: {classes: description}, missing: [row without a set]}.

    Raises:
        EnvironmentFault: the disk is full or fails.
    """
    paths = [folder / f"table.{kind}" for kind in ("md", "json", "html")]
    write_json(paths[1], {"schema": SCHEMA, "about": about, "rows": rows})
    head, lines, notes = headings(), [cells(row) for row in rows], remarks(about, rows)
    text = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]
    with open_atomic(paths[0], "w") as file:
        file.write("\n".join([*text, "", *(f"- {note}" for note in notes)]) + "\n")
    content = {"head": head, "lines": lines, "notes": notes, "quick": about["quick"]}
    write_page(paths[2], environment(PackageLoader("jobs.reproduce", "templates")), "reproduction.html", content)
    return paths


def headings() -> list[str]:
    """Return the names of the columns."""
    return [
        *("row", "classes", "published", "reproduced: test accuracy", "test macro recall", "validation accuracy"),
        *("parameters", "images/s", "wall time", "energy", "initial weights", "note"),
    ]


def cells(row: dict[str, Any]) -> list[str]:
    """Return the cells of a row as text."""
    note = "; ".join(part for part in (f"FAILED: {row['failed']}" if row["failed"] else "", row["note"]) if part)
    return [
        row["row"],
        str(row["classes"]),
        row["published"] or "–",
        _figure(row["test"]["accuracy"]),
        _figure(row["test"]["macro_recall"]),
        _figure(row["validation"]["accuracy"]),
        f"{row['parameters'] / 1e6:.2f} M" if row["parameters"] else "–",
        f"{row['images_per_s']:,.0f}" if row["images_per_s"] else "–",
        duration(row["wall_seconds"]) if row["wall_seconds"] else "–",
        _energy(row["kwh"]),
        row["weights"] or "–",
        note.replace("|", "/"),
    ]


def _figure(entry: dict[str, Any] | None) -> str:
    """Return 0.984 ± 0.003 [0.971, 0.990]; without ± for one seed."""
    if entry is None:
        return "–"
    spread = f" ± {entry['sd']:.3f}" if entry["sd"] is not None else ""
    interval = f" [{entry['low']:.3f}, {entry['high']:.3f}]" if entry["low"] is not None else ""
    return f"{entry['mean']:.3f}{spread}{interval}"


def _energy(kwh: float | None) -> str:
    if kwh is None:
        return "–"
    return f"{kwh:.3g} kWh" if kwh >= 0.1 else f"{kwh * 1000:.3g} Wh"


def remarks(about: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Return the sentences below the table."""
    power = f"{about['watts']} W"
    if not about["watts"]:
        power = f"{CPU_WATTS:g} W for each core that computes, {GPU_WATTS:g} W for a GPU with its host"
    judged = "all folds pooled, every sample judged once" if about["folds"] else "the test split"
    spread = "mean ± standard deviation over seeds, and the span of their intervals"
    several = spread if about["seeds"] > 1 else "one seed"
    notes = [f"Figures: {several}; 95 % intervals in brackets; {judged}."]
    if about["quick"]:
        notes.insert(0, "Quick mode: tiny drawn images, one epoch. Every row runs; the figures mean nothing.")
    notes += [f"Set of {count} classes: {said}." for count, said in about["sets"].items()]
    if about["flags"]:
        notes.append("All rows with " + " ".join(f"--{key} {value}" for key, value in about["flags"].items()) + ".")
    if any("--model.weights none" in row["weights"] for row in rows):
        notes.append(
            "--model.weights none: the recipe asks for pretrained weights, which were not found on this disk. It "
            "was trained from scratch, so its figure is not that of the published system."
        )
    if about["missing"]:
        notes.append(f"Left out, for want of a set with their number of classes: {', '.join(about['missing'])}.")
    notes.append(f"Energy is an estimate: wall time of training and evaluation at {power}.")
    return notes
