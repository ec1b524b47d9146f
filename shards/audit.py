"""Independent check of a split: does a group, a file or a near-duplicate picture lie in two parts?

It looks at the finished rows, knows nothing of how they were grouped, and does not use the hashes that large sets are
searched by. Pictures in different parts are compared by the correlation of their low frequencies in all eight
orientations (`shards.lowfrequency`); pairs that correlate are aligned and compared pixel by pixel
(`shards.alignment`); where very many are alike, the most similar ones of each picture.

Every pair of pictures in different parts is compared where that is affordable (some 2 * 10^4 images in seconds).
Beyond, the set is cut several times into cells of similar pictures (`shards.trees`) and pairs within a cell are
compared. Either way the audit then tries itself: copies of pictures of the set, cropped and turned, go through the
same search, and the share that it finds is reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from shards.alignment import compare
from shards.closest import closest
from shards.errors import BadInput
from shards.features import ORIENTATIONS, orient
from shards.heap import give_back
from shards.lowfrequency import SIDE, Crowd, alike, described, turned
from shards.mapped import let_go
from shards.parallel import Processes, chunked, threaded
from shards.spooled import Records, alongside, blocks
from shards.trees import INVARIANTS, cells, invariants

CORRELATION = (
    0.9  # not below what the search before the split uses for any number of images: what it grouped cannot leak
)
AFFORDABLE = 4e8  # pairs that are all compared, 5 to 10 s on two cores; more than these are searched in cells
# Correlation of low frequencies that makes a pair worth aligning: where all pairs are compared, and in cells. Copies
# cropped by 3 % a side have 0.82 and more, fields that were photographed twice, shifted by 6 %, 0.6.
_SIMILAR = {True: 0.6, False: 0.7}
_TREES, _CELL = 20, 1024  # ways to cut a large set, and images in a cell at most
_TRIALS = 400
_COMPARED = 1 << 16  # pairs aligned before the next ones are looked at
_ROOM, _EACH = 1 << 19, 8  # similar pairs that are all aligned; of more, the most similar of each image, at least _EACH
_CROWDED = 1 << 15  # similar pairs in a block of descriptors and one orientation from which only the most similar count
_STRIP = 512  # rows that a thread is given at a time
_JOINED = 16  # of which so many are joined with what was found before
BOUNDED = "very many pictures in different parts are alike: only the most similar ones of each were aligned"
EXAMPLES = 20  # leaks that dataset.json lists, at most; all are counted
_CROP = 0.03  # share of the side that a trial copy loses at each edge, at most


_Similar = tuple[NDArray[np.int64], NDArray[np.float32]]


@dataclass(frozen=True)
class Leak:
    """Two rows in different parts that must not be: they share a group, their bytes, or what they show."""

    kind: Literal["group", "exact", "near"]
    a: int
    b: int
    detail: str


@dataclass(frozen=True)
class Audit:
    """What was found, and how much was looked at.

    Attributes:
        leaks: one per group and pair of parts, one per digest and pair of parts, one per pair of near-duplicates.
        correlation: the least aligned correlation of a near-duplicate.
        pairs: pairs of pictures in different parts.
        compared: how many of them were compared; all, or those that met in a cell (counted again in each).
        exhaustive: whether all were compared.
        trials: copies that the audit made to try itself, cropped by up to 3 % a side, in all orientations.
        found: how many of them it found.
        bounded: whether so many pairs were similar that only the most similar ones of each picture were aligned.
    """

    leaks: list[Leak]
    correlation: float
    pairs: int
    compared: int
    exhaustive: bool
    trials: int
    found: int
    bounded: bool = False


def audit(
    parts: Sequence[str],
    groups: Sequence[str],
    digests: Sequence[str] | NDArray[np.bytes_],
    thumbnails: Records,
    *,
    correlation: float = CORRELATION,
    affordable: float = AFFORDABLE,
    workers: int = 1,
) -> Audit:
    """Look for what crosses from one part of a split into another.

    Args:
        parts: the part of each row.
        groups: its group (patient, slide, cluster of duplicates); "" where it stands alone.
        digests: the sha256 of its bytes, as hexadecimal text or `S32`; rows with equal ones are the same file.
        thumbnails: uint8 [rows, t, t], as `shards.features` makes them.
        correlation: the aligned correlation of fine structure from which on two pictures are the same.
        affordable: pairs up to which all are compared.
        workers: threads and processes. The result does not depend on it.

    Raises:
        BadInput: the arguments differ in length.
    """
    if not len(parts) == len(groups) == len(digests) == len(thumbnails):
        raise BadInput(
            f"{len(parts)} parts, {len(groups)} groups, {len(digests)} digests, {len(thumbnails)} thumbnails"
        )
    leaks = _shared(parts, ((row, group) for row, group in enumerate(groups) if group), "group")
    leaks += _shared(parts, _repeated(digests), "exact")
    give_back()
    names = sorted(set(parts))
    places = {name: place for place, name in enumerate(names)}
    part = np.array([places[name] for name in parts], np.int64)
    sizes = np.bincount(part, minlength=len(names)).astype(object)  # Python's integers do not overflow
    pairs = (sum(sizes) ** 2 - sum(sizes**2)) // 2
    with Processes(workers) as processes:
        search = _Search(part, thumbnails, exhaustive=pairs <= affordable, processes=processes)
        for a, b, value in search.near(correlation):
            if digests[a] != digests[b]:
                leaks.append(Leak("near", a, b, f"aligned correlation {value:.3f}, in {parts[a]} and {parts[b]}"))
        trials, found = search.trials(correlation)
    return Audit(leaks, correlation, int(pairs), search.compared, search.exhaustive, trials, found, search.bounded)


def summary(
    result: Audit, names: Sequence[str] | Mapping[int, str] | None = None, examples: int = EXAMPLES
) -> dict[str, Any]:
    """Return what dataset.json says about the audit.

    Args:
        names: what to call the rows in the examples; None: their numbers.
        examples: leaks that are listed, at most; all are counted.
    """
    every = "all pairs in different parts" if result.exhaustive else "pairs of similar pictures in different parts"
    kinds = [leak.kind for leak in result.leaks]
    return {
        "method": f"shared groups; equal bytes; {every}, by low frequencies in eight orientations, then aligned pixels",
        "threshold": result.correlation,
        "pairs": result.pairs,
        "pairs_compared": result.compared,
        "exhaustive": result.exhaustive,
        "trial_copies": result.trials,
        "trial_copies_found": result.found,
        **({"pairs_bounded": BOUNDED} if result.bounded else {}),
        "leaks": len(result.leaks),
        "leaks_by_kind": {kind: kinds.count(kind) for kind in ("group", "exact", "near")},
        "examples": [
            {"kind": leak.kind, **{end: names[row] if names else row for end, row in (("a", leak.a), ("b", leak.b))}}
            | {"detail": leak.detail}
            for leak in result.leaks[:examples]
        ],
    }


def _repeated(digests: Sequence[str] | NDArray[np.bytes_]) -> Iterator[tuple[int, str]]:
    """Yield row and digest, as text, where other rows have the same."""
    _, kind, count = np.unique(np.asarray(digests), return_inverse=True, return_counts=True)
    for row in np.flatnonzero(count[kind] > 1).tolist():
        digest = digests[row]
        yield row, digest if isinstance(digest, str) else digest.ljust(32, b"\0").hex()


def _shared(parts: Sequence[str], values: Iterable[tuple[int, str]], kind: Literal["group", "exact"]) -> list[Leak]:
    """Return a leak for each value and each part after the first that has it, between the first rows of both.

    `values` are the rows that have one, in order, and what they have.
    """
    seen: dict[str, dict[str, int]] = {}
    leaks = []
    for row, value in values:
        part = parts[row]
        first = seen.setdefault(value, {})
        if first and part not in first:
            home, origin = next(iter(first.items()))
            said = f"group {value!r}" if kind == "group" else f"sha256 {value[:12]}"
            leaks.append(Leak(kind, origin, row, f"{said}, in {home} and {part}"))
        first.setdefault(part, row)
    return leaks


class _Search:
    """Near-duplicates across parts: descriptors, the cells in which pairs are compared, and the comparison.

    The pictures of the trial copies stand behind those of the set and belong to no part.
    """

    def __init__(self, part: NDArray[np.int64], thumbnails: Records, *, exhaustive: bool, processes: Processes) -> None:
        self.part, self.thumbnails, self.exhaustive, self.processes = part, thumbnails, exhaustive, processes
        self.compared, self.bounded, self.least = 0, False, _SIMILAR[exhaustive]
        rng = np.random.RandomState(0)
        self.tried = rng.permutation(len(part))[:_TRIALS]
        self.copies = _cropped_copies(thumbnails[self.tried], rng)
        found = described(thumbnails, self.copies, np.int16)
        self.descriptors = alongside(thumbnails, found, np.int16, SIDE * SIDE)
        self.cells = [np.zeros(len(self.descriptors), np.int32)]
        if not exhaustive:
            points = alongside(thumbnails, map(invariants, blocks(self.descriptors)), np.int16, INVARIANTS)
            self.cells = [alongside(thumbnails, [cells(points, _CELL, rng)], np.int32) for _ in range(_TREES)]
        give_back()

    def near(self, correlation: float) -> Iterator[tuple[int, int, float]]:
        """Yield (a, b, aligned correlation) of the near-duplicates in different parts, a < b, in order."""
        rows = len(self.part)
        codes, likeness = np.zeros(0, np.int64), np.zeros(0, np.float32)
        with threadpool_limits(1):
            for tree in self.cells:  # one after the other: the jobs of all of them would take much memory
                jobs = list(self._jobs(tree))
                self.compared += sum(len(few) * len(others) for few, others in jobs)
                found = threaded(lambda job: self._similar(*job), jobs, self.processes.count)
                for some in chunked(found, _JOINED):
                    codes, likeness = self._joined([(codes, likeness), *some])
                let_go()
        give_back()
        best: dict[tuple[int, int], float] = {}
        for start in range(0, len(codes), _COMPARED):
            pairs, turns = np.divmod(codes[start : start + _COMPARED], ORIENTATIONS)
            a, b = np.divmod(pairs, rows)
            values = compare(self.thumbnails, a, self.thumbnails, b, turns, self.processes)
            for place in np.flatnonzero(values >= correlation):
                one, other = sorted((int(a[place]), int(b[place])))
                best[one, other] = max(float(values[place]), best.get((one, other), 0))
        yield from ((one, other, value) for (one, other), value in sorted(best.items()))

    def trials(self, correlation: float) -> tuple[int, int]:
        """Return how many copies were made and how many of them the search finds."""
        give_back()
        rows = len(self.part)
        own, copied = (self.descriptors[some].astype(np.float32) for some in (self.tried, slice(rows, None)))
        let_go()
        meets = np.any([tree[rows:] == tree[self.tried] for tree in self.cells], axis=0)
        fits = np.zeros(len(self.tried), bool)
        for turn in range(ORIENTATIONS):
            like = turned(own, turn)
            chosen = np.flatnonzero(meets & ((copied * like).sum(axis=1) >= self.least * (like * like).sum(axis=1)))
            turns = np.full(len(chosen), turn)
            aligned = compare(self.copies, chosen, self.thumbnails, self.tried[chosen], turns, self.processes)
            fits[chosen[aligned >= correlation]] = True
        return len(fits), int(fits.sum())

    def _jobs(self, tree: NDArray[np.int32]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield rows of one part and rows of other parts in the same cell, to be compared with each other."""
        order = np.argsort(tree[: len(self.part)], kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(tree[order])) + 1):
            by_part = [members[self.part[members] == part] for part in np.unique(self.part[members])]
            by_part.sort(key=len)
            for place, few in enumerate(by_part[:-1]):
                others = np.concatenate(by_part[place + 1 :])
                yield from ((few[start : start + _STRIP], others) for start in range(0, len(few), _STRIP))

    def _similar(self, few: NDArray[np.int64], others: NDArray[np.int64]) -> _Similar:
        """Return codes (a * rows + b) * 8 + orientation of the similar ones, turned b, of the few, is like a; how."""
        rows = len(self.part)
        found = [(np.zeros(0, np.int64), np.zeros(0, np.float32))]
        first, second = (self.descriptors[some].astype(np.float32) for some in (few, others))
        crowd = Crowd(_CROWDED, max(_EACH, _ROOM // rows))
        for one, other, turn, values in alike(first, second, self.least, crowd):
            found.append(((others[other] * rows + few[one]) * ORIENTATIONS + turn, values))
        self.bounded |= crowd.met
        return self._joined(found)

    def _joined(self, found: list[_Similar]) -> _Similar:
        """Return each pair once; of too many the most similar of each picture."""
        codes, first = np.unique(np.concatenate([codes for codes, _ in found]), return_index=True)
        values = np.concatenate([values for _, values in found])[first]
        self.bounded |= len(codes) > _ROOM
        return closest(codes, values, len(self.part), _ROOM, _EACH)


def _cropped_copies(thumbnails: NDArray[np.uint8], rng: np.random.RandomState) -> NDArray[np.uint8]:
    """Return the thumbnails cropped at random by up to _CROP at each edge and turned into a random orientation."""
    side = thumbnails.shape[-1]
    copies = thumbnails.copy()
    for copy in copies:
        weights = []
        for _ in range(2):
            first, last = rng.uniform(0, _CROP, 2) * [1, -1] * side + [0, side - 1]
            place = np.linspace(first, last, side)
            weights.append(np.maximum(1 - np.abs(place[:, None] - np.arange(side)), 0))
        copy[:] = orient(np.rint(weights[0] @ copy @ weights[1].T), rng.randint(ORIENTATIONS))
    return copies
