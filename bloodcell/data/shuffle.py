"""A shuffle without a list: a keyed bijection of [0, n) that takes each position to its place, in constant memory.

A Feistel network with modular halves (Black and Rogaway: Ciphers with Arbitrary Finite Domains, CT-RSA 2002:
"generalised Feistel" and "cycle walking") with the finaliser of SplitMix64 as its round function. It shuffles; it is
no encryption.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from bloodcell.data.draws import GOLDEN, MASK, mix
from shards.errors import Fault

ROUNDS = 16  # large sets need few; with 12, sets of 5 to 7 samples still preferred some of their orders measurably
BLOCK = 1 << 14  # positions worked on at a time: the arrays of a round stay in the processor's cache

_S32 = np.uint64(32)


def permute(positions: np.ndarray, n: int, key: int) -> np.ndarray:
    """Return where the shuffle `key` of [0, n) takes each position: a bijection of [0, n).

    Args:
        positions: integers in [0, n), any shape.
        n: size of the set, 1 to 2**62.
        key: 64 bits that choose the shuffle.

    Returns:
        int64, same shape.

    Raises:
        Fault: a position lies outside [0, n).
    """
    return _shuffle(positions, n, key, backwards=False)


def permute_each(positions: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return what `permute` does to each position in a set of its own size with a key of its own, all at once.

    Args:
        positions: integers, each in [0, its size), shape [n].
        sizes: 1 to 2**62, shape [n].
        keys: uint64 [n].

    Returns:
        int64 [n].

    Raises:
        Fault: a position lies outside its set.
    """
    if positions.size and not ((positions >= 0) & (positions < sizes)).all():
        raise Fault("a position lies outside its set", "sample order")
    different, inverse = np.unique(sizes, return_inverse=True)
    halves = np.array([_halves(int(n)) for n in different], dtype=np.uint64).reshape(-1, 2)[inverse]
    words = [mix(keys + np.uint64(GOLDEN * (number + 1) & MASK)) for number in range(ROUNDS)]
    values = positions.astype(np.uint64)
    todo = np.arange(len(values))
    while todo.size:
        rows, columns = halves[todo].T
        left, right = np.divmod(values[todo], columns)
        for number, word in enumerate(words):
            if number % 2 == 0:
                left = _turn(left, right, word[todo], rows, False)
            else:
                right = _turn(right, left, word[todo], columns, False)
        values[todo] = left * columns + right
        todo = todo[values[todo] >= sizes[todo].astype(np.uint64)]
    return values.astype(np.int64)


def unpermute(values: np.ndarray, n: int, key: int) -> np.ndarray:
    """Return the positions that `permute` takes to `values`; arguments, result and errors as there."""
    return _shuffle(values, n, key, backwards=True)


def _shuffle(positions: np.ndarray, n: int, key: int, backwards: bool) -> np.ndarray:
    positions = np.asarray(positions)
    if positions.size and not (positions.min() >= 0 and positions.max() < n <= 1 << 62):
        raise Fault(f"a position lies outside [0, {n})", "sample order")
    flat = positions.reshape(-1)
    found = np.empty(flat.size, dtype=np.int64)
    for begin in range(0, flat.size, BLOCK):
        part = slice(begin, begin + BLOCK)
        found[part] = _walk(flat[part].astype(np.uint64), n, key & MASK, backwards)
    return found.reshape(positions.shape)


def _walk(values: np.ndarray, n: int, key: int, backwards: bool) -> np.ndarray:
    # The network shuffles rows * columns >= n places. Who lands beyond n walks on: its cycle leads back into [0, n).
    values = _feistel(values, n, key, backwards)
    while (beyond := np.flatnonzero(values >= n)).size:
        values[beyond] = _feistel(values[beyond], n, key, backwards)
    return values


def _feistel(values: np.ndarray, n: int, key: int, backwards: bool) -> np.ndarray:
    rows, columns = _halves(n)
    left, right = np.divmod(values, np.uint64(columns))
    numbered = list(enumerate(_round_keys(key)))
    for number, word in reversed(numbered) if backwards else numbered:
        if number % 2 == 0:
            left = _turn(left, right, word, rows, backwards)
        else:
            right = _turn(right, left, word, columns, backwards)
    left *= np.uint64(columns)
    left += right
    return left


def _turn(
    half: np.ndarray, other: np.ndarray, word: np.uint64 | np.ndarray, size: int | np.ndarray, backwards: bool
) -> np.ndarray:
    # half + hash(other) modulo size. The 32 high bits of the hash are scaled to [0, size): no division.
    turn = mix(other + word)
    turn >>= _S32
    turn *= np.uint64(size)
    turn >>= _S32
    half = half - turn if backwards else half + turn
    # Unsigned numbers wrap: whichever of the two candidates left [0, size) is huge now.
    return np.minimum(half, half + np.uint64(size) if backwards else half - np.uint64(size))


def _halves(n: int) -> tuple[int, int]:
    # An even number of rows: with odd halves every round, so every shuffle, would be an even permutation.
    rows = math.isqrt(max(n - 1, 0)) + 1
    rows += rows % 2
    return rows, -(-n // rows)


@lru_cache(maxsize=64)
def _round_keys(key: int) -> tuple[np.uint64, ...]:
    words = np.array([key + GOLDEN * (number + 1) & MASK for number in range(ROUNDS)], dtype=np.uint64)
    return tuple(mix(words))
