"""Models side by side on the same samples: metrics, paired differences, exact tests, and where they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from bloodcell.evaluation.align import align
from bloodcell.evaluation.ensemble import said
from bloodcell.evaluation.mcnemar import holm, mcnemar
from bloodcell.evaluation.paired import OVERALL, differences, measure, rounded
from bloodcell.evaluation.predictions import Predictions
from bloodcell.evaluation.resample import cluster_index
from bloodcell.evaluation.result import evaluate_predictions
from shards.errors import BadInput


def compare(tables: Sequence[Predictions], names: Sequence[str]) -> dict[str, Any]:
    """Return the comparison as JSON-native values.

    {samples, groups, classes, runs: {name: {metrics, per_class}}, pairs: [{first, second, difference: {overall,
    per_class}, mcnemar, p_holm}], disagreements, all_wrong, interval}. A difference is first less second.

    Args:
        tables: two or more, aligned by `align`.
        names: of the runs, all different.

    Raises:
        BadInput: fewer than two runs.
    """
    if len(tables) < 2:
        raise BadInput("one run cannot be compared", names[0] if names else "", "give two or more")
    first = tables[0]
    results = [evaluate_predictions(table) for table in tables]
    measured = [measure(table) for table in tables]
    cluster = cluster_index(first.groups)
    right = [table.predicted() == first.labels for table in tables]
    pairs: list[dict[str, Any]] = []
    for a, b in combinations(range(len(tables)), 2):
        pairs.append(
            {
                "first": names[a],
                "second": names[b],
                "difference": differences(measured[a], [measured[b]], first.classes),
                "mcnemar": mcnemar(right[a], right[b], cluster),
                "agreement": rounded(float((tables[a].predicted() == tables[b].predicted()).mean())),
            }
        )
    for pair, corrected in zip(pairs, holm([pair["mcnemar"]["p"] for pair in pairs]), strict=True):
        pair["p_holm"] = rounded(corrected)
    return {
        "samples": len(first.ids),
        "groups": measured[0].groups,
        "classes": list(first.classes),
        "runs": {
            name: {
                "split": table.split,
                "data": table.data,
                "metrics": result["metrics"],
                "per_class": result["per_class"],
            }
            for name, table, result in zip(names, tables, results, strict=True)
        },
        "pairs": pairs,
        "disagreements": int((~_agree(tables)).sum()),
        "all_wrong": int(np.logical_and.reduce([~one for one in right]).sum()),
        "interval": results[0]["interval"],
    }


def read_alike(tables: Sequence[Predictions], names: Sequence[str]) -> tuple[list[Predictions], list[str]]:
    """Return the tables aligned, and what a reader should know of them: other sets, other groups.

    Raises:
        BadInput: the classes, sample keys or labels differ.
    """
    aligned = align(tables, names)
    notes = []
    if len({table.fingerprint for table in tables}) > 1:
        notes.append("the runs were made on different packings of the same samples")
    place = {key: row for row, key in enumerate(tables[0].keys)}
    for table, name in zip(tables[1:], names[1:], strict=True):
        wanted = [tables[0].groups[place[key]] for key in table.keys]
        if not np.array_equal(cluster_index(wanted), cluster_index(table.groups)):
            notes.append(f"{name} has other groups than {names[0]}, whose groups are the ones that count here")
    return aligned, notes


def disagreements(tables: Sequence[Predictions], names: Sequence[str]) -> pa.Table:
    """Return the samples that not all models call the same, the most confident contradictions first.

    Columns: id int64, key, label, group, then for each run `<name>` (its class) and `<name> probability` (of it),
    and `right` int32: how many of the runs are right.

    Args:
        tables: aligned.
        names: of the runs, all different.
    """
    first = tables[0]
    rows = np.flatnonzero(~_agree(tables))
    probabilities = [table.probabilities()[rows] for table in tables]
    predicted = [table.predicted()[rows] for table in tables]
    sure = np.stack([values.max(axis=1) for values in probabilities])
    order = np.argsort(-sure.min(axis=0), kind="stable")
    rows = rows[order]
    names_of = np.array(first.classes)
    right = np.stack([values == first.labels[rows] for values in (one[order] for one in predicted)]).sum(axis=0)
    columns: dict[str, Any] = {
        "id": pa.array(first.ids[rows]),
        "key": pa.array([first.keys[i] for i in rows], pa.string()),
        "label": pa.array(names_of[first.labels[rows]].tolist(), pa.string()),
        "group": pa.array([first.groups[i] for i in rows], pa.string()),
    }
    for name, one, confidence in zip(names, predicted, sure, strict=True):
        columns[name] = pa.array(names_of[one[order]].tolist(), pa.string())
        columns[f"{name} probability"] = pa.array(confidence[order])
    columns["right"] = pa.array(right.astype(np.int32))
    return pa.table(columns)


def lines(result: dict[str, Any]) -> list[str]:
    """Return a comparison as lines of text."""
    names = list(result["runs"])
    width = max(map(len, OVERALL))
    found = [f"{result['samples']:,} samples in {result['groups']:,} groups", ""]
    for metric in OVERALL:
        cells = [_cell(result["runs"][name]["metrics"].get(metric)) for name in names]
        found.append("  ".join([metric.ljust(width), *cells]).rstrip())
    found.insert(2, "  ".join(["".ljust(width), *(name[-26:].ljust(26) for name in names)]).rstrip())
    for pair in result["pairs"]:
        test = pair["mcnemar"]
        found += ["", f"{pair['first']} less {pair['second']}:"]
        found += [f"  {metric.ljust(width)}  {said(pair['difference']['overall'][metric])}" for metric in OVERALL]
        kind = "exchanged by group" if test["grouped"] else "exact McNemar"
        found.append(
            f"  only the first right: {test['only_first']:,}, only the second: {test['only_second']:,}; "
            f"p = {test['p']:.3g} ({kind}){_corrected(pair, len(result['pairs']))}"
        )
        changed = [
            f"  {label.ljust(width)}  recall {said(entry['recall'])}"
            for label, entry in pair["difference"]["per_class"].items()
        ]
        found += changed
    found += ["", f"they disagree on {result['disagreements']:,} samples; all are wrong on {result['all_wrong']:,}"]
    return found


def _corrected(pair: dict[str, Any], pairs: int) -> str:
    return f", {pair['p_holm']:.3g} corrected for {pairs} pairs" if pairs > 1 else ""


def _agree(tables: Sequence[Predictions]) -> np.ndarray:
    first = tables[0].predicted()
    return np.logical_and.reduce([table.predicted() == first for table in tables])


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None or entry["value"] is None:
        return "undefined".ljust(26)
    bounds = "" if entry["low"] is None else f" [{entry['low']:.4f}, {entry['high']:.4f}]"
    return f"{entry['value']:.4f}{bounds}".ljust(26)
