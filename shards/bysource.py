"""Leave one source out: each source is the test part of one fold, the others give its train and val parts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from shards.errors import BadInput
from shards.split import Split, split

PARTS = ("train", "val")


def leave_source_out(
    labels: Sequence[int] | np.ndarray,
    groups: Sequence[str],
    keys: Sequence[str],
    origins: Sequence[str],
    fractions: dict[str, float],
    seed: int,
    classes: Sequence[str],
) -> Split:
    """Divide each source for itself into a part to train on and one to validate on, when another source is tested.

    The parts are called source0-train, source0-val, source1-train, ..., in the order of the names of the sources. A
    class with one group only in a source stays in its train part as a whole.

    Args:
        labels: class index of each sample.
        groups: group of each sample; "" is a group of its own.
        keys: unique names.
        origins: source of each sample.
        fractions: shares of train and val, adding up to 1.
        seed: of the draw.
        classes: class names, for messages.

    Raises:
        BadInput: fewer than two sources, a sample without one, or a group that spans sources.
    """
    _check(groups, keys, origins)
    names = sorted(set(origins))
    assignment = np.empty(len(labels), dtype=np.int64)
    deviation = 0.0
    for number, name in enumerate(names):
        inside = [i for i, origin in enumerate(origins) if origin == name]
        assignment[inside] = number * len(PARTS)
        free = _divisible(inside, labels, groups, keys)
        if free:
            present = sorted({int(labels[i]) for i in free})
            cut = split(
                [present.index(labels[i]) for i in free],
                [groups[i] for i in free],
                [keys[i] for i in free],
                fractions,
                seed,
                [f"{classes[label]} of {name}" for label in present],
            )
            assignment[free] = number * len(PARTS) + cut.assignment
            deviation = max(deviation, cut.deviation)
    return Split([f"source{k}-{part}" for k in range(len(names)) for part in PARTS], assignment, deviation)


def source_of(part: str) -> str:
    """Return 'source3' for 'source3-train', "" for a part that belongs to no source."""
    source, dash, _ = part.rpartition("-")
    return source if dash and source.startswith("source") else ""


def missing_classes(
    parts: Sequence[str], labels: Sequence[int], origins: Sequence[str], classes: Sequence[str]
) -> list[str]:
    """Return a sentence for each fold in which a class of the tested source is in no other source."""
    where: dict[int, set[str]] = defaultdict(set)
    for part, label, origin in zip(parts, labels, origins, strict=True):
        if source_of(part):
            where[label].add(origin)
    fold = {name: k for k, name in enumerate(sorted(set().union(*where.values())))}
    return [
        f"class {classes[label]!r} is in the source {next(iter(found))!r} alone: fold {fold[next(iter(found))]} "
        "is tested on it and cannot train on it"
        for label, found in sorted(where.items())
        if len(found) == 1
    ]


def _check(groups: Sequence[str], keys: Sequence[str], origins: Sequence[str]) -> None:
    where = "--leave-source-out"
    homeless = [key for key, origin in zip(keys, origins, strict=True) if not origin]
    if homeless:
        raise BadInput(
            f"{len(homeless):,} images have no source, first {homeless[0]}",
            where,
            "name the sources with --also, --source-column, --source-pattern or the key source of a definition",
        )
    if len(set(origins)) < 2:
        raise BadInput(f"only one source ({next(iter(origins), '')!r})", where, "give a further one with --also")
    first: dict[str, int] = {}
    spanning: dict[str, tuple[int, int]] = {}
    for i, group in enumerate(groups):
        if group and origins[first.setdefault(group, i)] != origins[i]:
            spanning.setdefault(group, (first[group], i))
    if spanning:
        group, (a, b) = next(iter(spanning.items()))
        raise BadInput(
            f"{len(spanning):,} groups (patients or near-duplicates) span sources, first {group!r} with {keys[a]} "
            f"({origins[a]}) and {keys[b]} ({origins[b]})",
            where,
            "drop the images of one side with --decisions, or make one source of both with --source-pattern",
        )


def _divisible(
    inside: list[int], labels: Sequence[int] | np.ndarray, groups: Sequence[str], keys: Sequence[str]
) -> list[int]:
    """Return the samples whose classes all have two groups or more among them, so that two parts can share them."""
    unit = {i: groups[i] or f"\0{keys[i]}" for i in inside}
    free = list(inside)
    while free:
        held = Counter(label for _, label in {(unit[i], labels[i]) for i in free})
        bound = {unit[i] for i in free if held[labels[i]] < len(PARTS)}
        if not bound:
            return free
        free = [i for i in free if unit[i] not in bound]
    return free
