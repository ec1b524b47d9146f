"""Divide samples into parts: groups stay whole, classes keep their shares. A pure function of its arguments."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from shards.errors import BadInput
from shards.parallel import chunked

_BLOCK = 1024
"""Sort keys made at a time."""


@dataclass(frozen=True)
class Split:
    """Which part each sample is in (int64 [samples], position in `parts`), and the largest miss of an asked share."""

    parts: list[str]
    assignment: np.ndarray
    deviation: float


def order_key(seed: int, text: str) -> bytes:
    """Return a pseudo-random sort key of a text: the same on every machine, another for another seed."""
    return hashlib.sha256(f"{seed}\0{text}".encode()).digest()


def order_keys(seed: int, texts: Iterable[str]) -> np.ndarray:
    """Return `order_key` of each text as `S32` [texts], which numpy can sort."""
    blocks = (b"".join(order_key(seed, text) for text in some) for some in chunked(texts, _BLOCK))
    return np.frombuffer(b"".join(blocks), "S32")


@dataclass(frozen=True)
class Units:
    """What stays together: samples of one group, or a sample alone; the largest first, ties as drawn.

    Attributes:
        members: positions of samples, unit by unit, int64 [samples].
        starts: where each unit begins among them, and the end, int64 [units + 1].
    """

    members: np.ndarray
    starts: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Samples of each unit."""
        return np.diff(self.starts)

    def at(self, unit: int) -> np.ndarray:
        """Return the members of a unit."""
        return self.members[self.starts[unit] : self.starts[unit + 1]]

    def owners(self, labels: np.ndarray, label: int) -> np.ndarray:
        """Return the units that have a sample of a class, in order."""
        return np.unique(np.repeat(np.arange(len(self.sizes)), self.sizes)[labels[self.members] == label])


