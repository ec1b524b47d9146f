"""RUN/model_card.md: what whoever is given the weights must know, from the facts of the report and nothing else.

Its parts follow Mitchell et al., Model Cards for Model Reporting (FAT* 2019). What is not known is left out, or called
unknown where its absence would mislead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bloodcell.report.explained import flagged
from bloodcell.report.facts import facts_of
from bloodcell.report.files import FILES, ordered, read_run
from bloodcell.report.markdown import code, table, text
from bloodcell.report.results import CLASS_METRICS, METRICS, SPOKEN, value_of
from bloodcell.report.sections import SCORES
from shards.document import count, decimal, duration, interval, percent, plural

RESEARCH = "Research use only: not a medical device, not for diagnosis."
LOAD = """\
```python
from pathlib import Path

from bloodcell.engine.evaluate import load_model
from bloodcell.runfolder import RunFolder

run = RunFolder(Path("RUN"))
model, classes = load_model(run, run.config())
model.eval()
```
"""
MOST_CLASSES = 60
"""Classes that are listed; report.json has all."""


def model_card(facts: dict[str, Any]) -> str:
    """Return the card of a run as Markdown, from `facts.facts_of`."""
    lines = [f"# {text(facts['model'])}" + (f" on {text(facts['data'])}" if facts["data"] else ""), ""]
    if facts["leaks"]:
        lines = [
            "**Warning: the set of this run leaks. Its splits share images or groups, so the results below are too "
            "optimistic.**",
            "",
            *lines,
        ]
    lines += [RESEARCH, ""]
    splits = ordered(facts["evaluation"])
    first = splits[0] if splits else None
    for part in (_model(facts), _use(facts), _data(facts), _results(facts, first), _calibration(facts, first)):
        lines += part
    lines += [*_other_sets(facts), *_limits(facts, first), *_cost(facts), *_loading(facts), *_rights(facts)]
    return "\n".join(lines).rstrip() + "\n"


def card_of(run: Path) -> str:
    """Return the card of a run folder: the one that is written there, else one of what is known; of a lone weights
    file that nothing is known.

    Raises:
        BadInput: a file of the run is damaged.
    """
    if run.is_file():
        return f"# {text(run.name)}\n\n{RESEARCH} A weights file without its run folder: nothing else is known of it.\n"
    written = run / FILES["card"]
    if written.exists():
        return written.read_text(encoding="utf-8")
    return model_card(facts_of(read_run(run), None, None))


def _model(facts: dict[str, Any]) -> list[str]:
    config, weights = facts["config"] or {}, facts["weights"]
    about = facts["preprocessing"]
    initial = weights["initial"] or {}
    rows: list[tuple[str, str]] = [("architecture", code(facts["model"]))]
    if facts["parameters"]:
        rows.append(("parameters", count(facts["parameters"])))
    size = about.get("size") or (config.get("data") or {}).get("size")
    if size:
        rows.append(("input", f"RGB, {text(size)} × {text(size)} px"))
    if about.get("mean") and about.get("std"):
        rows.append(("normalisation", f"mean {code(about['mean'])}, standard deviation {code(about['std'])}, of 0…1"))
    if facts["classes"]:
        shown = ", ".join(text(name) for name in facts["classes"][:MOST_CLASSES])
        more = len(facts["classes"]) - MOST_CLASSES
        rows.append(("classes, in index order", shown + (f" and {more:,} more" if more > 0 else "")))
    if initial.get("sha256"):
        name = str(initial.get("file") or "").rstrip("/").rsplit("/", 1)[-1]
        rows.append(("trained from", f"{code(name)}, sha256 {code(initial['sha256'])}"))
    if facts["recipe"]:
        rows.append(("recipe", code(facts["recipe"])))
    if facts["config_hash"]:
        rows.append(("hash of configuration and set", code(facts["config_hash"])))
    rows.append(("sha256 of the weights", code(weights["sha256"]) if weights["sha256"] else "unknown"))
    return ["## Model", "", *table(["what", "value"], rows)]


def _use(facts: dict[str, Any]) -> list[str]:
    sets = [other["set"] for other in facts["others"] if other["set"] and other["splits"]]
    beyond = "the other sets named below" if sets else "none other: it was not tested on another set"
    return [
        "## Intended use",
        "",
        f"{RESEARCH} It tells {plural(len(facts['classes']), 'class', 'classes')} of images apart and calls every "
        "image one of them, also one that shows none of them. What is known of it holds for images like those of its "
        f"set, and {beyond}.",
        "",
    ]


def _data(facts: dict[str, Any]) -> list[str]:
    about = facts["set"]
    if about is None:
        return ["## Data", "", "The set was not at hand when this card was written: counts and audit are unknown.", ""]
    parts = list(about["samples"])
    counts = [
        [text(name), *(count(about["samples"][part].get(name, 0)) for part in parts)]
        for name in about["classes"][:MOST_CLASSES]
    ]
    leaks = about["audit"]["leaks"]
    lines = [
        "## Data",
        "",
        f"{text(about['name'])}: {plural(about['images'], 'image')}, {count(about['rejected'])} of "
        f"{count(about['images_in'])} found were left out. {text(about['patients'])}",
        "",
        f"Split: {text(about['split'].get('method') or 'method unknown')}. The split audit found "
        + (f"**{plural(leaks, 'leak')}**." if leaks else "nothing that is shared between parts."),
        "",
        *table(["class", *(text(part) for part in parts)], counts),
    ]
    return [*lines, f"Fingerprint of the set: {code(about['fingerprint'])}", ""]


def _results(facts: dict[str, Any], first: str | None) -> list[str]:
    if first is None:
        return ["## Results", "", "It has not been evaluated.", ""]
    result = facts["evaluation"][first]
    level = percent((result.get("interval") or {}).get("level") or 0.95, 0)
    groups = result.get("groups")
    within = f" in {plural(groups, 'group')}" if groups else ""
    lines = [
        "## Results",
        "",
        f"On the {SPOKEN.get(first, first)} split: {plural(int(result.get('samples') or 0), 'image')}{within}; "
        f"{level} intervals.",
        "",
        *table(["metric", "value", "interval"], _rows(result.get("metrics") or {})),
    ]
    per_class = result.get("per_class") or {}
    names = [name for name in CLASS_METRICS if any(name in entry for entry in per_class.values())]
    rows = [
        [text(name), count(entry.get("support", 0)), *(_said(value_of(kind, entry.get(kind))) for kind in names)]
        for name, entry in list(per_class.items())[:MOST_CLASSES]
    ]
    return [*lines, *table(["class", "images", *(CLASS_METRICS[name][0] for name in names)], rows)]


def _rows(metrics: dict[str, Any]) -> list[list[str]]:
    found = [(METRICS[name], value_of(name, metrics[name])) for name in METRICS if name in metrics]
    return [[title, value["text"], value["interval"]] for title, value in found]


def _said(value: dict[str, Any]) -> str:
    return f"{value['text']} ({value['interval']})" if value["interval"] else str(value["text"])


def _calibration(facts: dict[str, Any], first: str | None) -> list[str]:
    found = facts["evaluation"][first].get("calibration") if first else None
    if not found:
        return []
    sides = [side for side in ("before", "after") if found[side] is not None]
    rows = [[title, *(_said(value_of(name, found[side][name])) for side in sides)] for name, title in SCORES.items()]
    values = ", ".join(f"{value:.3f}" for value in found["temperature"]["values"])
    said = f"Temperature, fitted on validation only: {values}." if values else ""
    left = f"No temperature was fitted: {text(found['temperature']['left_out'])}." if not values else ""
    titles = {"before": "as trained", "after": "after temperature scaling"}
    return ["## Calibration", "", said or left, "", *table(["measure", *(titles[side] for side in sides)], rows)]


def _other_sets(facts: dict[str, Any]) -> list[str]:
    rows = [
        [
            text(other["set"]) + (f", {other['orientations']} orientations" if other["orientations"] > 1 else ""),
            text(split),
            count(result["samples"]),
            _said(value_of("accuracy", result["metrics"].get("accuracy"))),
            _said(value_of("macro_f1", result["metrics"].get("macro_f1"))),
        ]
        for other in facts["others"]
        if other["set"]
        for split, result in other["splits"].items()
    ]
    if not rows:
        return []
    return ["## On other sets", "", *table(["set", "split", "images", "accuracy", "macro F1"], rows)]


def _limits(facts: dict[str, Any], first: str | None) -> list[str]:
    """Return what was found to go wrong, and what was not looked for."""
    said: list[str] = []
    if first == "val":
        said.append("There is no result on a test split; validation also chose the weights and flatters them.")
    elif first == "train":
        said.append("The only figures are of images that it was trained on: they say nothing about other images.")
    result = facts["evaluation"][first] if first else {}
    for kind, name in (("source", "source"), ("patient", "patient or slide")):
        worst = ((result.get("worst_groups") or {}).get(kind) or {}).get("worst")
        if worst:
            accuracy = _said(value_of("accuracy", worst["accuracy"]))
            said.append(
                f"The worst {name} is {text(worst['name'])}: accuracy {accuracy} of "
                f"{plural(worst['samples'], 'image')}."
            )
    said += [f"{_capital(text(one['sentence']))}." for one in (facts["set"] or {}).get("thin") or []]
    for found in (result.get("conformal") or {}).get("sets") or []:
        if not found["reached"]:
            said.append(
                f"Conformal sets ({found['method'].upper()}) that promise {percent(found['level'], 0)} hold only "
                f"{percent(found['coverage']['value'])}."
            )
    return ["## Limits that were found", "", *(f"- {line}" for line in (*said, *_explained(facts["explanation"]))), ""]


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _explained(found: dict[str, Any] | None) -> list[str]:
    if found is None or found["outdated"]:
        return ["Shortcuts were not looked for (`bloodcell explain` does)."]
    said = []
    for name in flagged(found):
        region = found["regions"][name]
        bounds = interval(region["changed_low"], region["changed_high"])
        said.append(
            f"Possible shortcut: {percent(region['changed'])} ({bounds}) of the predictions change when the "
            f"{text(name)} is painted over; accuracy {percent(region['accuracy'])} becomes "
            f"{percent(region['accuracy_painted'])}."
        )
    if not said:
        said.append("No shortcut was found in the border, the corners or the background.")
    if not found["sanity"]["passed"]:
        said.append(
            "The maps of the explanation are nearly those of random weights (rank correlation "
            f"{decimal(found['sanity']['correlation'], 2)}): they say little."
        )
    return said


def _cost(facts: dict[str, Any]) -> list[str]:
    spent = facts["cost"]
    if not spent:
        return []
    said = [f"{duration(spent['wall_seconds'])} on {plural(spent['ranks'], 'rank')}"]
    if spent["gpu_hours"]:
        said.append(f"{spent['gpu_hours']:.2f} GPU-hours ({text(spent['device'])})")
    if spent["core_hours"]:
        said.append(f"{spent['core_hours']:.2f} core-hours")
    energy = spent["energy"]
    end = f"About {energy['kwh']:g} kWh ({energy['assumption']})." if energy else "Its energy is unknown."
    return ["## Cost of the training", "", f"{', '.join(said)}. {end}", ""]


def _loading(facts: dict[str, Any]) -> list[str]:
    if not facts["weights"]["sha256"]:
        return []
    return ["## How to load it", "", "From the run folder, here called `RUN`, with the package `bloodcell`:", "", LOAD]


def _rights(facts: dict[str, Any]) -> list[str]:
    known = (facts["set"] or {}).get("definition") or {}
    lines = ["## Licence and citation", "", "- Licence of the weights: unknown; whoever passes them on must state it."]
    if not known:
        return [*lines, "- Licence and citation of the data: unknown.", ""]
    for key, name in (("title", "Data"), ("page", "Described at"), ("licence", "Licence of the data")):
        if known.get(key):
            lines.append(f"- {name}: {text(known[key])}")
    lines.append(f"- Cite: {text(known['citation'])}" if known.get("citation") else "- Whom to cite: unknown")
    lines += [f"- Note: {text(note)}" for note in known.get("notes") or []]
    return [*lines, ""]
