"""Drawn smear images: red cells, platelets and one nucleated cell, stained, lit and photographed (Beer-Lambert law)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from shards.leukocytes import MORPHOLOGY, Leukocyte, inside, outline
from shards.redcells import Field, Population, red_cells
from shards.textures import Doubles, Floats, sample_blobs, sensor_noise, stream

CLASSES = tuple(sorted(MORPHOLOGY))
"""Names of the classes, in index order."""

PATIENT, SLIDE, SCENE = 1, 2, 3
"""Kinds of random streams."""

HAEMOGLOBIN, NUCLEUS, CYTOPLASM, GRANULES = range(4)
"""Layers of an image: how much of each thing light passes through."""

PLATELET_SHARE = (0.002, 0.03)
"""Share of an image that is granular: the granules of the nucleated cell and the platelets together."""


@dataclass(frozen=True)
class Look:
    """What all images of one slide share. It is drawn without knowing the class."""

    width: float
    """Width of an image around a cell with a nucleus of 5 micrometres radius, micrometres."""
    colours: Floats
    """Optical density of one unit of each layer in red, green, blue: float32, [4, 3]."""
    white: Floats
    """Colour of the lamp where nothing lies on the glass: float32, [3], 0 to 1."""
    red: Population
    """The red cells."""
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


@lru_cache(maxsize=4096)
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
    red = _between((0.19, 0.40, 0.42), (0.36, 0.34, 0.27), spread[1]) * np.float32(0.7 + 0.6 * spread[2])
    nucleus = _between((0.80, 1.30, 0.34), (0.52, 1.20, 0.42), spread[3]) * strength
    cytoplasm = _between((0.44, 0.34, 0.10), (0.26, 0.44, 0.18), spread[4]) * np.float32(0.75 + 0.5 * spread[5])
    granules = _between((0.55, 0.85, 0.25), (0.35, 0.85, 0.40), spread[3]) * strength
    return Look(
        width=own.uniform(22.0, 29.0),
        colours=np.stack([red, nucleus, cytoplasm, granules]),
        white=_between((0.95, 0.88, 0.80), (0.89, 0.91, 0.97), spread[6]) * np.float32(own.uniform(0.92, 1.03)),
        red=Population(3.2 + 0.6 * float(person[6]), own.uniform(0.1, 0.45), 0.25 + 0.6 * float(spread[7])),
        focus=own.uniform(0.04, 0.16),
        noise=own.uniform(1.0, 3.5),
        slope=(own.uniform(-0.07, 0.07), own.uniform(-0.07, 0.07)),
        vignette=own.uniform(0.0, 0.12),
    )


def draw_smear(name: str, look: Look, rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Draw one image with a nucleated cell of class `name` near the middle.

    The image is cut out around the nucleus, as from a larger photograph: large and small nuclei fill alike shares of
    their images, and the red cells tell how large they are.

    Args:
        name: one of CLASSES.
        look: what the slide looks like.
        rng: draws everything else.
        size: side in pixels.

    Returns:
        uint8, [size, size, 3], red green blue.
    """
    cell = Leukocyte(rng, MORPHOLOGY[name])
    width = float(look.width * (cell.nucleus_radius / 5) * np.exp(rng.normal(0, 0.1)))
    middle = rng.uniform(-0.05, 0.05, 2) * width
    scene = _Scene(rng, look, width, size)
    scene.red_cells(cell, middle)
    scene.platelets(cell, middle)
    if rng.random() < 0.3:
        scene.smudge(cell, middle)
    scene.leukocyte(cell, middle)
    return scene.photograph()


