"""Red cells of drawn smears: where they lie, how thick they are where, and which of them stain blue."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shards.textures import Doubles, Floats

YOUNG_SHARE = (0.04, 0.2)
"""Share of an image that is stained like cytoplasm: that of the nucleated cell and the young red cells together."""


class Field(NamedTuple):
    """The part of the glass that an image shows; positions in micrometres from its middle."""

    pixel: float
    """Width of a pixel, micrometres."""
    size: int
    """Side of the image, pixels."""
    soft: float
    """Width of an edge in focus, micrometres."""

    @property
    def area(self) -> float:
        """Square micrometres that the image shows."""
        return (self.pixel * self.size) ** 2


class Population(NamedTuple):
    """The red cells of a slide."""

    radius: float
    """Mean radius, micrometres."""
    share: float
    """Share of an image that ordinary red cells cover."""
    pallor: float
    """How pale the middle of a cell is, 0 to 1."""


def red_cells(
    rng: np.random.Generator, field: Field, cells: Population, middle: Doubles, keep_out: float, own: float
) -> Floats:
    """Scatter red cells, some overlapping, hardly any on the nucleated cell.

    Young red cells take up the bluish stain of cytoplasm (polychromasia). Their number is such that they and the
    cytoplasm of the nucleated cell together fill a share of the image that is drawn without knowing the class, and
    so is the share of the ordinary ones: the sum of the colours of an image tells nothing about its class.

    Args:
        rng: draws what varies.
        field: what the image shows.
        cells: the red cells of the slide.
        middle: float64, [2], middle of the nucleated cell.
        keep_out: its radius, micrometres.
        own: area of its cytoplasm, square micrometres.

    Returns:
        Thickness of ordinary and of young red cells: float32, [2, size, size].
    """
    size = field.size
    places = _places(rng, field, cells.radius, middle, keep_out)
    count = len(places)
    if count == 0:
        return np.zeros((2, size, size), dtype=np.float32)
    radius = (cells.radius * np.clip(rng.normal(1, 0.07, count), 0.8, 1.2) / field.pixel).astype(np.float32)
    side = int(2.6 * radius.max()) + 4
    centre = places / field.pixel + size / 2 + side  # on a canvas with a margin of `side` on every side
    corner = np.clip(np.floor(centre - side / 2).astype(int), 0, size + side)
    pixels = np.arange(side) + corner[:, :, None]
    offset = (pixels + 0.5 - centre[:, :, None]).astype(np.float32)
    steep = radius * np.float32(field.pixel / (2 * field.soft))
    thickness = _biconcave(rng, offset[:, 0, None, :], offset[:, 1, :, None], radius, steep)
    thickness *= 1 - np.float32(cells.pallor) * _pale(rng, offset, radius)
    canvas = np.zeros((2, size + 2 * side, size + 2 * side), dtype=np.float32)
    missing = [cells.share * rng.uniform(0.7, 1.3), rng.uniform(*YOUNG_SHARE) - own / field.area]
    shown = _shown(thickness, (pixels >= side) & (pixels < side + size)) / size**2
    for (column, row), cell, share, chance in zip(corner, thickness, shown, rng.random(count), strict=True):
        kind = 1 if chance * share < missing[1] else 0
        if share > 0 and chance * share < missing[kind]:
            canvas[kind, row : row + side, column : column + side] += cell
            missing[kind] -= share
    return canvas[:, side : side + size, side : side + size]


def _places(rng: np.random.Generator, field: Field, radius: float, middle: Doubles, keep_out: float) -> Doubles:
    """Middles of red cells, [n, 2]: random places, most of those refused that would overlap much."""
    half = field.pixel * field.size / 2 + radius
    tries = int(0.9 * (2 * half / radius) ** 2)
    places = rng.uniform(-half, half, (tries, 2))
    places = places[np.hypot(*(places - middle).T) > keep_out + 0.75 * radius]
    near = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1)) < 1.7 * radius
    allowed = rng.random(len(places)) < 0.12
    kept: list[int] = []
    for number in range(len(places)):
        if allowed[number] or not near[number, kept].any():
            kept.append(number)
    return places[kept]


def _biconcave(rng: np.random.Generator, x: Floats, y: Floats, radius: Floats, steep: Floats) -> Floats:
    """Soft masks of slightly irregular ellipses: [n, side, side] from x [n, 1, side], y [n, side, 1] in pixels."""
    count = len(radius)
    angle = rng.uniform(0, np.pi, count)
    cosine = np.cos(angle).astype(np.float32)[:, None, None]
    sine = np.sin(angle).astype(np.float32)[:, None, None]
    longer = (1 + np.abs(rng.normal(0, 0.07, count))).astype(np.float32)
    u = (x * cosine + y * sine) / (radius * longer)[:, None, None]
    v = (y * cosine - x * sine) / (radius / longer)[:, None, None]
    three = rng.normal(0, 0.05, count).astype(np.float32)[:, None, None]
    thick = rng.uniform(0.85, 1.15, count).astype(np.float32)[:, None, None]
    u2, v2 = u * u, v * v
    squared = u2 + v2 + three * u * (u2 - 3 * v2)
    return np.clip((1 - squared) * steep[:, None, None] + np.float32(0.5), 0, 1) * thick


def _pale(rng: np.random.Generator, offset: Floats, radius: Floats) -> Floats:
    """The pale middle of red cells, 0 to 1: [n, side, side] from offsets [n, 2, side] in pixels."""
    wide = (radius * np.sqrt(rng.uniform(0.3, 0.6, len(radius))).astype(np.float32))[:, None]
    across, down = offset[:, 0] / wide, offset[:, 1] / wide
    pale = np.clip(1 - (across * across)[:, None, :] - (down * down)[:, :, None], 0, 1)
    return pale * pale


def _shown(thickness: Floats, visible: Floats) -> Floats:
    """How much of each cell lies in the image: [n], pixels; `visible` is [n, 2, side], bool, columns then rows."""
    rows = (thickness * visible[:, 0, None, :]).sum(2)
    total: Floats = (rows * visible[:, 1]).sum(1)
    return total
