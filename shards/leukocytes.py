"""Nucleated cells of drawn smears: what the four classes look like, and how much of each stain is where in a cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shards.textures import Floats, sample_blobs

Range = tuple[float, float]


@dataclass(frozen=True)
class Morphology:
    """How the cells of one class look; every pair is the range from which each cell draws. Lengths in micrometres."""

    nucleus: Range
    """Mean radius of the nucleus."""
    rim: Range
    """Mean width of the cytoplasm around the nucleus: with `nucleus` it gives the nucleus/cytoplasm ratio."""
    wobble: float
    """Irregularity of the nuclear outline, as a share of the radius."""
    clefts: tuple[int, int]
    """Number of indentations of the nucleus."""
    cleft_depth: Range
    """Depth of an indentation, as a share of the radius."""
    cleft_width: Range
    """Half width of an indentation, in radians seen from the middle of the nucleus."""
    folds: tuple[int, int]
    """Number of folds: dark lines across the nucleus."""
    chromatin: Range
    """Diameter of a clump of chromatin."""
    contrast: Range
    """Standard deviation of the chromatin, as a share of its mean."""
    density: Range
    """Mean stain of the chromatin, relative to the other classes."""
    nucleoli: tuple[int, int]
    """Number of nucleoli: pale round spots."""
    granules: Range
    """How densely granules fill the cytoplasm, 0 (none) to 1."""


MORPHOLOGY: dict[str, Morphology] = {
    "benign": Morphology(
        nucleus=(3.7, 4.7),
        rim=(0.25, 0.6),
        wobble=0.015,
        clefts=(0, 0),
        cleft_depth=(0.0, 0.0),
        cleft_width=(0.2, 0.3),
        folds=(0, 0),
        chromatin=(1.8, 2.6),
        contrast=(0.09, 0.2),
        density=(0.95, 1.35),
        nucleoli=(0, 0),
        granules=(0.0, 0.0),
    ),
    "early": Morphology(
        nucleus=(4.7, 5.9),
        rim=(0.7, 1.2),
        wobble=0.02,
        clefts=(0, 0),
        cleft_depth=(0.0, 0.0),
        cleft_width=(0.2, 0.3),
        folds=(0, 0),
        chromatin=(0.6, 0.85),
        contrast=(0.12, 0.28),
        density=(0.8, 1.25),
        nucleoli=(1, 2),
        granules=(0.0, 0.0),
    ),
    "pre": Morphology(
        nucleus=(4.4, 5.4),
        rim=(1.2, 2.0),
        wobble=0.05,
        clefts=(2, 3),
        cleft_depth=(0.28, 0.48),
        cleft_width=(0.16, 0.3),
        folds=(0, 0),
        chromatin=(1.3, 1.9),
        contrast=(0.12, 0.28),
        density=(0.8, 1.25),
        nucleoli=(0, 0),
        granules=(0.0, 0.0),
    ),
    "pro": Morphology(
        nucleus=(4.8, 5.7),
        rim=(2.1, 3.1),
        wobble=0.04,
        clefts=(1, 1),
        cleft_depth=(0.3, 0.5),
        cleft_width=(0.55, 0.85),
        folds=(1, 2),
        chromatin=(0.9, 1.3),
        contrast=(0.12, 0.28),
        density=(0.8, 1.25),
        nucleoli=(0, 0),
        granules=(0.55, 1.0),
    ),
}

ANGLES = 1024
"""Directions in which the radius of an outline is tabulated."""

GRANULE_SHARE = 0.25
"""Share of a cytoplasm full of granules that they cover."""

_THETA = np.linspace(-np.pi, np.pi, ANGLES, endpoint=False, dtype=np.float32)


class Stains(NamedTuple):
    """What a cell takes up in a window of the image; float32, [height, width] each, optical density in its own unit."""

    cover: Floats
    """0 to 1: how much the cell hides what is behind it."""
    nucleus: Floats
    cytoplasm: Floats
    granules: Floats


def outline(rng: np.random.Generator, wobble: float, harmonics: int = 5) -> Floats:
    """Return a closed, slightly irregular outline: relative radius in ANGLES directions, float32, mean about 1."""
    order = np.arange(2, 2 + harmonics, dtype=np.float32)
    amplitude = (wobble * 2 / order * rng.standard_normal(harmonics)).astype(np.float32)
    phase = (2 * np.pi * rng.random(harmonics)).astype(np.float32)
    waves: Floats = amplitude @ np.cos(order[:, None] * _THETA + phase[:, None])
    return np.float32(1) + waves


def _dent(radius: Floats, direction: float, depth: float, width: float) -> None:
    """Press an indentation into an outline, in place."""
    away = np.abs(_THETA - np.float32(direction))
    away = np.minimum(away, np.float32(2 * np.pi) - away)
    radius *= 1 - np.float32(depth) * np.exp(-((away / np.float32(width)) ** 2))


def nuclear_outline(rng: np.random.Generator, kind: Morphology) -> Floats:
    """Return the outline of a nucleus of this kind: relative radius in ANGLES directions, float32."""
    radius = outline(rng, kind.wobble)
    clefts = int(rng.integers(kind.clefts[0], kind.clefts[1] + 1))
    first = rng.uniform(-np.pi, np.pi)
    for number in range(clefts):
        direction = first + 2 * np.pi * (number + rng.uniform(-0.2, 0.2)) / clefts
        direction = (direction + np.pi) % (2 * np.pi) - np.pi
        _dent(radius, direction, rng.uniform(*kind.cleft_depth), rng.uniform(*kind.cleft_width))
    return radius


def inside(x: Floats, y: Floats, radius: Floats, soft: float) -> tuple[Floats, Floats]:
    """Return how far points lie inside an outline around (0, 0), and the soft mask of the inside.

    Args:
        x: float32, broadcasts with y; same unit as `radius` and `soft`.
        y: alike.
        radius: float32, [ANGLES], radius of the outline in each direction.
        soft: width of the edge.
    """
    turns = np.arctan2(y, x) * np.float32(ANGLES / (2 * np.pi)) + np.float32(ANGLES / 2)
    depth = radius[turns.astype(np.int32) & (ANGLES - 1)] - np.sqrt(x * x + y * y)
    return depth, np.clip(depth / np.float32(soft) + np.float32(0.5), 0, 1)


class Leukocyte:
    """One nucleated cell: drawn from its class when made, painted where and as finely as asked.

    Args:
        rng: draws everything that varies within the class.
        kind: the class.
    """

    def __init__(self, rng: np.random.Generator, kind: Morphology) -> None:
        self._rng, self._kind = rng, kind
        nucleus, rim = rng.uniform(*kind.nucleus), rng.uniform(*kind.rim)
        self._nucleus = nuclear_outline(rng, kind) * np.float32(nucleus)
        self._cell = outline(rng, 0.025) * np.float32(nucleus + rim)
        away, direction = rim * rng.uniform(0.2, 0.75), rng.uniform(0, 2 * np.pi)
        self._shift = np.float32(away * np.cos(direction)), np.float32(away * np.sin(direction))
        self._granular = rng.uniform(*kind.granules)
        self.nucleus_radius = float(np.sqrt((self._nucleus**2).mean()))
        """Radius of a circle as large as the nucleus, micrometres."""
        self.cytoplasm_area = float(np.pi * ((self._cell**2).mean() - (self._nucleus**2).mean()))
        """Area of the cytoplasm, square micrometres."""
        self.granule_area = GRANULE_SHARE * self.cytoplasm_area * self._granular
        """Area of the granules, square micrometres."""
        self.radius = float(self._cell.max())
        """Largest radius of the cell, micrometres."""

    def paint(self, x: Floats, y: Floats, soft: float) -> Stains:
        """Return the stain that the cell takes up at points around its middle.

        Args:
            x: float32, [1, width], micrometres from the middle of the cell.
            y: float32, [height, 1], alike.
            soft: width of an edge in focus, micrometres.
        """
        depth, cover = inside(x, y, self._cell, soft)
        x_nucleus, y_nucleus = x - self._shift[0], y - self._shift[1]
        nucleus_depth, nucleus_mask = inside(x_nucleus, y_nucleus, self._nucleus, soft)
        nucleus_mask = nucleus_mask * cover
        chromatin = self._chromatin(x_nucleus, y_nucleus, nucleus_depth)
        mottle = sample_blobs(self._rng, x, y, 2.2)
        edge: Floats = np.exp(-np.abs(depth) * np.float32(2.0))
        body: Floats = np.float32(0.8) + np.float32(0.1) * mottle + np.float32(0.35) * edge
        cytoplasm: Floats = cover * body * (1 - np.float32(0.75) * nucleus_mask)
        granules = self._granules(x, y) * (cover - nucleus_mask * np.float32(0.8))
        return Stains(cover, chromatin * nucleus_mask, cytoplasm, granules)

    def _chromatin(self, x: Floats, y: Floats, depth: Floats) -> Floats:
        """Chromatin, folds and nucleoli, scaled so that mean and variance over the nucleus tell little of the class."""
        rng, kind = self._rng, self._kind
        chromatin = np.clip(sample_blobs(rng, x, y, rng.uniform(*kind.chromatin)), -1.6, 1.6) * np.float32(0.7)
        chromatin += np.float32(0.8) * np.exp(-np.abs(depth - np.float32(0.15)) * np.float32(3.5))
        for _ in range(int(rng.integers(kind.folds[0], kind.folds[1] + 1))):
            chromatin += self._fold(x, y)
        count = int(rng.integers(kind.nucleoli[0], kind.nucleoli[1] + 1))
        first = rng.uniform(0, 2 * np.pi)
        for number in range(count):
            self._nucleolus(chromatin, x, y, first + 2 * np.pi * number / count)
        own = chromatin[depth > 0]
        chromatin = (chromatin - own.mean()) / own.std()
        return (1 + np.float32(rng.uniform(*kind.contrast)) * chromatin) * np.float32(rng.uniform(*kind.density))

    def _fold(self, x: Floats, y: Floats) -> Floats:
        """A curved dark line across the nucleus, with a paler side."""
        rng, radius = self._rng, self.nucleus_radius
        angle = rng.uniform(0, 2 * np.pi)
        along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
        across = y * np.float32(np.cos(angle)) - x * np.float32(np.sin(angle))
        bend = np.float32(rng.uniform(-0.6, 0.6) / radius)
        away = across - np.float32(rng.uniform(-0.35, 0.35) * radius) - bend * along * along
        dark, pale = np.float32(2.2), np.float32(1.1)
        return dark * np.exp(-((away / np.float32(0.35)) ** 2)) - pale * np.exp(-(((away - 0.8) / 0.45) ** 2))

    def _nucleolus(self, chromatin: Floats, x: Floats, y: Floats, direction: float) -> None:
        """Brighten a round spot, with a darker ring of chromatin around it, in place."""
        rng, radius = self._rng, self.nucleus_radius
        away = rng.uniform(0.25, 0.5) * radius
        size = np.float32(rng.uniform(0.95, 1.4))
        across, down = x - np.float32(away * np.cos(direction)), y - np.float32(away * np.sin(direction))
        distance = np.sqrt(across * across + down * down)
        spot = np.clip((size - distance) * np.float32(2.5) + np.float32(0.5), 0, 1)
        chromatin -= (np.float32(2.2) + chromatin) * spot
        chromatin += np.float32(0.8) * np.exp(-(((distance - size - np.float32(0.25)) * np.float32(3)) ** 2))

    def _granules(self, x: Floats, y: Floats) -> Floats:
        dense = self._granular
        field = sample_blobs(self._rng, x, y, 0.8)
        if dense <= 0:
            return np.zeros_like(field)
        return np.clip((field - np.float32(1.5 - 0.9 * dense)) * np.float32(1.6), 0, 1)
