"""Exact and near duplicates: images with equal bytes, and images that show the same field turned, flipped, cropped or re-encoded.

The near search never compares all pairs. It is locality-sensitive hashing by bit sampling (Indyk and Motwani, "Approximate
nearest neighbors", STOC 1998; Gionis et al., VLDB 1999): the 128-bit hashes of all images, in all eight orientations, are
sorted by several random choices of their low-frequency bits; images that meet under one key and differ in few enough of all
bits are candidates; each candidate is then confirmed on its pixels (`shards.alignment`). Everything is integer arithmetic or
exact, so the pairs depend on the features alone, not on the machine or the number of threads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from shards.alignment import aligned_correlation
from shards.errors import BadInput
from shards.features import ORIENTATIONS, inverse, orient, orient_hashes

PAIR_DTYPE = np.dtype(
    [
        ("a", "<i8"),  # position of the first image
        ("b", "<i8"),  # position of the second image, b > a
        ("orientation", "u1"),  # orient(picture b, orientation) fits picture a
        ("correlation", "<f4"),  # of their fine structure once aligned, -1..1
    ]
)

BANDS = 48  # choices of bits; a copy that is missed by one is found by another
_KEY_POOL = 40  # pairs of frequencies, from the lowest on, that keys are chosen from: the bits that survive cropping best
_CANDIDATES = 4e8  # looked at in all bands if bits were random: what the length of the keys is chosen for
_NEIGHBOURS = 32  # images on either side that an image meets under one key, at most: heavy keys cost no more than others
_PER_IMAGE = 64  # candidates confirmed per image on average, at most; where there are more the closest hashes are taken
_MOST = 1 << 23  # candidates confirmed in all, at most
_SLICE = 1 << 16  # sorted hashes looked at together: they fit the processor's cache
_BLOCK = 1 << 20  # candidates compared at a time
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)  # odd multipliers that spread bits upwards


def exact_groups(digests: Sequence[str]) -> list[list[int]]:
    """Return the positions that share a digest: groups of two and more, each sorted, ordered by their first member."""
    places = defaultdict(list)
    for position, digest in enumerate(digests):
        places[digest].append(position)
    return [group for group in places.values() if len(group) > 1]


def near_pairs(
    features: NDArray[np.void],
    *,
    correlation: float | None = None,
    distance: int | None = None,
    bands: int = BANDS,
    min_contrast: float = 1.0,
    workers: int = 2,
) -> NDArray[np.void]:
    """Find pairs of images that show the same field, in any of the eight orientations of the square.

    Args:
        features: records of `shards.features.FEATURES_DTYPE`, one per image.
        correlation: the aligned correlation of fine structure that confirms a pair; None: what `default_correlation` says.
        distance: bits out of 128 in which the hashes of a candidate may differ; None: what `default_distance` says.
        bands: choices of bits that candidates are looked for under; more find more and take longer.
        min_contrast: images whose channels all have a smaller standard deviation (of 255) are never paired: they show nothing.
        workers: threads. The result does not depend on it.

    Returns:
        Records of PAIR_DTYPE, one per pair of images, sorted by (a, b). A key that very many images share is searched among
        neighbours only, so of m copies of one picture not all m (m - 1) / 2 pairs are listed, but all copies are connected.
    """
    busy = np.flatnonzero(features["std"].max(axis=1) >= min_contrast) if len(features) else np.zeros(0, np.int64)
    if len(busy) < 2:
        return np.zeros(0, PAIR_DTYPE)
    allowed = default_distance(len(busy)) if distance is None else distance
    least = default_correlation(len(busy)) if correlation is None else correlation
    words = features["hash"][busy]
    turned = np.stack([orient_hashes(words, orientation) for orientation in range(ORIENTATIONS)])
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda mask: _candidates(turned, mask, allowed), _masks(len(busy), bands)))
        codes = _tighten(turned, np.unique(np.concatenate(found)))
        pairs, turns = np.divmod(codes, ORIENTATIONS)
        a, b = (busy[place] for place in np.divmod(pairs, len(busy)))
        blocks = [slice(start, start + 4096) for start in range(0, len(codes), 4096)]
        sure = list(pool.map(lambda block: _confirm(features["thumbnail"], a[block], b[block], turns[block]), blocks))
    return _best(a, b, turns, np.concatenate([*sure, np.zeros(0)]), least)


def default_correlation(images: int) -> float:
    """Return the least correlation of a pair: 0.80 for up to 8,192 images, 0.012 more for each doubling, 0.884 at 10^6.

    The more pairs there are, the better the best of the chance resemblances is. Of 10^7 pairs of different fields of public
    sets none reaches 0.7; copies cropped by up to 3 % a side and re-encoded stay above 0.85, nearly all above 0.9.
    """
    return min(0.9, 0.8 + 0.012 * max(0, max(images, 1).bit_length() - 13))


def default_distance(images: int) -> int:
    """Return the bits out of 128 that may differ: 44 for up to 8,192 images, 2 fewer for each doubling, 30 at 10^6.

    Copies cropped by up to 3 % a side and re-encoded differ in 14 bits in the median and 28 at most; of the best of eight
    orientations of two unrelated smears one in 10^3 has up to 42, one in 10^5 up to 35.
    """
    return max(24, min(44, 30 + 2 * (20 - max(images, 1).bit_length())))


def connected(images: int, pairs: NDArray) -> NDArray[np.int64]:
    """Return for each image the smallest image that it is connected with by pairs, int64 [images]; itself if by none.

    Args:
        images: how many there are.
        pairs: records with fields a and b (as `near_pairs` returns), or integers [pairs, 2].

    Raises:
        BadInput: a pair names an image that does not exist.
    """
    columns = (pairs["a"], pairs["b"]) if pairs.dtype.names else (pairs.reshape(-1, 2)[:, 0], pairs.reshape(-1, 2)[:, 1])
    if len(pairs) and not 0 <= min(c.min() for c in columns) <= max(c.max() for c in columns) < images:
        raise BadInput(f"a pair names an image outside of 0..{images - 1}")
    parent = list(range(images))

    def root(image: int) -> int:
        while parent[image] != image:
            parent[image] = image = parent[parent[image]]
        return image

    for a, b in zip(*(column.tolist() for column in columns), strict=True):
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return np.array([root(image) for image in range(images)], np.int64)


def _masks(images: int, bands: int) -> list[NDArray[np.uint64]]:
    """Return the bits of the two hash words that make up each band's key, uint64 [2] each."""
    wanted = bands * ORIENTATIONS * images**2 / _CANDIDATES
    length = int(np.clip(np.ceil(np.log2(wanted)), 8, 32))
    draw = np.random.RandomState(0)  # the generator whose stream numpy promises never to change
    masks = []
    for _ in range(bands):
        bits = draw.permutation(2 * _KEY_POOL)[:length]
        words = [np.uint64(sum(1 << int(bit) for bit in bits[bits % 2 == word] // 2)) for word in (0, 1)]
        masks.append(np.array(words, np.uint64))
    return masks


def _candidates(turned: NDArray[np.uint64], mask: NDArray[np.uint64], allowed: int) -> NDArray[np.int64]:
    """Return sorted codes ((a * images + b) * 8 + orientation) of the candidates that meet under one band's key.

    Args:
        turned: hashes of all images in all orientations, uint64 [8, images, 2].
        mask: the bits of the key, uint64 [2].
        allowed: bits in which a candidate may differ.
    """
    images = turned.shape[1]
    place_bits = np.uint64((images * ORIENTATIONS - 1).bit_length())
    entries = np.empty((ORIENTATIONS, images), np.uint64)
    for turn, words in enumerate(turned):
        keys = (words[:, 0] & mask[0]) * _MIX[0] + (words[:, 1] & mask[1]) * _MIX[1]
        entries[turn] = keys >> place_bits << place_bits
        entries[turn] |= np.arange(turn, images * ORIENTATIONS, ORIENTATIONS, dtype=np.uint64)
    entries = entries.ravel()
    entries.sort()
    first_of_key = entries[::_SLICE] >> place_bits << place_bits
    cuts = np.unique(np.append(np.searchsorted(entries, first_of_key), len(entries)))
    codes = [
        _meetings(turned, entries[first:last], place_bits, allowed)
        for first, last in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)
    ]
    return _tighten(turned, np.unique(np.concatenate(codes)))


def _meetings(
    turned: NDArray[np.uint64], entries: NDArray[np.uint64], place_bits: np.uint64, allowed: int
) -> NDArray[np.int64]:
    """Return the codes of the close ones among sorted entries (key, image, orientation) of which every key is whole."""
    places = (entries & ((np.uint64(1) << place_bits) - np.uint64(1))).astype(np.int64)
    image, turn = places >> 3, places & 7
    words = orient_hashes(turned[0].take(image, axis=0), turn)  # copied in order of the keys: neighbours to compare are neighbours in memory
    upright = turn == 0  # the image as it is: partners[0], partners[1], ...
    partners, partner_words = image[upright], words[upright]
    met = np.append(0, np.cumsum(upright))  # partners before each entry
    starts = np.flatnonzero(np.diff(entries >> place_bits, prepend=~entries[0] >> place_bits))
    ends = np.append(starts[1:], len(entries))
    run = np.repeat(np.arange(len(starts)), ends - starts)
    low = np.maximum(met[:-1] - _NEIGHBOURS, met[starts][run])
    counts = np.minimum(met[:-1] + _NEIGHBOURS, met[ends][run]) - low
    codes = []
    for part in _parts(counts):
        entry = np.repeat(np.arange(part.start, part.stop), counts[part])
        partner = np.arange(len(entry)) + np.repeat(low[part] - np.cumsum(counts[part]) + counts[part], counts[part])
        differing = np.bitwise_count(words[entry, 0] ^ partner_words[partner, 0])
        differing += np.bitwise_count(words[entry, 1] ^ partner_words[partner, 1])
        kept = np.flatnonzero(differing <= allowed)
        codes.append(_codes(image[entry[kept]], turn[entry[kept]], partners[partner[kept]], turned.shape[1]))
    return np.concatenate([*codes, np.zeros(0, np.int64)])


def _parts(counts: NDArray[np.int64]) -> list[slice]:
    """Return slices of `counts` whose sums are at most about _BLOCK each."""
    total = np.cumsum(counts)
    edges = np.searchsorted(total, np.arange(_BLOCK, int(total[-1]), _BLOCK)) + 1
    bounds = [0, *edges.tolist(), len(counts)]
    return [slice(first, last) for first, last in zip(bounds[:-1], bounds[1:], strict=True) if first < last]


def _codes(
    image: NDArray[np.int64], turn: NDArray[np.int64], other: NDArray[np.int64], images: int
) -> NDArray[np.int64]:
    """Return (a * images + b) * 8 + orientation, a < b, of images whose orientation `turn` looks like the other image."""
    turn = np.where(other < image, turn, inverse(turn))
    codes = (np.minimum(image, other) * images + np.maximum(image, other)) * ORIENTATIONS + turn
    return np.asarray(codes[image != other])


def _tighten(turned: NDArray[np.uint64], codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the codes, those of the most distant hashes left out if they are more than can be confirmed in good time."""
    images = turned.shape[1]
    room = max(1 << 16, min(_PER_IMAGE * images, _MOST))
    if len(codes) <= room:
        return codes
    pairs, turns = np.divmod(codes, ORIENTATIONS)
    a, b = np.divmod(pairs, images)
    distance = np.bitwise_count(turned[0, a] ^ turned[turns, b]).sum(axis=1, dtype=np.uint8)
    within = np.cumsum(np.bincount(distance))
    return codes[distance <= max(0, int(np.searchsorted(within, room, side="right")) - 1)]


def _confirm(
    thumbnails: NDArray[np.uint8], a: NDArray[np.int64], b: NDArray[np.int64], turns: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the aligned correlation of each candidate."""
    second = thumbnails[b]
    for orientation in range(1, ORIENTATIONS):
        chosen = turns == orientation
        second[chosen] = orient(second[chosen], orientation)
    return aligned_correlation(thumbnails[a], second)


def _best(
    a: NDArray[np.int64], b: NDArray[np.int64], turns: NDArray[np.int64], sure: NDArray[np.float64], least: float
) -> NDArray[np.void]:
    """Return the confirmed pairs, each once, in the orientation that fits best."""
    order = np.flatnonzero(sure >= least)
    order = order[np.lexsort((turns[order], -sure[order], b[order], a[order]))]
    pairs = np.zeros(len(order), PAIR_DTYPE)
    for name, values in (("a", a), ("b", b), ("orientation", turns), ("correlation", sure)):
        pairs[name] = values[order]
    new = np.ones(len(pairs), bool)
    new[1:] = (pairs["a"][1:] != pairs["a"][:-1]) | (pairs["b"][1:] != pairs["b"][:-1])
    return pairs[new]
