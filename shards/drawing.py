"""Drawn smear images: red cells, platelets and one nucleated cell, stained, lit and photographed (Beer-Lambert law)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from shards.leukocytes import MORPHOLOGY, Leukocyte, Stains, inside, outline
from shards.textures import Floats, sample_blobs, sensor_noise, stream

CLASSES = tuple(sorted(MORPHOLOGY))
"""Names of the classes, in index order."""

PATIENT, SLIDE, SCENE = 1, 2, 3
"""Kinds of random streams."""

HAEMOGLOBIN, NUCLEUS, CYTOPLASM, GRANULES = range(4)
"""Layers of an image: how much of each thing light passes through."""


@dataclass(frozen=True)
class Look:
    """What all images of one slide share. It is drawn without knowing the class."""

    field: float
    """Width of an image, micrometres."""
    colours: Floats
    """Optical density of one unit of each layer in red, green, blue: float32, [4, 3]."""
    white: Floats
    """Colour of the lamp where nothing lies on the glass: float32, [3], 0 to 1."""
    red_radius: float
    """Mean radius of a red cell, micrometres."""
    red_share: float
    """Share of an image that ordinary red cells cover."""
    pallor: float
    """How pale the middle of a red cell is, 0 to 1."""
    focus: float
    """Blur, micrometres."""
    noise: float
    """Standard deviation of the sensor noise, grey levels of 255."""
    slope: tuple[float, float]
    """How much the light falls off from left to right and from top to bottom, as a share."""
    vignette: float
    """How much the light falls off towards the corners, as a share."""


def _between(a: tuple[float, ...], b: tuple[float, ...], share: float) -> Floats:
    return (np.array(a) * (1 - share) + np.array(b) * share).astype(np.float32)


def slide_look(seed: int, patient: int, slide: int) -> Look:
    """Return how the images of a slide look: stain and red cells of the patient, varied by the slide.

    Args:
        seed: seed of the set.
        patient: number of the patient.
        slide: number of the slide among those of the patient, 0 to 255.
    """
    person = stream(seed, PATIENT, patient).random(8)
    own = stream(seed, SLIDE, patient * 256 + slide)
    mixed = 0.4 * person + 0.6 * own.random(8)
    spread = np.clip((mixed - 0.5) * 1.5 + 0.5, 0, 1)  # the mean of two numbers huddles around 0.5: pull it apart again
    strength = np.float32(np.exp(0.75 * (spread[0] - 0.5)))
    colours = np.stack(
        [
            _between((0.19, 0.40, 0.42), (0.36, 0.34, 0.27), spread[1]) * np.float32(0.7 + 0.6 * spread[2]),
            _between((0.80, 1.30, 0.34), (0.52, 1.20, 0.42), spread[3]) * strength,
            _between((0.44, 0.34, 0.10), (0.26, 0.44, 0.18), spread[4]) * np.float32(0.75 + 0.5 * spread[5]),
            _between((0.55, 0.85, 0.25), (0.35, 0.85, 0.40), spread[3]) * strength,
        ]
    )
    white = _between((0.95, 0.88, 0.80), (0.89, 0.91, 0.97), spread[6]) * np.float32(own.uniform(0.92, 1.03))
    return Look(
        field=own.uniform(22.0, 29.0),
        colours=colours,
        white=white,
        red_radius=3.2 + 0.6 * float(person[6]),
        red_share=own.uniform(0.08, 0.4),
        pallor=0.25 + 0.6 * float(spread[7]),
        focus=own.uniform(0.04, 0.16),
        noise=own.uniform(1.0, 3.5),
        slope=(own.uniform(-0.07, 0.07), own.uniform(-0.07, 0.07)),
        vignette=own.uniform(0.0, 0.12),
    )


def draw_smear(name: str, look: Look, rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Draw one image with a nucleated cell of class `name` near the middle.

    Args:
        name: one of CLASSES.
        look: what the slide looks like.
        rng: draws everything else.
        size: side in pixels.

    Returns:
        uint8, [size, size, 3], red green blue.
    """
    cell = Leukocyte(rng, MORPHOLOGY[name])
    field = float(look.field * (cell.nucleus_radius / 5) * np.exp(rng.normal(0, 0.1)))
    scene = _Scene(rng, look, field / size, size)
    middle = rng.uniform(-0.05, 0.05, 2) * field
    scene.red_cells(middle, cell.radius, cell.cytoplasm_area)
    scene.platelets(cell.granule_area, middle, cell.radius)
    if rng.random() < 0.3:
        scene.smudge(middle, cell.radius)
    scene.leukocyte(cell, middle)
    return scene.photograph()


