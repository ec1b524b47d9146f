"""The operations of a policy whose numbers are simple: where the image is cut and turned, its colours, its sharpness.

Each is frozen data and draws its own arguments. Those that choose among other operations are in choosing.py.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Annotated, Any, Protocol, get_type_hints

import msgspec
import numpy as np
from msgspec import Meta

from bloodcell.data.draws import Draws
from shards.errors import BadInput

Arguments = dict[str, np.ndarray]
"""What a backend needs for a batch: one array per argument, first axis = sample."""

Probability = Annotated[float, Meta(ge=0, le=1)]
Level = Annotated[int, Meta(ge=0, le=255)]
Positive = Annotated[float, Meta(gt=0)]


class Operation(Protocol):
    """One step of a policy: frozen data, and how its arguments are drawn."""

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return the arguments for samples whose images are `height` x `width` pixels (int64 [n])."""


class Checked:
    """An operation that looks at its numbers when it is made.

    Raises:
        BadInput: a value of the wrong type or out of its range, or a range whose second end is the smaller one.
    """

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for leaf in fields(cls):
            where = f"{cls.__name__.lower()}.{leaf.name}"
            try:
                value = msgspec.convert(getattr(self, leaf.name), _hints(cls)[leaf.name])
            except msgspec.ValidationError as error:
                given = getattr(self, leaf.name)
                raise BadInput(f"{where} = {given!r} will not do", "policy", str(error)) from error
            if isinstance(value, tuple) and value[0] > value[1]:
                raise BadInput(f"{where} runs from {value[0]} to {value[1]}", "policy", "give the smaller end first")
            object.__setattr__(self, leaf.name, value)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


@dataclass(frozen=True)
class Crop(Checked):
    """A random window, resized to the input size (Szegedy et al., Going Deeper with Convolutions, 2015).

    `area`: share of the image; `ratio`: width over height. Of ten proposals the first that fits is taken, else the
    largest central square.
    """

    area: tuple[Annotated[float, Meta(gt=0, le=1)], Annotated[float, Meta(gt=0, le=1)]] = (0.7, 1.0)
    ratio: tuple[Positive, Positive] = (0.8, 1.25)

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return `window`: float32 [n, 4], top, left, bottom, right as shares of the image."""
        drawn, fits = _boxes(draws, "crop", self.area, self.ratio, height, width)
        window = np.where(fits[:, None], drawn, centre_window(height, width))
        return {"window": window.clip(0, 1).astype(np.float32)}


@dataclass(frozen=True)
class Flip(Checked):
    """Mirror images left-right and upside-down, each with its probability; cells have no up."""

    horizontal: Probability = 0.5
    vertical: Probability = 0.5

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return `horizontal` and `vertical`: int32 [n], 0 or 1."""
        return {
            "horizontal": draws.coin("flip.horizontal", self.horizontal).astype(np.int32),
            "vertical": draws.coin("flip.vertical", self.vertical).astype(np.int32),
        }


@dataclass(frozen=True)
class Rotate(Checked):
    """Turn by any angle up to `degrees` either way; what comes from outside is filled with `fill` (0..255)."""

    degrees: Annotated[float, Meta(ge=0, le=180)] = 180.0
    fill: Level = 255

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return `angle`: float32 [n], degrees."""
        return {"angle": draws.span("angle", -self.degrees, self.degrees).astype(np.float32)}


@dataclass(frozen=True)
class Affine(Checked):
    """Move, scale and shear about the centre, in one interpolation.

    `translate`: largest shift either way, as a share of the side; `scale`: factors of the size; `shear`: largest angle
    either way, degrees, in both directions. What comes from outside is filled with `fill` (0..255).
    """

    translate: Probability = 0.1
    scale: tuple[Positive, Positive] = (0.9, 1.1)
    shear: Annotated[float, Meta(ge=0, le=60)] = 5.0
    fill: Level = 255

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return `matrix`: float32 [n, 2, 3], from (x, y) in the result to the original, sides having length 1."""
        scale = np.exp(draws.span("scale", *np.log(self.scale)))
        leaning = np.tan(np.radians(self.shear))
        forth = np.zeros((len(scale), 2, 2))
        forth[:, 0, 0] = forth[:, 1, 1] = 1
        forth[:, 0, 1] = draws.span("shear.x", -leaning, leaning)
        forth[:, 1, 0] = draws.span("shear.y", -leaning, leaning)
        move = np.stack([draws.span(f"translate.{axis}", -self.translate, self.translate) for axis in "xy"], axis=1)
        back = np.linalg.inv(scale[:, None, None] * forth)
        offset = 0.5 - np.einsum("nij,nj->ni", back, 0.5 + move)
        return {"matrix": np.concatenate([back, offset[:, :, None]], axis=2).astype(np.float32)}


@dataclass(frozen=True)
class Brightness(Checked):
    """Multiply brightness and contrast by factors within 1 +- the given; contrast turns about mid-grey."""

    brightness: Probability = 0.15
    contrast: Probability = 0.15

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return `brightness` and `contrast`: float32 [n], factors."""
        return {
            "brightness": draws.span("brightness", 1 - self.brightness, 1 + self.brightness).astype(np.float32),
            "contrast": draws.span("contrast", 1 - self.contrast, 1 + self.contrast).astype(np.float32),
        }


@dataclass(frozen=True)
class Colour(Checked):
    """Change saturation by a factor within 1 +- `saturation` and turn the hue by up to `hue` degrees."""

    saturation: Probability = 0.2
    hue: Annotated[float, Meta(ge=0, le=180)] = 5.0

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return `saturation` (factor) and `hue` (degrees): float32 [n]."""
        return {
            "saturation": draws.span("saturation", 1 - self.saturation, 1 + self.saturation).astype(np.float32),
            "hue": draws.span("hue", -self.hue, self.hue).astype(np.float32),
        }


