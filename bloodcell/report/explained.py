"""What `bloodcell explain` found of a run: regions, sanity, neighbours, and its surest errors with their maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bloodcell.report.files import read_json

FOLDER = "explanation"
MOST_SHOWN = 12
"""Errors whose maps the report shows; explanation.html has all of them."""
MOST_BYTES = 1_500_000
"""Characters that their pictures may take, so that the page stays light."""
PICTURES = ("picture", "map", "map_true")
IMAGE = "data:image/jpeg;base64,"


def explanation(run: Path, weights: str) -> dict[str, Any] | None:
    """Return explanation.json of a run; None without one. `outdated` says that other weights were explained.

    Args:
        run: the run folder.
        weights: sha256 of its weights, "" without any.

    Raises:
        BadInput: the file is damaged.
    """
    found = read_json(run / FOLDER / "explanation.json")
    if not found:
        return None
    made = found.get("weights")
    return {**found, "outdated": bool(weights and made and made != weights)}


def flagged(found: dict[str, Any]) -> list[str]:
    """Return the names of the regions that may be shortcuts."""
    return [name for name, region in (found.get("regions") or {}).items() if region.get("flagged")]


def shown_errors(run: Path) -> list[dict[str, Any]]:
    """Return the surest errors with their pictures as data URIs, as many as the page can bear; [] without any."""
    try:
        rows = json.loads((run / FOLDER / "errors.json").read_text(encoding="utf-8"))["errors"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    shown: list[dict[str, Any]] = []
    room = MOST_BYTES
    for row in rows[:MOST_SHOWN]:
        room -= sum(len(str(row[name])) for name in PICTURES)
        if room < 0:
            break
        if all(str(row[name]).startswith(IMAGE) for name in PICTURES):
            shown.append(row)
    return shown
