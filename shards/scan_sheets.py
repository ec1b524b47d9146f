"""Contact sheets of a scan: pictures of what was found, small enough that a page of any set stays small."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from shards.images import UnusableImageError
from shards.pictures import Picture, thumbnail
from shards.quality import FLAGS
from shards.scan_findings import Findings, crowd_advice, near_clusters

SIDE = 128
"""Longer side of a thumbnail in pixels."""

THUMBNAIL_BYTES = 5_000
MOST_ON_SHEET = 24
MOST_CLUSTERS = 16
MOST_IN_CLUSTER = 6
MOST_CROWDS = 8

SHEETS = {
    "outlier": "Look like nothing else in the set: foreign pictures, artefacts, rare appearances; by class. "
    "2× is twice as far from its neighbours as is usual in the set.",
    "unlike its class": "Lie far from all others of their class: another stain, another cell, an artefact. "
    "2× is twice as far as usual.",
    "like another class": "Look more like another class than others of their own do: perhaps a wrong label.",
    **{flag: f"{about[0].upper()}{about[1:]}." for flag, about in FLAGS.items()},
}
"""Flags that get a contact sheet, and what is said above it."""


def duplicate_rows(found: Findings) -> list[dict[str, Any]]:
    """Return contradictions, exact and near duplicates as rows of pictures that lie side by side."""

    def labels(group: list[int]) -> int:
        return len({label(found, i) for i in group})

    contradicting = [group for group in found.same if labels(group) > 1]
    exact = [group for group in found.same if labels(group) == 1]
    near = near_clusters(found)
    kinds = [
        (
            "One picture under several labels",
            contradicting,
            "All of them are to drop, unless you know which label is right: keep that one.",
        ),
        ("Exact duplicates", exact, "Same bytes or same pixels. The first by path is kept."),
        (
            "Near-duplicates under several labels",
            [group for group in near if labels(group) > 1],
            "The same field under different labels, or two cells that lie close together: for you to judge.",
        ),
        (
            "Near-duplicates",
            [group for group in near if labels(group) == 1],
            "The same field turned, mirrored, cropped, encoded again or taken twice. Packing keeps it in one part.",
        ),
    ]
    return [
        {
            "title": title,
            "note": note,
            "total": len(groups),
            "images": sum(map(len, groups)),
            "shown": [[_picture(found, i) for i in group[:MOST_IN_CLUSTER]] for group in groups[:MOST_CLUSTERS]],
            "sizes": [len(group) for group in groups[:MOST_CLUSTERS]],
        }
        for title, groups, note in kinds
        if groups
    ]


def sheet(found: Findings, flag: str) -> dict[str, Any] | None:
    """Return the contact sheet of a flag: by class, the most unusual first where the flag has a score."""
    chosen = [i for i, flags in enumerate(found.flags) if flag in flags]
    if not chosen:
        return None
    judged = found.outliers
    score = {"outlier": judged.score, "unlike its class": judged.misfits.score}.get(flag)
    if score is not None:
        chosen.sort(key=lambda i: -score[i])
    shown = sorted(chosen[:MOST_ON_SHEET] if score is not None else _spaced(chosen), key=lambda i: label(found, i))
    if flag == "like another class":
        notes = [f"like {judged.misfits.other[i]}" for i in shown]
    else:
        notes = [f"{score[i]:.1f}×" if score is not None else "" for i in shown]
    pictures = [_picture(found, i) for i in shown]
    return {
        "flag": flag,
        "about": SHEETS[flag],
        "total": len(chosen),
        "shown": [{"picture": picture, "note": note} for picture, note in zip(pictures, notes, strict=True)],
    }


def _spaced(chosen: Sequence[int]) -> list[int]:
    places = np.unique(np.linspace(0, len(chosen) - 1, min(len(chosen), MOST_ON_SHEET)).astype(np.int64))
    return [chosen[place] for place in places]


def _picture(found: Findings, i: int) -> Picture:
    image = found.images[i]
    try:
        uri = thumbnail(image.item.path.read_bytes(), SIDE, THUMBNAIL_BYTES)
    except (OSError, UnusableImageError):  # gone or changed since it was examined
        uri = ""
    return Picture(uri, image.item.source, image.item.label, image.item.source, image.width, image.height)


def label(found: Findings, i: int) -> str:
    """Return the class of an image."""
    return found.images[i].item.label


def crowd_sheets(found: Findings) -> list[dict[str, Any]]:
    """Return a contact sheet of each crowd, the largest first, with where its images lie and what is suggested."""
    sheets = []
    for number, group in enumerate(found.outliers.crowds.groups[:MOST_CROWDS], 1):
        members = group.tolist()
        lies = Counter(label(found, i) for i in members).most_common(6)
        sources = Counter(found.source(found.images[i].item.source) for i in members).most_common(6)
        sheets.append(
            {
                "number": number,
                "total": len(members),
                "share": len(members) / len(found.images),
                "apart": float(np.median(found.outliers.crowds.apart[group])),
                "advice": crowd_advice(found, group),
                "classes": ", ".join(f"{name} {n:,}" for name, n in lies),
                "sources": ", ".join(f"{name} {n:,}" for name, n in sources) if len(found.roots) > 1 else "",
                "shown": [{"picture": _picture(found, i), "note": ""} for i in _spaced(members)],
            }
        )
    return sheets
