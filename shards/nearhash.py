"""Candidates for near-duplicates among very many images: hashes that agree in some choice of bits, whichever way up.

Locality-sensitive hashing by bit sampling (Indyk and Motwani, "Approximate nearest neighbors", STOC 1998; Gionis et
al., VLDB 1999): the 128-bit hashes of all images, in all eight orientations, are sorted by several choices of their
low-frequency bits; images that meet under one key and differ in few enough of all bits are candidates. All of it is
integer arithmetic, so the candidates depend on the hashes alone, not on the machine or the number of threads.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shards.features import ORIENTATIONS, inverse, orient_hashes
from shards.parallel import threaded

_KEY_POOL = (
    40  # pairs of frequencies, from the lowest on, that keys are chosen from: the bits that survive cropping best
)
_MEETINGS = 4e8  # images that meet in all bands if bits were random: what the length of the keys is chosen for
_NEIGHBOURS = (
    32  # images on either side that an image meets under one key, at most: heavy keys cost no more than others
)
_PER_IMAGE = 64  # candidates per image on average, at most; where there are more the closest hashes are taken
_MOST = 1 << 23  # candidates in all, at most
_SLICE = 1 << 16  # sorted hashes looked at together: they fit the processor's cache
_BLOCK = 1 << 18  # hashes compared at a time
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)  # odd multipliers that spread bits upwards


def candidates(
    words: NDArray[np.uint64], *, distance: int | None = None, bands: int = 48, workers: int = 1
) -> tuple[NDArray[np.int64], bool]:
    """Return candidates, and whether they were too many and those of the most distant hashes are left out.

    Candidates are sorted codes (a * images + b) * 8 + orientation: b in that orientation looks like a, a < b.

    Args:
        words: hashes uint64 [images, 2], see `shards.features.hashes`.
        distance: bits out of 128 in which candidates may differ; None: what `default_distance` says.
        bands: choices of bits; more find more and take longer.
        workers: threads.

    A key that very many images share is searched among neighbours only: of m copies of one picture not all m (m - 1)
    / 2 pairs are listed, but each copy with the next ones.
    """
    if len(words) < 2:
        return np.zeros(0, np.int64), False
    allowed = most = default_distance(len(words)) if distance is None else distance

    def search(mask: NDArray[np.uint64]) -> NDArray[np.int64]:
        return _band(words, mask, allowed)

    found = np.zeros(0, np.int64)
    # Band by band and never more than a few at a time: many alike pictures would fill the memory.
    for codes in threaded(search, _masks(len(words), bands), workers):
        # Where there are too many, the bands that follow need not bring what would be left out.
        found, allowed = _joined(words, [found, codes], allowed, allowed < most)
    return found, allowed < most


def default_distance(images: int) -> int:
    """Return the bits out of 128 that may differ: 44 for up to 4,095 images, 2 fewer for each doubling, 28 at 10^6.

    Copies cropped by up to 3 % a side and re-encoded differ in 14 bits in the median and 28 at most; of the best of
    eight orientations of two unrelated smears one in 10^3 has up to 42, one in 10^5 up to 35.
    """
    return max(24, min(44, 28 + 2 * (20 - max(images, 1).bit_length())))


def _masks(images: int, bands: int) -> list[NDArray[np.uint64]]:
    """Return the bits of the two hash words that make up each band's key, uint64 [2] each."""
    wanted = bands * ORIENTATIONS * images**2 / _MEETINGS
    length = int(np.clip(np.ceil(np.log2(wanted)), 8, 32))
    draw = np.random.RandomState(0)  # the generator whose stream numpy promises never to change
    masks = []
    for _ in range(bands):
        bits = draw.permutation(2 * _KEY_POOL)[:length]
        words = [np.uint64(sum(1 << int(bit) for bit in bits[bits % 2 == word] // 2)) for word in (0, 1)]
        masks.append(np.array(words, np.uint64))
    return masks


def _band(words: NDArray[np.uint64], mask: NDArray[np.uint64], allowed: int) -> NDArray[np.int64]:
    """Return sorted codes ((a * images + b) * 8 + orientation) of the candidates that meet under one band's key.

    Args:
        words: hashes of all images, uint64 [images, 2].
        mask: the bits of the key, uint64 [2].
        allowed: bits in which a candidate may differ.
    """
    images = len(words)
    place_bits = np.uint64((images * ORIENTATIONS - 1).bit_length())
    entries = _entries(words, mask, place_bits)
    entries.sort()
    first_of_key = entries[::_SLICE] >> place_bits << place_bits
    cuts = np.unique(np.append(np.searchsorted(entries, first_of_key), len(entries)))
    codes: list[NDArray[np.int64]] = []
    for first, last in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        codes.append(_meetings(words, entries[first:last], place_bits, allowed))
        if sum(map(len, codes)) > 2 * _room(images):
            few, allowed = _joined(words, codes, allowed, False)
            codes = [few]
    return _joined(words, codes, allowed, False)[0]


def _entries(words: NDArray[np.uint64], mask: NDArray[np.uint64], place_bits: np.uint64) -> NDArray[np.uint64]:
    """Return, for all images in all orientations, the key and below it place_bits for image * 8 + orientation."""
    images = len(words)
    table = np.empty((ORIENTATIONS, images), np.uint64)
    for first in (0, 1):  # where a picture is transposed, its words change places
        chosen = [words[:, first] & mask[0], words[:, 1 - first] & mask[1]]
        for flips in range(4):
            turn = 4 * first + flips
            inverted = orient_hashes(np.zeros((1, 2), np.uint64), flips)[0] & mask
            keys = table[turn]
            np.multiply(chosen[0] ^ inverted[0], _MIX[0], out=keys)
            keys += (chosen[1] ^ inverted[1]) * _MIX[1]
            keys >>= place_bits
            keys <<= place_bits
            keys |= np.arange(turn, images * ORIENTATIONS, ORIENTATIONS, dtype=np.uint64)
    return table.ravel()


def _meetings(
    all_words: NDArray[np.uint64], entries: NDArray[np.uint64], place_bits: np.uint64, allowed: int
) -> NDArray[np.int64]:
    """Return the codes of the close ones among sorted entries (key, image, orientation) of which every key is whole."""
    places = (entries & ((np.uint64(1) << place_bits) - np.uint64(1))).astype(np.int64)
    image, turn = places >> 3, places & 7
    words = orient_hashes(
        all_words.take(image, axis=0), turn
    )  # copied in order of the keys: neighbours to compare are neighbours in memory
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
        codes.append(_codes(image[entry[kept]], turn[entry[kept]], partners[partner[kept]], len(all_words)))
    return np.concatenate([*codes, np.zeros(0, np.int64)])


def _parts(counts: NDArray[np.int64]) -> list[slice]:
    """Return slices of `counts` whose sums are at most about _BLOCK each."""
    total = np.cumsum(counts)
    edges = np.searchsorted(total, np.arange(_BLOCK, int(total[-1]), _BLOCK)) + 1
    bounds = [0, *edges.tolist(), len(counts)]
    return [slice(first, last) for first, last in pairwise(bounds) if first < last]


def _codes(
    image: NDArray[np.int64], turn: NDArray[np.int64], other: NDArray[np.int64], images: int
) -> NDArray[np.int64]:
    """Return (a * images + b) * 8 + orientation, a < b, of images that in orientation `turn` look like the other."""
    turn = np.where(other < image, turn, inverse(turn))
    codes = (np.minimum(image, other) * images + np.maximum(image, other)) * ORIENTATIONS + turn
    return np.asarray(codes[image != other])


def _room(images: int) -> int:
    """Return how many candidates there may be: as many as can be confirmed in good time."""
    return max(1 << 16, min(_PER_IMAGE * images, _MOST))


def _joined(
    words: NDArray[np.uint64], found: list[NDArray[np.int64]], allowed: int, farther: bool
) -> tuple[NDArray[np.int64], int]:
    """Return the codes of all lists, sorted, each once, and the bits in which they may differ: at most `allowed`.

    If they are too many, those of the most distant hashes are left out. Joined all at once or step by step, in any
    order, they are the same: what is too distant among some is too distant among all. `farther` says that some may
    differ in more bits than are allowed.
    """
    images = len(words)
    codes, room = np.unique(np.concatenate(found)), _room(images)
    if len(codes) <= room and not farther:
        return codes, allowed
    distance = np.empty(len(codes), np.uint8)
    for start in range(0, len(codes), _BLOCK):
        pairs, turns = np.divmod(codes[start : start + _BLOCK], ORIENTATIONS)
        a, b = np.divmod(pairs, images)
        differing = np.bitwise_count(words[a] ^ orient_hashes(words[b], turns))
        distance[start : start + _BLOCK] = differing.sum(axis=1, dtype=np.uint8)
    within = np.cumsum(np.bincount(distance, minlength=allowed + 1))[: allowed + 1]
    allowed = max(0, int(np.searchsorted(within, room, side="right")) - 1)
    return codes[distance <= allowed], allowed
