"""Random numbers per sample: uniforms that depend only on (seed, epoch, id, occurrence) and a fixed column number.

A draw is a hash, not a state: a sample gets the same numbers in any batch, on any rank and after any restart.
The hash is the finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators,
OOPSLA 2014).
"""

from __future__ import annotations

import copy

import numpy as np

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15

_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S11, _S27, _S30, _S31 = (np.uint64(bits) for bits in (11, 27, 30, 31))

_VIEW = np.uint64(GOLDEN * 5 & MASK)  # the four links before it are seed, epoch, id and occurrence

TRIES = 10
"""Proposals drawn at once for a random crop or erased box: the first that fits is taken (torchvision: 10 tries too)."""

COLUMNS: dict[str, tuple[int, int]] = {
    # name: (first column, how many). Append only: a column that changes its number changes the images of old runs.
    "crop.area": (0, TRIES),
    "crop.ratio": (10, TRIES),
    "crop.y": (20, TRIES),
    "crop.x": (30, TRIES),
    "flip.horizontal": (40, 1),
    "flip.vertical": (41, 1),
    "turn": (42, 1),  # quarter turns
    "angle.apply": (43, 1),
    "angle": (44, 1),
    "translate.y": (45, 1),
    "translate.x": (46, 1),
    "scale": (47, 1),
    "shear.y": (48, 1),
    "shear.x": (49, 1),
    "colour.apply": (50, 1),
    "brightness": (51, 1),
    "contrast": (52, 1),
    "saturation": (53, 1),
    "hue": (54, 1),
    "grey.apply": (55, 1),
    "erase.apply": (56, 1),
    "erase.area": (57, TRIES),
    "erase.ratio": (67, TRIES),
    "erase.y": (77, TRIES),
    "erase.x": (87, TRIES),
    "blur.apply": (97, 1),
    "blur.sigma": (98, 1),
    "sharpness": (99, 1),
    "randaugment.op": (100, 4),  # one column per level
    "randaugment.magnitude": (104, 4),
    "randaugment.sign": (108, 4),
    "augmix.op": (112, 12),  # 3 chains of up to 4 levels, chain by chain
    "augmix.magnitude": (124, 12),
    "augmix.sign": (136, 12),
    "augmix.depth": (148, 3),  # one column per chain
    "augmix.weight": (151, 3),
    "augmix.mix": (154, 2),
    "mix.apply": (156, 1),
    "mix.kind": (157, 1),  # mixup or cutmix
    "mix.lambda": (158, 2),
    "mix.partner": (160, 1),
    "mix.y": (161, 1),
    "mix.x": (162, 1),
    "stain.apply": (163, 1),
    "stain.scale": (164, 3),  # one column per stain
    "stain.shift": (167, 3),
    "quality.apply": (170, 1),  # JPEG compression
    "quality": (171, 1),
    "noise.apply": (172, 1),
    "noise.strength": (173, 1),
    "trivial.op": (174, 1),
    "trivial.magnitude": (175, 1),
    "trivial.sign": (176, 1),
    "hybrid.kind": (177, 1),  # RandAugment or AugMix
}


def mix(words: np.ndarray) -> np.ndarray:
    """Return the SplitMix64 finaliser of `words` (uint64, at least one dimension): same shape, a bijection of words."""
    words = words ^ (words >> _S30)
    words *= _FIRST
    words ^= words >> _S27
    words *= _SECOND
    words ^= words >> _S31
    return words


def chain(*values: int | np.ndarray) -> np.ndarray:
    """Return one 64-bit hash of several integers in this order.

    Args:
        values: integers or integer arrays that broadcast together; negative ones and big ones count modulo 2**64.

    Returns:
        uint64 of the broadcast shape, at least one dimension.
    """
    state = mix(_words(values[0]) + np.uint64(GOLDEN))
    for place, value in enumerate(values[1:], 2):
        state = mix(state ^ mix(_words(value) + np.uint64(GOLDEN * place & MASK)))
    return state


def _words(value: int | np.ndarray) -> np.ndarray:
    # One-element arrays, not numpy scalars: only arrays wrap around without a warning.
    if isinstance(value, np.ndarray):
        return np.atleast_1d(value).astype(np.uint64)
    return np.array([int(value) & MASK], dtype=np.uint64)


class Draws:
    """Uniform numbers for the samples of a batch, by the name of what they decide.

    Args:
        seed: of the run.
        epoch: counted from 0.
        ids: sample ids, integers of any shape.
        occurrences: how often each id was dealt before in this epoch, same shape.
    """

    def __init__(self, seed: int, epoch: int, ids: np.ndarray, occurrences: np.ndarray) -> None:
        ids, occurrences = np.asarray(ids), np.asarray(occurrences)
        self.shape = np.broadcast_shapes(ids.shape, occurrences.shape)
        self._state = chain(seed, epoch, ids, occurrences).reshape(self.shape)

    def view(self, number: int) -> Draws:
        """Return other numbers for the same samples: those of another view of each, counted from 1."""
        other = copy.copy(self)
        other._state = mix(np.atleast_1d(self._state) ^ mix(_words(number) + _VIEW)).reshape(self.shape)
        return other

    def block(self, column: str) -> np.ndarray:
        """Return all uniforms of `column`: float64 in [0, 1), shape (*ids.shape, columns of that name)."""
        first, count = COLUMNS[column]
        steps = np.array([GOLDEN * (number + 1) & MASK for number in range(first, first + count)], dtype=np.uint64)
        return (mix(self._state[..., None] + steps) >> _S11) * 2.0**-53

    def uniform(self, column: str, index: int = 0) -> np.ndarray:
        """Return one uniform per sample: float64 in [0, 1), shape of ids.

        Args:
            column: a name in COLUMNS.
            index: which of the columns of that name: the try, level or chain.
        """
        first, count = COLUMNS[column]
        if not 0 <= index < count:
            raise IndexError(f"{column} has {count} columns, there is no number {index}")
        step = np.array([GOLDEN * (first + index + 1) & MASK], dtype=np.uint64)
        return ((mix(self._state.reshape(-1) + step) >> _S11) * 2.0**-53).reshape(self.shape)

    def span(self, column: str, low: float, high: float, index: int = 0) -> np.ndarray:
        """Return uniforms between `low` and `high`: float64, shape of ids."""
        return low + (high - low) * self.uniform(column, index)

    def coin(self, column: str, p: float, index: int = 0) -> np.ndarray:
        """Return True with probability `p` (never for 0, always for 1): bool, shape of ids."""
        return self.uniform(column, index) < p

    def choice(self, column: str, n: int, index: int = 0) -> np.ndarray:
        """Return integers in [0, n), all equally likely: int64, shape of ids."""
        return np.floor(self.uniform(column, index) * n).astype(np.int64)