def parse_fractions(text: str) -> dict[str, float]:
    """Turn '80/10/10' into {'train': 0.8, 'val': 0.1, 'test': 0.1}; parts of 0 are left out.

    Raises:
        BadInput: not three numbers, negative, or not 100 in all.
    """
    try:
        numbers = [float(number) for number in text.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or min(numbers) < 0 or not abs(sum(numbers) - 100) < 1e-6:
        raise BadInput(f"not a split: {text!r}", "--split", "give three shares that add up to 100, such as 80/10/10")
    return {part: n / 100 for part, n in zip(("train", "val", "test"), numbers, strict=True) if n > 0}


def split(
    labels: Sequence[int] | np.ndarray,
    groups: Sequence[str],
    keys: Sequence[str],
    fractions: dict[str, float],
    seed: int,
    classes: Sequence[str],
    thin: bool = False,
) -> Split:
    """Assign every sample to a part so that no group is cut and each class is shared out as asked.

    Groups of several samples are placed first, the largest first (ties in an order drawn from the seed), each where
    the classes it brings are missing most; single samples then fill every part exactly as far as they reach.

    Args:
        labels: class index of each sample.
        groups: group of each sample; "" is a group of its own.
        keys: unique names; the draw depends on them and not on the order of the samples.
        fractions: part -> share, adding up to 1.
        seed: of the draw.
        classes: class names, for messages.
        thin: a class with too few groups for the parts is placed in some of them in place of being an error.

    Raises:
        BadInput: a class has fewer groups than there are parts, so that some part would lack it.
    """
    label_array = np.asarray(labels, dtype=np.int64)
    parts = list(fractions)
    shares = np.array([fractions[part] for part in parts])
    units = _units(groups, keys, seed)
    if not thin:
        _check_enough(label_array, groups, units, parts, classes)
    totals = np.bincount(label_array, minlength=len(classes)).astype(float)
    wanted = np.outer(shares, totals)
    placed = np.zeros_like(wanted)
    assignment = np.full(len(label_array), -1, dtype=np.int64)
    several = int((units.sizes > 1).sum())
    for unit in map(units.at, range(several)):
        counts = np.bincount(label_array[unit], minlength=len(classes)).astype(float)
        part = best_part(counts, placed, wanted, totals)
        assignment[unit] = part
        placed[part] += counts
    fill_singles(units.members[units.starts[several] :], label_array, assignment, placed, wanted)
    _mend_empty(units, label_array, assignment, placed, parts, classes, thin)
    deviation = float(np.abs(placed / np.maximum(totals, 1) - shares[:, None])[:, totals > 0].max())
    return Split(parts, assignment, deviation)


def _units(groups: Sequence[str], keys: Sequence[str], seed: int) -> Units:
    found: dict[str, list[int]] = {}
    for position, group in enumerate(groups):
        if group:
            found.setdefault(group, []).append(position)
    several = sorted(
        (unit for unit in found.values() if len(unit) > 1),
        key=lambda unit: (-len(unit), order_key(seed, min(keys[i] for i in unit))),
    )
    together = np.array([i for unit in several for i in unit], np.int64)
    alone = np.setdiff1d(np.arange(len(groups)), together, assume_unique=True)
    alone = alone[np.argsort(order_keys(seed, (keys[i] for i in alone.tolist())))]
    sizes = [*map(len, several), *np.ones(len(alone), np.int64)]
    return Units(np.append(together, alone), np.cumsum([0, *sizes]))


def _check_enough(
    labels: np.ndarray, groups: Sequence[str], units: Units, parts: list[str], classes: Sequence[str]
) -> None:
    per_class = [len(units.owners(labels, label)) for label in range(len(classes))]
    for index, name in enumerate(classes):
        if per_class[index] < len(parts):
            images = int((labels == index).sum())
            raise BadInput(
                f"class {name!r} has {images} images in {per_class[index]} groups, too few for {len(parts)} parts"
                + _named_groups(groups, labels == index),
                ", ".join(parts),
                "add images, ask for fewer parts, leave the class out, or --allow-thin to have it in some parts only",
            )


def _named_groups(groups: Sequence[str], chosen: np.ndarray) -> str:
    """Return ': p1 20, p2 20' for the groups of the chosen samples, the largest first; "" where none is named."""
    sizes = Counter(groups[i] for i in np.flatnonzero(chosen).tolist() if groups[i])
    named = ", ".join(f"{name} {n}" for name, n in sorted(sizes.items(), key=lambda item: (-item[1], item[0])))
    return f": {named}" if named else ""


def best_part(counts: np.ndarray, placed: np.ndarray, wanted: np.ndarray, totals: np.ndarray) -> int:
    """Return the part where adding `counts` makes the squared distance to the wanted shares least."""
    scale = np.maximum(totals, 1)
    before = ((placed - wanted) / scale) ** 2
    after = ((placed + counts - wanted) / scale) ** 2
    # Relative to what a part should hold, so that small parts are not overrun by large groups.
    weight = 1 / np.maximum(wanted / scale, 1e-9)
    return int(np.argmin(((after - before) * weight).sum(axis=1)))


def fill_singles(
    singles: Sequence[int] | np.ndarray,
    labels: np.ndarray,
    assignment: np.ndarray,
    placed: np.ndarray,
    wanted: np.ndarray,
) -> None:
    """Deal single samples, class by class, so that each part comes as near to its share as rounding allows."""
    positions = np.asarray(singles, np.int64)
    for label in np.unique(labels[positions]).tolist():
        members = positions[labels[positions] == label]
        quota = _largest_remainder(np.maximum(wanted[:, label] - placed[:, label], 0), len(members))
        assignment[members] = np.repeat(np.arange(len(quota)), quota)
        placed[:, label] += quota


def _largest_remainder(need: np.ndarray, total: int) -> np.ndarray:
    """Round `need`, scaled to add up to `total`, to integers that do."""
    need = need if need.sum() > 0 else np.ones_like(need)
    exact = need * (total / need.sum())
    quota = np.floor(exact).astype(np.int64)
    rest = np.argsort(-(exact - quota), kind="stable")[: total - int(quota.sum())]
    quota[rest] += 1
    return quota


def _mend_empty(
    units: Units,
    labels: np.ndarray,
    assignment: np.ndarray,
    placed: np.ndarray,
    parts: list[str],
    classes: Sequence[str],
    thin: bool,
) -> None:
    """Where rounding left a part without a class, move the smallest unit of that class from the part that has most."""
    for label in range(len(classes)):
        for part in range(len(parts)):
            if placed[part, label] > 0:
                continue
            owners = map(units.at, units.owners(labels, label).tolist())
            movable = [u for u in owners if _spares(u, labels, int(assignment[u[0]]), placed)]
            if not movable and thin:
                continue
            if not movable:
                raise BadInput(
                    f"class {classes[label]!r} cannot be in {parts[part]!r} without cutting a group",
                    "split",
                    "choose other shares or another --seed",
                )
            unit = min(movable, key=lambda u: (len(u), -placed[assignment[u[0]], label]))
            counts = np.bincount(labels[unit], minlength=len(classes))
            placed[assignment[unit[0]]] -= counts
            placed[part] += counts
            assignment[unit] = part


def _spares(unit: np.ndarray, labels: np.ndarray, home: int, placed: np.ndarray) -> bool:
    """Whether the unit's part keeps every class of the unit when the unit leaves."""
    counts = np.bincount(labels[unit], minlength=placed.shape[1])
    return bool((placed[home] - counts)[counts > 0].min() > 0)
