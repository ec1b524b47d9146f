"""Exact and near duplicates: equal bytes, and images that show the same field turned, flipped, cropped or re-encoded.

Up to some 10^4 images all pairs are compared by their low frequencies (`shards.lowfrequency`), which also finds
fields that were photographed twice; beyond, candidates come from sorted hashes (`shards.nearhash`), never from all
pairs. Either way a pair is confirmed on its pixels, aligned (`shards.alignment`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from shards.alignment import compare
from shards.closest import closest, ends
from shards.errors import BadInput
from shards.features import ORIENTATIONS, inverse
from shards.heap import give_back
from shards.lowfrequency import alike, describe
from shards.nearhash import candidates
from shards.parallel import Processes, threaded
from shards.spooled import Records, whole

PAIR_DTYPE = np.dtype(
    [
        ("a", "<i8"),  # position of the first image
        ("b", "<i8"),  # position of the second image, b > a
        ("orientation", "u1"),  # orient(picture b, orientation) fits picture a
        ("correlation", "<f4"),  # of their fine structure once aligned, -1..1
    ]
)

ALL_PAIRS = 16_384  # images up to which all pairs are compared: a few seconds on two cores
_SIMILAR = (
    0.5,
    0.6,
)  # correlation of low frequencies that makes a pair worth aligning; copies have 0.8, shifted fields 0.6
_SMALL = 4096  # images up to which the lower of the two is used
_ROOM = 1 << 16  # similar pairs that are all aligned; of more than these
_MOST = 8 * _ROOM  # similar pairs that a strip holds before it leaves out those that are too many
_PER_IMAGE = 8  # at least the most similar ones of each image
_COMPARED = 1 << 16  # pairs aligned before the next ones are looked at
_PLENTY = 1 << 19  # candidates that are all compared: of more than these only what can still connect something
_ENOUGH = 8  # pairs that an image is in before those within its cluster are left out
_STRIP = 1024  # images compared with themselves and all later ones at a time


@dataclass
class LeftOut:
    """What a search for near-duplicates left out because very many pictures are alike.

    Attributes:
        far: whether the least similar of the pairs that were too many were not compared.
        joined: pairs that were not compared because both images were in pairs enough, and of one cluster already.
    """

    far: bool = False
    joined: int = 0

    def findings(self) -> dict[str, object]:
        """Return what dataset.json and the JSON of a scan say of it; {} if nothing was left out."""
        found: dict[str, object] = {"near_pairs_known": self.joined} if self.joined else {}
        return {**found, "near_pairs_bounded": "only the closest of each image or of the set"} if self.far else found

    def sentence(self) -> str:
        """Return it in words; "" if nothing was left out."""
        said = [f"{self.joined:,} pairs of images that are in one cluster anyway"] if self.joined else []
        said += ["all but the closest pairs of each image or of the set"] if self.far else []
        return f"very many pictures are alike: not compared are {' and '.join(said)}" if said else ""


def exact_groups(digests: Sequence[str] | NDArray[np.bytes_]) -> list[list[int]]:
    """Return the positions that share a digest: groups of two and more, each sorted, ordered by their first member."""
    texts = np.asarray(digests)
    order = np.argsort(texts, kind="stable")
    again = np.flatnonzero(texts[order[1:]] == texts[order[:-1]]) + 1
    runs = np.split(again, np.flatnonzero(np.diff(again) > 1) + 1) if len(again) else []
    return sorted(order[run[0] - 1 : run[-1] + 1].tolist() for run in runs)


def near_pairs(
    features: Records,
    *,
    correlation: float | None = None,
    min_contrast: float = 1.0,
    all_pairs: int = ALL_PAIRS,
    workers: int = 1,
    left_out: LeftOut | None = None,
) -> NDArray[np.void]:
    """Find pairs of images that show the same field, in any of the eight orientations of the square.

    Args:
        features: records of `shards.features.FEATURES_DTYPE`, one per image.
        correlation: the aligned correlation of fine structure that confirms a pair; None: what `default_correlation`
        says.
        min_contrast: images whose channels all have a smaller standard deviation (of 255) are never paired: they show
        nothing.
        all_pairs: images up to which all pairs are compared; more are searched by their hashes.
        workers: threads and processes. The result does not depend on it.
        left_out: is told what was not looked at.

    Returns:
        Records of PAIR_DTYPE, one per pair of images, sorted by (a, b). Where a picture has very many copies not all of
        their pairs need be listed, but all copies are connected.
    """
    left_out = left_out or LeftOut()
    busy = np.flatnonzero(whole(features["std"]).max(axis=1, initial=0) >= min_contrast)
    if len(busy) <= all_pairs:
        codes, left_out.far = _similar(features["thumbnail"][busy], workers)
    else:
        codes, left_out.far = candidates(whole(features["hash"])[busy], workers=workers)
    give_back()
    least = default_correlation(len(busy)) if correlation is None else correlation
    found = [np.zeros(0, PAIR_DTYPE)]
    with Processes(workers) as processes:
        for some in _worthwhile(codes, len(busy), found, left_out):
            turns = some % ORIENTATIONS
            a, b = ends(some, len(busy))
            sure = compare(features["thumbnail"], busy[a], features["thumbnail"], busy[b], turns, processes)
            found.append(_confirmed(a, b, turns, sure, least))
    pairs = _best(np.concatenate(found))
    pairs["a"], pairs["b"] = busy[pairs["a"]], busy[pairs["b"]]
    return pairs


def _worthwhile(
    codes: NDArray[np.int64], images: int, found: list[NDArray[np.void]], left_out: LeftOut
) -> Iterator[NDArray[np.int64]]:
    """Yield the codes to be compared, some thousand at a time; `found` are the pairs that were confirmed so far.

    Of a crowd of m alike pictures not all m * m / 2 pairs are compared: once both images of a pair are in _ENOUGH
    pairs and in one cluster, what it says is known. Clusters stay as they would be; only in a crowd are there that many
    pairs.
    """
    if len(codes) <= _PLENTY:
        yield from (codes[start : start + _COMPARED] for start in range(0, len(codes), _COMPARED))
        return
    cluster, seen = np.arange(images), np.zeros(images, np.int64)
    for start in range(0, len(codes), _COMPARED):
        some = codes[start : start + _COMPARED]
        a, b = ends(some, images)
        known = (cluster[a] == cluster[b]) & (np.minimum(seen[a], seen[b]) >= _ENOUGH)
        left_out.joined += int(known.sum())
        yield some[~known]
        for end in ("a", "b"):
            np.add.at(seen, found[-1][end], 1)
        cluster = connected(images, np.stack([cluster[found[-1]["a"]], cluster[found[-1]["b"]]], axis=1))[cluster]


def default_correlation(images: int) -> float:
    """Return the least correlation of a pair: 0.81 for up to 8,191 images, 0.01 more for each doubling, 0.88 at 10^6.

    The more pairs there are, the better the best of the chance resemblances is. Of 10^7 pairs of different fields of
    public sets none reaches 0.7; copies cropped by up to 3 % a side and re-encoded stay above 0.85, nearly all above
    0.9.
    """
    return min(0.9, 0.81 + 0.01 * max(0, max(images, 1).bit_length() - 13))


def connected(images: int, pairs: NDArray) -> NDArray[np.int64]:
    """Return for each image the smallest image that it is connected with by pairs, int64 [images]; itself if by none.

    Args:
        images: how many there are.
        pairs: records with fields a and b (as `near_pairs` returns), or integers [pairs, 2].

    Raises:
        BadInput: a pair names an image that does not exist.
    """
    columns = (
        (pairs["a"], pairs["b"]) if pairs.dtype.names else (pairs.reshape(-1, 2)[:, 0], pairs.reshape(-1, 2)[:, 1])
    )
    if len(pairs) and not 0 <= min(c.min() for c in columns) <= max(c.max() for c in columns) < images:
        raise BadInput(f"a pair names an image outside of 0..{images - 1}")
    linked, places = np.unique(np.concatenate(columns), return_inverse=True)  # most images are in no pair
    parent = list(range(len(linked)))

    def root(image: int) -> int:
        while parent[image] != image:
            parent[image] = image = parent[parent[image]]
        return image

    for a, b in places.reshape(2, -1).T.tolist():
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    result = np.arange(images)
    result[linked] = linked[list(map(root, range(len(linked))))]
    return result


def _similar(thumbnails: NDArray[np.uint8], workers: int) -> tuple[NDArray[np.int64], bool]:
    """Return codes (a * images + b) * 8 + orientation, a < b, of the pairs with similar low frequencies.

    Return also whether they were too many and only the closest of each image are among them.
    """
    images, descriptors = len(thumbnails), describe(thumbnails)
    least = _SIMILAR[images > _SMALL]

    def strip(start: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        codes, values = np.zeros(0, np.int64), np.zeros(0, np.float32)
        for one, other, turn, similar in alike(descriptors[start : start + _STRIP], descriptors[start:], least):
            new = one < other
            # The first image turned looks like the second: turned back, the second looks like the first.
            back = int(inverse(np.array(turn)))
            found = ((one[new] + start) * images + other[new] + start) * ORIENTATIONS + back
            codes, values = np.append(codes, found), np.append(values, similar[new])
            if len(codes) > _MOST:  # very many alike pictures would fill the memory
                codes, values = closest(codes, values, images, _ROOM, _PER_IMAGE)
        return codes, values

    with threadpool_limits(1):
        strips = list(threaded(strip, range(0, images, _STRIP), workers))
    codes = np.concatenate([np.zeros(0, np.int64), *(codes for codes, _ in strips)])
    values = np.concatenate([np.zeros(0, np.float32), *(values for _, values in strips)])
    kept = np.sort(closest(codes, values, images, _ROOM, _PER_IMAGE)[0])
    return kept, len(codes) > _ROOM


def _confirmed(
    a: NDArray[np.int64], b: NDArray[np.int64], turns: NDArray[np.int64], sure: NDArray[np.float64], least: float
) -> NDArray[np.void]:
    """Return the pairs that correlate by at least `least`."""
    places = np.flatnonzero(sure >= least)
    pairs = np.zeros(len(places), PAIR_DTYPE)
    for name, values in (("a", a), ("b", b), ("orientation", turns), ("correlation", sure)):
        pairs[name] = values[places]
    return pairs


def _best(pairs: NDArray[np.void]) -> NDArray[np.void]:
    """Return each pair once, in the orientation that fits best."""
    pairs = pairs[np.lexsort((pairs["orientation"], -pairs["correlation"], pairs["b"], pairs["a"]))]
    new = np.ones(len(pairs), bool)
    new[1:] = (pairs["a"][1:] != pairs["a"][:-1]) | (pairs["b"][1:] != pairs["b"][:-1])
    return pairs[new]