class _Scene:
    """The layers of one image while it is drawn; positions in micrometres from the middle of the image."""

    def __init__(self, rng: np.random.Generator, look: Look, width: float, size: int) -> None:
        self._rng, self._look = rng, look
        pixel = width / size
        self._field = Field(pixel, size, soft=max(1.2 * pixel, 0.12))
        self._layers = np.zeros((4, size, size), dtype=np.float32)

    def _window(self, middle: Doubles, radius: float) -> tuple[tuple[slice, slice], Floats, Floats] | None:
        """Rows and columns around a point, with the distances of their pixels from it: x [1, w], y [h, 1]."""
        pixel, size, _ = self._field
        x, y = middle / pixel + size / 2
        reach = radius / pixel + 2
        left, right = max(int(x - reach), 0), min(int(x + reach) + 1, size)
        top, bottom = max(int(y - reach), 0), min(int(y + reach) + 1, size)
        if left >= right or top >= bottom:
            return None
        across = ((np.arange(left, right) + 0.5 - x) * pixel).astype(np.float32)[None, :]
        down = ((np.arange(top, bottom) + 0.5 - y) * pixel).astype(np.float32)[:, None]
        return (slice(top, bottom), slice(left, right)), across, down

    def _beside(self, middle: Doubles, nearest: float, farthest: float) -> Doubles:
        """A random point at a distance from another one (micrometres)."""
        direction, distance = self._rng.uniform(0, 2 * np.pi), self._rng.uniform(nearest, farthest)
        return middle + distance * np.array([np.cos(direction), np.sin(direction)])

    def red_cells(self, cell: Leukocyte, middle: Doubles) -> None:
        """Scatter ordinary and young red cells around the nucleated cell."""
        ordinary, young = red_cells(
            self._rng, self._field, self._look.red, middle, cell.radius, own=cell.cytoplasm_area
        )
        self._layers[HAEMOGLOBIN] += ordinary + np.float32(0.15) * young
        self._layers[CYTOPLASM] += np.float32(0.85) * young

    def platelets(self, cell: Leukocyte, middle: Doubles) -> None:
        """Put small granular platelets around the nucleated cell: the fewer, the more granules it has itself."""
        rng = self._rng
        missing = rng.uniform(*PLATELET_SHARE) * self._field.area - cell.granule_area
        while True:
            radius = rng.uniform(0.7, 1.5)
            area = np.pi * radius**2
            if missing < area * rng.random():
                return
            missing -= area
            window = self._window(self._beside(middle, cell.radius + radius, cell.radius + 9), radius * 1.4)
            if window is None:
                continue
            place, x, y = window
            _, mask = inside(x, y, outline(rng, 0.1) * np.float32(radius), 2.5 * self._field.soft)
            self._layers[CYTOPLASM][place] += mask * np.float32(0.9)
            self._layers[GRANULES][place] += mask * np.clip(sample_blobs(rng, x, y, 0.8) + np.float32(0.6), 0, 1.5)

    def smudge(self, cell: Leukocyte, middle: Doubles) -> None:
        """Put a burst nucleus (smudge cell) beside the nucleated cell, often cut by the edge of the image."""
        rng = self._rng
        radius = rng.uniform(3.5, 6.0)
        nearest = cell.radius + radius
        window = self._window(self._beside(middle, nearest, nearest + 4), radius * 1.6)
        if window is None:
            return
        place, x, y = window
        _, mask = inside(x, y, outline(rng, 0.16) * np.float32(radius), 2.0)
        strands = np.clip(sample_blobs(rng, x, y, 2.5) * np.float32(0.3) + np.float32(0.75), 0.1, 1.4)
        self._layers[HAEMOGLOBIN][place] *= 1 - np.float32(0.5) * mask
        self._layers[NUCLEUS][place] += mask * strands * np.float32(rng.uniform(0.35, 0.75))

    def leukocyte(self, cell: Leukocyte, middle: Doubles) -> None:
        """Put the nucleated cell on top of what is there."""
        window = self._window(middle, cell.radius)
        if window is None:
            return
        place, x, y = window
        stains = cell.paint(x, y, self._field.soft)
        behind = 1 - stains.cover
        for layer in self._layers:
            layer[place] *= behind
        self._layers[NUCLEUS][place] += stains.nucleus
        self._layers[CYTOPLASM][place] += stains.cytoplasm
        self._layers[GRANULES][place] += stains.granules

    def photograph(self) -> NDArray[np.uint8]:
        """Pass light through the layers, blur a little, add sensor noise: uint8, [size, size, 3]."""
        rng, look, size = self._rng, self._look, self._field.size
        colours = look.colours * np.float32(rng.uniform(0.93, 1.07))
        density = np.empty((size, size, 3), dtype=np.float32)
        for channel in range(3):  # no matrix product: BLAS would start threads in every worker
            density[:, :, channel] = sum(layer * colours[number, channel] for number, layer in enumerate(self._layers))
        line = np.linspace(-1, 1, size, dtype=np.float32)
        bowl = np.float32(look.vignette / 2) * line * line
        across = 1 + np.float32(look.slope[0]) * line - bowl
        down = 1 + np.float32(look.slope[1]) * line - bowl
        light = (across[None, :] * down[:, None])[:, :, None] * (np.float32(250 * rng.uniform(0.97, 1.02)) * look.white)
        picture = np.exp(-density) * light
        sharp = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
        blur = look.focus * rng.uniform(0.6, 1.4) / self._field.pixel
        picture = np.asarray(sharp.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32)
        picture = picture + sensor_noise(rng, picture.shape) * np.float32(look.noise)
        return np.clip(picture + np.float32(0.5), 0, 255).astype(np.uint8)
