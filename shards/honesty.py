"""Whether a class has enough independent groups for its figures to mean anything: a rule, and sentences for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

FEW_GROUPS = 5
"""A class with fewer independent groups cannot be shared out to train, val and test in any balanced way."""

LARGEST_SHARE = 0.5
"""A class of which one group has more than this is that group: its part decides the figures."""

FEW_IN_PART = 2
"""A part with fewer groups of a class says something about one patient or slide, not about the class."""


@dataclass(frozen=True)
class ThinClass:
    """A class whose groups are too few for an honest split.

    Attributes:
        name: the class.
        images: how many it has.
        groups: its independent groups: patients, slides, clusters of near-duplicates; an image of no group is one.
        largest: name of the largest group, "" where it is an image of no group.
        share: share of the class's images in that group.
        parts: groups of the class in each part.
    """

    name: str
    images: int
    groups: int
    largest: str
    share: float
    parts: dict[str, int]


def thin_classes(
    labels: Sequence[int], groups: Sequence[str], parts: Sequence[str], classes: Sequence[str]
) -> list[ThinClass]:
    """Return the classes with fewer than 5 groups, more than half of their images in one, or a part with fewer than 2.

    Args:
        labels: class index of each sample.
        groups: group of each sample; "" is a group of its own.
        parts: the part of each sample.
        classes: class names in index order.
    """
    names = list(dict.fromkeys(parts))
    found = []
    units = [group or f"\0{i}" for i, group in enumerate(groups)]
    members: list[list[int]] = [[] for _ in classes]
    for i, label in enumerate(labels):
        members[label].append(i)
    for name, own in zip(classes, members, strict=True):
        if not own:
            continue
        sizes = Counter(units[i] for i in own)
        largest, most = min(sizes.items(), key=lambda item: (-item[1], item[0]))
        held = Counter(part for part, _ in {(parts[i], units[i]) for i in own})
        in_parts = {part: held[part] for part in names}
        share = most / len(own)
        if len(sizes) < FEW_GROUPS or share > LARGEST_SHARE or min(in_parts.values()) < FEW_IN_PART:
            said = "" if largest.startswith("\0") else largest
            found.append(ThinClass(name, len(own), len(sizes), said, round(share, 6), in_parts))
    return found


def sentence(thin: ThinClass) -> str:
    """Return what a reader must know about a thin class."""
    if thin.groups == 1:
        return f"class {thin.name!r} is one group: its figures say nothing about another patient or slide"
    parts = [f"{part} {n}" for part, n in thin.parts.items()]
    named = f" ({thin.largest})" if thin.largest else ""
    return (
        f"class {thin.name!r} has {thin.groups:,} independent groups ({', '.join(parts)}), the largest{named} with "
        f"{thin.share * 100:.0f} % of its images: its figures rest on few patients or slides"
    )
