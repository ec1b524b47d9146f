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
    sizes: list[Counter[str]] = [Counter() for _ in classes]  # images of each group; those of no group count under ""
    held: list[Counter[str]] = [Counter() for _ in classes]  # groups in each part
    seen: set[tuple[int, str, str]] = set()
    for label, group, part in zip(labels, groups, parts, strict=True):
        sizes[label][group] += 1
        if not group or (label, group, part) not in seen:
            held[label][part] += 1
        if group:
            seen.add((label, group, part))
    found = []
    for name, own, places in zip(classes, sizes, held, strict=True):
        images = own.total()
        if not images:
            continue
        alone = own.pop("", 0)
        largest, most = min(own.items(), key=lambda item: (-item[1], item[0]), default=("", 1))
        largest = largest if most > 1 or not alone else ""
        in_parts = {part: places[part] for part in names}
        units, share = len(own) + alone, most / images
        if units < FEW_GROUPS or share > LARGEST_SHARE or min(in_parts.values()) < FEW_IN_PART:
            found.append(ThinClass(name, images, units, largest, round(share, 6), in_parts))
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