class _Scene:
    """The layers of one image while it is drawn; positions in micrometres from the middle of the image."""

    def __init__(self, rng: np.random.Generator, look: Look, pixel: float, size: int) -> None:
        self._rng, self._look, self._pixel, self._size = rng, look, pixel, size
        self._soft = max(1.2 * pixel, 0.12)
        self._layers = np.zeros((4, size, size), dtype=np.float32)

    def _window(self, middle: Floats, radius: float) -> tuple[tuple[slice, slice], Floats, Floats] | None:
        """Rows and columns around a point, with the distances of their pixels from it: x [1, w], y [h, 1]."""
        pixel, size = self._pixel, self._size
        x, y = middle / pixel + size / 2
        reach = radius / pixel + 2
        left, right = max(int(x - reach), 0), min(int(x + reach) + 1, size)
        top, bottom = max(int(y - reach), 0), min(int(y + reach) + 1, size)
        if left >= right or top >= bottom:
            return None
        across = ((np.arange(left, right) + 0.5 - x) * pixel).astype(np.float32)[None, :]
        down = ((np.arange(top, bottom) + 0.5 - y) * pixel).astype(np.float32)[:, None]
        return (slice(top, bottom), slice(left, right)), across, down

    def red_cells(self, middle: Floats, keep_out: float, own: float) -> None:
        """Scatter red cells, some overlapping, hardly any on the nucleated cell.

        Young red cells take up the bluish stain of cytoplasm (polychromasia). As many are stained so as are missing to
        a share of the image that is drawn without knowing the class: the sum of the colours says nothing about it.

        Args:
            middle: [2], middle of the nucleated cell.
            keep_out: its radius, micrometres.
            own: area of its cytoplasm, square micrometres.
        """
        rng, look, pixel, size = self._rng, self._look, self._pixel, self._size
        places = self._places(middle, keep_out)
        count = len(places)
        if count == 0:
            return
        radius = (look.red_radius * np.clip(rng.normal(1, 0.07, count), 0.8, 1.2) / pixel).astype(np.float32)
        side = int(2.6 * radius.max()) + 4
        centre = places / pixel + size / 2 + side  # on a canvas with a margin of `side` on every side
        corner = np.clip(np.floor(centre - side / 2).astype(int), 0, size + side)
        pixels = np.arange(side) + corner[:, :, None]
        offset = (pixels + 0.5 - centre[:, :, None]).astype(np.float32)
        profile = self._biconcave(offset[:, 0, None, :], offset[:, 1, :, None], radius)
        visible = ((pixels >= side) & (pixels < side + size)).astype(np.float32)
        shown = np.matmul(profile, visible[:, 0, :, None])[:, :, 0]
        shown = (shown * visible[:, 1]).sum(1) / size**2
        layers = np.zeros((2, size + 2 * side, size + 2 * side), dtype=np.float32)
        missing = [rng.uniform(0.1, 0.28) - own / (pixel * size) ** 2, look.red_share * rng.uniform(0.7, 1.3)]
        for (column, row), cell, share in zip(corner, profile, shown, strict=True):
            for number in (0,1):
                if share > 0.001 and rng.random() < missing[number] / share:
                    layers[number, row : row + side, column : column + side] += cell
                    missing[number] -= share
                    break
        layers = layers[:, side : side + size, side : side + size]
        self._layers[HAEMOGLOBIN] += layers[1] + np.float32(0.15) * layers[0]
        self._layers[CYTOPLASM] += np.float32(0.85) * layers[0]

    def _places(self, middle: Floats, keep_out: float) -> Floats:
        """Middles of red cells, [n, 2]: random places, most of those refused that would overlap much."""
        rng, look = self._rng, self._look
        half = self._pixel * self._size / 2 + look.red_radius
        tries = int(0.9 * (2 * half / look.red_radius) ** 2)
        places = rng.uniform(-half, half, (tries, 2))
        away = np.hypot(*(places - middle).T)
        places = places[away > keep_out + 0.75 * look.red_radius]
        near = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1)) < 1.7 * look.red_radius
        allowed = rng.random(len(places)) < 0.12
        kept: list[int] = []
        for number in range(len(places)):
            if allowed[number] or not near[number, kept].any():
                kept.append(number)
        return places[kept]

    def _biconcave(self, x: Floats, y: Floats, radius: Floats) -> Floats:
        """Thickness of red cells: [n, side, side] from x [n, 1, side], y [n, side, 1] (pixels) and radius [n]."""
        rng, look, count = self._rng, self._look, len(radius)
        angle = rng.uniform(0, np.pi, count)
        cosine = np.cos(angle).astype(np.float32)[:, None, None]
        sine = np.sin(angle).astype(np.float32)[:, None, None]
        longer = (1 + np.abs(rng.normal(0, 0.07, count))).astype(np.float32)
        u = (x * cosine + y * sine) / (radius * longer)[:, None, None]
        v = (y * cosine - x * sine) / (radius / longer)[:, None, None]
        squared = v * v
        three = rng.normal(0, 0.05, count).astype(np.float32)[:, None, None]
        bent = u * u
        squared = squared + bent + three * u * (bent - 3 * squared)
        steep = (radius * np.float32(self._pixel / (2 * self._soft)))[:, None, None]
        body = np.clip((1 - squared) * steep + np.float32(0.5), 0, 1)
        wide = rng.uniform(0.3, 0.6, count).astype(np.float32)[:, None, None]
        pale = np.clip(1 - squared / wide, 0, 1)
        pale *= pale
        thick = rng.uniform(0.85, 1.15, count).astype(np.float32)[:, None, None]
        return body * (1 - np.float32(look.pallor) * pale) * thick

    def _beside(self, middle: Floats, away: tuple[float, float]) -> Floats:
        """A random point at a distance from the nucleated cell (micrometres)."""
        direction, distance = self._rng.uniform(0, 2 * np.pi), self._rng.uniform(*away)
        return middle + distance * np.array([np.cos(direction), np.sin(direction)])

    def platelets(self, own: float, middle: Floats, keep_out: float) -> None:
        """Put small granular platelets beside the nucleated cell; fewer, if it has granules of that colour itself."""
        rng = self._rng
        missing = rng.uniform(0.002, 0.035) * (self._pixel * self._size) ** 2 - own
        while True:
            radius = rng.uniform(0.7, 1.5)
            if missing < np.pi*radius**2*rng.random():
                break
            missing -= np.pi * radius**2
            window = self._window(self._beside(middle, (keep_out + radius, keep_out + 9)), radius * 1.4)
            if window is None:
                continue
            place, x, y = window
            _, mask = inside(x, y, outline(rng, 0.1) * np.float32(radius), 2.5 * self._soft)
            self._layers[CYTOPLASM][place] += mask * np.float32(0.9)
            grain = np.clip(sample_blobs(rng, x, y, 0.8) + np.float32(0.6), 0, 1.5)
            self._layers[GRANULES][place] += mask * grain

    def smudge(self, middle: Floats, keep_out: float) -> None:
        """Put a burst nucleus (smudge cell) near the edge of the image."""
        rng = self._rng
        radius = rng.uniform(3.5, 6.0)
        window = self._window(self._beside(middle, (keep_out + radius, keep_out + radius + 4)), radius * 1.6)
        if window is None:
            return
        place, x, y = window
        _, mask = inside(x, y, outline(rng, 0.16) * np.float32(radius), 2.0)
        strands = np.clip(sample_blobs(rng, x, y, 2.5) * np.float32(0.3) + np.float32(0.75), 0.1, 1.4)
        self._layers[HAEMOGLOBIN][place] *= 1 - np.float32(0.5) * mask
        self._layers[NUCLEUS][place] += mask * strands * np.float32(rng.uniform(0.35, 0.75))

    def leukocyte(self, cell: Leukocyte, middle: Floats) -> None:
        """Put the nucleated cell on top of what is there."""
        window = self._window(middle, cell.radius)
        if window is None:
            return
        place, x, y = window
        stains: Stains = cell.paint(x, y, self._soft)
        behind = 1 - stains.cover
        for layer in self._layers:
            layer[place] *= behind
        self._layers[NUCLEUS][place] += stains.nucleus
        self._layers[CYTOPLASM][place] += stains.cytoplasm
        self._layers[GRANULES][place] += stains.granules

    def photograph(self) -> NDArray[np.uint8]:
        """Pass light through the layers, blur a little, add sensor noise: uint8, [size, size, 3]."""
        rng, look, size = self._rng, self._look, self._size
        density = self._layers.reshape(4, -1).T @ (look.colours * np.float32(rng.uniform(0.93, 1.07)))
        line = np.linspace(-1, 1, size, dtype=np.float32)
        bowl = np.float32(look.vignette / 2) * line * line
        across = 1 + np.float32(look.slope[0]) * line - bowl
        down = 1 + np.float32(look.slope[1]) * line - bowl
        light = (across[None, :] * down[:, None])[:, :, None] * (np.float32(250 * rng.uniform(0.97, 1.02)) * look.white)
        picture = np.exp(-density).reshape(size, size, 3) * light
        sharp = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
        blur = look.focus * rng.uniform(0.6, 1.4) / self._pixel
        picture = np.asarray(sharp.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32)
        picture += sensor_noise(rng, picture.shape) * np.float32(look.noise)
        return np.clip(picture + np.float32(0.5), 0, 255).astype(np.uint8)
