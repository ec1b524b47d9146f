"""Augmentation as data: a policy is a list of operations with ranges, and what happens to a sample is drawn here.

A backend (the DALI pipeline) only renders the drawn numbers, so the pixels of a sample depend on (seed, epoch, sample
id, occurrence) and on nothing else: no batch size, thread, rank or restart.
"""

from __future__ import annotations

import dataclasses
import importlib
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_type_hints

import msgspec
import numpy as np

from bloodcell.data.draws import Draws
from shards.errors import BadInput, nearest

Arguments = dict[str, np.ndarray]
"""What a backend needs for a batch: one array per argument, first axis = sample."""


class Operation(Protocol):
    """One step of a policy: frozen data, and how its arguments are drawn."""

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return the arguments for samples whose images are `height` x `width` pixels (int64 [n])."""


@dataclass(frozen=True)
class Crop:
    """A random window, resized to the input size (Szegedy et al., Going Deeper with Convolutions, 2015).

    `area`: share of the image; `ratio`: width over height. Of ten proposals the first that fits is taken, else the
    largest central square.
    """

    area: tuple[float, float] = (0.7, 1.0)
    ratio: tuple[float, float] = (0.8, 1.25)

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return `window`: float32 [n, 4], top, left, bottom, right as shares of the image."""
        pixels = (height * width)[:, None].astype(float)
        area = (self.area[0] + (self.area[1] - self.area[0]) * draws.block("crop.area")) * pixels
        low, high = np.log(self.ratio[0]), np.log(self.ratio[1])
        ratio = np.exp(low + (high - low) * draws.block("crop.ratio"))
        wide, tall = np.sqrt(area * ratio) / width[:, None], np.sqrt(area / ratio) / height[:, None]
        fits = (wide <= 1) & (tall <= 1)
        first, rows = fits.argmax(axis=1), np.arange(len(fits))
        wide, tall = wide[rows, first], tall[rows, first]
        top = (1 - tall) * draws.block("crop.y")[rows, first]
        left = (1 - wide) * draws.block("crop.x")[rows, first]
        drawn = np.stack([top, left, top + tall, left + wide], axis=1)
        window = np.where(fits.any(axis=1)[:, None], drawn, centre_window(height, width))
        return {"window": window.clip(0, 1).astype(np.float32)}


@dataclass(frozen=True)
class Flip:
    """Mirror images left-right and upside-down, each with its probability; cells have no up."""

    horizontal: float = 0.5
    vertical: float = 0.5

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return `horizontal` and `vertical`: int32 [n], 0 or 1."""
        return {
            "horizontal": draws.coin("flip.horizontal", self.horizontal).astype(np.int32),
            "vertical": draws.coin("flip.vertical", self.vertical).astype(np.int32),
        }


@dataclass(frozen=True)
class Rotate:
    """Turn by any angle up to `degrees` either way; what comes from outside is filled with `fill` (0..255)."""

    degrees: float = 180.0
    fill: int = 255

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return `angle`: float32 [n], degrees."""
        return {"angle": draws.span("angle", -self.degrees, self.degrees).astype(np.float32)}


@dataclass(frozen=True)
class Brightness:
    """Multiply brightness and contrast by factors within 1 +- the given; contrast turns about mid-grey."""

    brightness: float = 0.15
    contrast: float = 0.15

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return `brightness` and `contrast`: float32 [n], factors."""
        return {
            "brightness": draws.span("brightness", 1 - self.brightness, 1 + self.brightness).astype(np.float32),
            "contrast": draws.span("contrast", 1 - self.contrast, 1 + self.contrast).astype(np.float32),
        }


@dataclass(frozen=True)
class Colour:
    """Change saturation by a factor within 1 +- `saturation` and turn the hue by up to `hue` degrees."""

    saturation: float = 0.2
    hue: float = 5.0

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return `saturation` (factor) and `hue` (degrees): float32 [n]."""
        return {
            "saturation": draws.span("saturation", 1 - self.saturation, 1 + self.saturation).astype(np.float32),
            "hue": draws.span("hue", -self.hue, self.hue).astype(np.float32),
        }


OPERATIONS: dict[str, type] = {"crop": Crop, "flip": Flip, "rotate": Rotate, "brightness": Brightness, "colour": Colour}
"""The operations a policy file can name."""


@dataclass(frozen=True)
class Policy:
    """A named list of operations, in the order in which they are applied."""

    name: str
    operations: tuple[Operation, ...]


POLICIES: dict[str, Policy] = {
    "none": Policy("none", ()),
    "light": Policy("light", (Crop(), Flip(), Brightness())),
    "rotate": Policy("rotate", (Crop(), Flip(), Rotate(), Brightness())),
}


def centre_window(height: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Return the largest central square of each image, float64 [n, 4]: top, left, bottom, right as shares."""
    side = np.minimum(height, width)
    tall, wide = side / height, side / width
    top, left = (1 - tall) / 2, (1 - wide) / 2
    return np.stack([top, left, top + tall, left + wide], axis=1)


def find_policy(name: str) -> Policy:
    """Return a policy by its registered name, from a .toml file ([[operation]] tables), or from module:function.

    Raises:
        BadInput: unknown, unreadable, or an operation with a wrong name or value.
    """
    if name in POLICIES:
        return POLICIES[name]
    if name.endswith(".toml"):
        return _read_policy(Path(name))
    if ":" in name:
        return _call(name)
    fix = nearest(name, list(POLICIES)) or f"choose one of {', '.join(POLICIES)}, a .toml file or module:function"
    raise BadInput(f"no policy {name!r}", "data.policy", fix)


def _call(name: str) -> Policy:
    module, _, function = name.partition(":")
    try:
        make: Callable[[], Policy] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise BadInput(f"no policy {name!r}: {error}", "data.policy", "check the module and the function") from error
    policy = make()
    if not isinstance(policy, Policy):
        raise BadInput(f"{name} returned {type(policy).__name__}", "data.policy", "return a Policy")
    return policy


def _read_policy(path: Path) -> Policy:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"the policy cannot be read: {error}", path, "give a TOML file of [[operation]] tables"
        ) from error
    operations = content.get("operation", [])
    if not isinstance(operations, list):
        raise BadInput("operation is not a list", path, "write each one below [[operation]]")
    return Policy(path.stem, tuple(_operation(dict(entry), path) for entry in operations))


def _operation(entry: dict[str, Any], path: Path) -> Operation:
    name = str(entry.pop("name", ""))
    if name not in OPERATIONS:
        fix = nearest(name, list(OPERATIONS)) or f"choose one of {', '.join(OPERATIONS)}"
        raise BadInput(f"no operation {name!r}", path, fix)
    cls = OPERATIONS[name]
    known = [leaf.name for leaf in dataclasses.fields(cls)]
    for key in entry:
        if key not in known:
            raise BadInput(f"{name} has no {key!r}", path, nearest(key, known) or f"it has {', '.join(known)}")
    hints = get_type_hints(cls)
    try:
        return cls(**{key: msgspec.convert(value, hints[key]) for key, value in entry.items()})
    except msgspec.ValidationError as error:
        raise BadInput(f"{name}: {error}", path, "mend the value") from error


def draw(policy: Policy, draws: Draws, height: np.ndarray, width: np.ndarray) -> list[Arguments]:
    """Return the arguments of every operation of the policy for a batch; sizes in pixels, int64 [n]."""
    return [operation.draw(draws, height, width) for operation in policy.operations]
