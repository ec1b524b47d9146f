"""Keep the split that the images came with; only a missing part for validation is cut off the training part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shards.console import say, warn
from shards.errors import BadInput
from shards.split import Split, split

ORDER = ("train", "val", "test")


def keep_split(
    parts: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    groups: Sequence[str],
    keys: Sequence[str],
    fractions: dict[str, float],
    seed: int,
    classes: Sequence[str],
) -> Split:
    """Assign every sample to the part it came in.

    Where there is a `train` and no `val`, `val` is cut off `train`, by groups and classes, in the proportion that
    `fractions` give these two (none if they give `val` nothing).

    Args:
        parts: the part of each sample.
        labels: class index of each sample.
        groups: group of each sample; one that spans parts stays as it is, for the audit to find.
        keys: unique names.
        fractions: part -> share, as asked for with --split.
        seed: of the cut.
        classes: class names, for messages.

    Raises:
        BadInput: `train` has too few images of a class to cut `val` off, or there are fewer than three folds.
    """
    _check_folds(parts)
    own = list(parts)
    ask = {name: fractions[name] for name in ("train", "val") if fractions.get(name)}
    if "train" in own and "val" not in own and len(ask) == 2:
        inside = [i for i, part in enumerate(own) if part == "train"]
        total = sum(ask.values())
        cut = split(
            [labels[i] for i in inside],
            [groups[i] for i in inside],
            [keys[i] for i in inside],
            {name: share / total for name, share in ask.items()},
            seed,
            classes,
        )
        for i, place in zip(inside, cut.assignment, strict=True):
            own[i] = cut.parts[int(place)]
        say(f"the split has no part for validation: {own.count('val'):,} images of train become val")
    order = [name for name in ORDER if name in own] + sorted(set(own) - set(ORDER), key=_by_number)
    assignment = np.array([order.index(part) for part in own], dtype=np.int64)
    counts = np.zeros((len(order), len(classes)))
    np.add.at(counts, (assignment, np.asarray(labels, dtype=np.int64)), 1)
    for place, label in np.argwhere(counts == 0):
        warn(f"class {classes[label]!r} has no image in {order[place]!r}")
    shares = counts.sum(axis=1) / counts.sum()
    deviation = float(np.abs(counts / np.maximum(counts.sum(axis=0), 1) - shares[:, None]).max())
    return Split(order, assignment, deviation)


def shares_of(division: Split) -> dict[str, float]:
    """Return the share of the samples in each part."""
    counts = np.bincount(division.assignment, minlength=len(division.parts))
    return {part: round(float(n) / len(division.assignment), 6) for part, n in zip(division.parts, counts, strict=True)}


def _check_folds(parts: Sequence[str]) -> None:
    folds = {part for part in parts if part.startswith("fold")}
    if 0 < len(folds) < 3:
        raise BadInput(
            f"{len(folds)} folds leave no part for validation", "--keep-splits", "give all folds or --merge-splits"
        )


def _by_number(name: str) -> tuple[str, int, str]:
    digits = name.lstrip("abcdefghijklmnopqrstuvwxyz_")
    return (name[: len(name) - len(digits)], int(digits) if digits.isdecimal() else 0, name)