@dataclass(frozen=True)
class Sharpness(Checked):
    """Sharpen or soften by a factor within 1 +- `change`: 0 smooths with a 3 x 3 filter, 1 leaves, 2 sharpens.

    The filter is that of PIL's ImageEnhance.Sharpness.
    """

    change: Probability = 0.5

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return `kernel`: float32 [n, 3, 3]."""
        factor = draws.span("sharpness", 1 - self.change, 1 + self.change)[:, None, None]
        smooth = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
        still = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
        return {"kernel": ((1 - factor) * smooth + factor * still).astype(np.float32)}


@dataclass(frozen=True)
class Blur(Checked):
    """Gaussian blur with `probability`, as of a cell out of focus; `sigma` in pixels of the network's input."""

    sigma: tuple[Annotated[float, Meta(gt=0, le=32)], Annotated[float, Meta(gt=0, le=32)]] = (0.3, 2.0)
    probability: Probability = 0.3

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return `apply`: bool [n], and `sigma`: float32 [n]."""
        return {
            "apply": draws.coin("blur.apply", self.probability),
            "sigma": draws.span("blur.sigma", *self.sigma).astype(np.float32),
        }


@dataclass(frozen=True)
class Erase(Checked):
    """Paint a rectangle over with `probability` (Zhong et al., Random Erasing Data Augmentation, 2020).

    `area`: share of the image; `ratio`: height over width; `fill`: 0..255. Of ten proposals the first that fits is
    taken, else the image is left as it is.
    """

    area: tuple[Probability, Probability] = (0.02, 0.2)
    ratio: tuple[Positive, Positive] = (0.3, 3.3)
    probability: Probability = 0.25
    fill: Level = 128

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return `anchor` (top, left) and `shape` (height, width): float32 [n, 2], shares; shape 0 erases nothing."""
        one = np.ones_like(height)  # what the network sees is square
        ratio = 1 / self.ratio[1], 1 / self.ratio[0]
        box, fits = _boxes(draws, "erase", self.area, ratio, one, one)
        shown = fits & draws.coin("erase.apply", self.probability)
        shape = np.where(shown[:, None], box[:, 2:] - box[:, :2], 0)
        return {"anchor": box[:, :2].astype(np.float32), "shape": shape.astype(np.float32)}


@dataclass(frozen=True)
class Stain(Checked):
    """Vary how much of each stain there is (Tellez et al., Whole-Slide Mitosis Detection, 2018), with `probability`.

    Colours become optical densities, densities become amounts of three stains by the matrix of Ruifrok and Johnston
    (Quantification of Histochemical Staining by Color Deconvolution, 2001); each amount is multiplied by a factor
    within 1 +- `scale` and shifted by up to `shift`; and back. The stains of blood smears are others than those of
    that matrix: it serves as three directions in which real stains differ.
    """

    scale: Probability = 0.2
    shift: Probability = 0.05
    probability: Probability = 1.0

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return `apply`: bool [n], and, of log(1 + level), `matrix`: float32 [n, 3, 3], `offset`: float32 [n, 3]."""
        factor = 1 + self.scale * (2 * draws.block("stain.scale") - 1)
        shift = self.shift * (2 * draws.block("stain.shift") - 1)
        # density' = M^T (factor * (M^-T density) + shift), where density = log(256) - log(1 + level).
        matrix = np.einsum("ij,nj,jk->nik", STAINS.T, factor, np.linalg.inv(STAINS.T))
        offset = np.log(256) * (1 - matrix.sum(axis=2)) - shift @ STAINS
        return {
            "apply": draws.coin("stain.apply", self.probability),
            "matrix": matrix.astype(np.float32),
            "offset": offset.astype(np.float32),
        }


_DENSITIES = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAINS = _DENSITIES / np.linalg.norm(_DENSITIES, axis=1, keepdims=True)
"""Optical density of haematoxylin, eosin and DAB in red, green and blue (Ruifrok and Johnston, 2001), of length 1."""


def _boxes(
    draws: Draws,
    name: str,
    area: tuple[float, float],
    ratio: tuple[float, float],
    height: np.ndarray,
    width: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first of ten proposed boxes that fits, float64 [n, 4] (top, left, bottom, right), and whether any did.

    `area`: share of the image; `ratio`: width over height.
    """
    pixels = (height * width)[:, None].astype(float)
    areas = (area[0] + (area[1] - area[0]) * draws.block(f"{name}.area")) * pixels
    low, high = np.log(ratio[0]), np.log(ratio[1])
    ratios = np.exp(low + (high - low) * draws.block(f"{name}.ratio"))
    wide, tall = np.sqrt(areas * ratios) / width[:, None], np.sqrt(areas / ratios) / height[:, None]
    fits = (wide <= 1) & (tall <= 1)
    first, rows = fits.argmax(axis=1), np.arange(len(fits))
    wide, tall = wide[rows, first], tall[rows, first]
    top = (1 - tall) * draws.block(f"{name}.y")[rows, first]
    left = (1 - wide) * draws.block(f"{name}.x")[rows, first]
    return np.stack([top, left, top + tall, left + wide], axis=1), fits.any(axis=1)


def centre_window(height: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Return the largest central square of each image, float64 [n, 4]: top, left, bottom, right as shares."""
    side = np.minimum(height, width)
    tall, wide = side / height, side / width
    top, left = (1 - tall) / 2, (1 - wide) / 2
    return np.stack([top, left, top + tall, left + wide], axis=1)
