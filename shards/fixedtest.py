"""A test set that is kept apart: it stays as it is, what shares a patient or a picture with it is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shards.clean import Cleaned
from shards.console import say
from shards.errors import BadInput
from shards.examine import Reject
from shards.sources.items import FIXED
from shards.split import Split
from shards.spooled import chosen


def protect(cleaned: Cleaned) -> Cleaned:
    """Leave out what shares a group (patient, slide, near-duplicate cluster) with the images in the part FIXED.

    The fixed test set loses nothing: the others go, each with its reason.

    Raises:
        BadInput: no image of the fixed test set is left.
    """
    inside: dict[str, str] = {}
    parts = cleaned.images.texts("part")
    for part, group, source in zip(parts, cleaned.groups, cleaned.images.sources(), strict=True):
        if group and part == FIXED:
            inside.setdefault(group, source)
    if FIXED not in parts:
        raise BadInput("no image of the fixed test set can be used", "--test-from", "see what is wrong with `scan`")
    keep, gone = [], []
    for place, (part, group) in enumerate(zip(parts, cleaned.groups, strict=True)):
        if group in inside and part != FIXED:
            detail = f"group {group!r} also has {inside[group]}"
            gone.append(Reject(cleaned.images[place].item, "shared with the fixed test set", detail))
        else:
            keep.append(place)
    if not gone:
        return cleaned
    say(f"{len(gone):,} images are left out: they share a patient or a picture with the fixed test set")
    return replace(
        cleaned,
        images=cleaned.images.taken(keep),
        features=chosen(cleaned.features, np.asarray(keep)),
        groups=[cleaned.groups[i] for i in keep],
        rejected=sorted([*cleaned.rejected, *gone], key=lambda reject: reject.item.source),
    )


def beside(division: Split, rest: Sequence[int], count: int, name: str) -> Split:
    """Return a split of `count` samples: `division` divides those at `rest`, all others are in the part `name`."""
    if len(rest) == count:
        return division
    assignment = np.full(count, len(division.parts), dtype=np.int64)
    assignment[np.asarray(rest, dtype=np.int64)] = division.assignment
    return Split([*division.parts, name], assignment, division.deviation)
