"""How the CPU backend does the operations that choose: DALI's suites, with the numbers that each image drew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from bloodcell.data import kernels
from bloodcell.data.choosing import (
    BINS,
    CHAINS,
    DEPTH,
    MIXED_BINS,
    MIXED_SUITE,
    PREFIXES,
    SUITE,
    AugMix,
    Hybrid,
    RandAugment,
    Trivial,
    own_arguments,
)
from bloodcell.data.kernels import Drawn, levels

Ranges = dict[str, tuple[float, float]]

_SHARED: Ranges = {"solarize": (256.0, 0.0), "equalize": (0, 0), "auto_contrast": (0, 0), "identity": (0, 0)}
RAND: Ranges = {
    **_SHARED,
    **dict.fromkeys(("translate_x", "translate_y"), (0.0, 100 / 224)),
    **dict.fromkeys(("shear_x", "shear_y"), (0.0, 0.3)),
    **dict.fromkeys(("brightness", "contrast", "color", "sharpness"), (0.0, 0.9)),
    "rotate": (0.0, 30.0),
    "posterize": (8.0, 4.0),
}
WIDE: Ranges = {
    **_SHARED,
    **dict.fromkeys(("translate_x", "translate_y"), (0.0, 32 / 224)),
    **dict.fromkeys(("shear_x", "shear_y"), (0.0, 0.99)),
    **dict.fromkeys(("brightness", "contrast", "color", "sharpness"), (0.01, 0.99)),
    "rotate": (0.0, 135.0),
    "posterize": (8.0, 2.0),
}
MIXED: Ranges = {
    **_SHARED,
    **dict.fromkeys(("translate_x", "translate_y"), (0.0, 1 / 3)),
    **dict.fromkeys(("shear_x", "shear_y"), (0.0, 0.3)),
    "rotate": (0.0, 30.0),
    "posterize": (4.0, 0.0),
}
"""Magnitudes of the first and the last bin of each operation in the three suites: those of render_choosing.py."""

UNSIGNED = ("posterize", "solarize")


def randaugment(image: torch.Tensor, operation: RandAugment, drawn: Drawn) -> torch.Tensor:
    """Apply the operations of all levels, one after the other."""
    for level in range(operation.levels):
        image = _select(image, SUITE, RAND, drawn, level, BINS, operation.fill)
    return image


def trivial(image: torch.Tensor, operation: Trivial, drawn: Drawn) -> torch.Tensor:
    """Apply the one operation."""
    return _select(image, SUITE, WIDE, drawn, 0, BINS, operation.fill)


def augmix(image: torch.Tensor, operation: AugMix, drawn: Drawn) -> torch.Tensor:
    """Blend the image with its chains; an image that keeps all of its weight is passed on."""
    if drawn["depth"][0] == 0:
        return image
    blend = image.float().mul_(float(drawn["weight"][0]))
    for chain in range(CHAINS):
        link = image
        for level in range(int(drawn["depth"][chain])):
            link = _select(link, MIXED_SUITE, MIXED, drawn, chain * DEPTH + level, MIXED_BINS, operation.fill)
        blend.add_(link, alpha=float(drawn["weight"][chain + 1]))
    return levels(blend)


def hybrid(image: torch.Tensor, operation: Hybrid, drawn: Drawn) -> torch.Tensor:
    """Apply both parts, one of which leaves the image as it is."""
    rand, mix = operation.parts
    image = randaugment(image, rand, own_arguments(drawn, PREFIXES[0]))
    return augmix(image, mix, own_arguments(drawn, PREFIXES[1]))


def _select(
    image: torch.Tensor, suite: tuple[str, ...], ranges: Ranges, drawn: Drawn, place: int, bins: int, fill: int
) -> torch.Tensor:
    name = suite[int(drawn["op"][place])]
    low, high = ranges[name]
    strength = float(np.linspace(low, high, bins)[int(drawn["bin"][place])])
    if drawn["sign"][place] and name not in UNSIGNED:
        strength = -strength
    return _OPERATIONS[name](image, strength, fill)


def _shifted(image: torch.Tensor, entries: dict[tuple[int, int], float], fill: int) -> torch.Tensor:
    back = np.eye(2, 3)
    for place, value in entries.items():
        back[place] = value
    return kernels.warped(image, back, fill)


def _contrast(image: torch.Tensor, strength: float, fill: int) -> torch.Tensor:
    means = image.view(-1, 3).sum(0, dtype=torch.int64).double().numpy() / (len(image) ** 2)
    grey, factor = float(means @ kernels.WEIGHTS), 1 + strength
    return kernels.linear(image, factor, grey * (1 - factor))


def _sharpness(image: torch.Tensor, strength: float, fill: int) -> torch.Tensor:
    return kernels.ringed(image, -strength * 5 / 13 + 1 + strength, -strength / 13)


def _posterize(image: torch.Tensor, strength: float, fill: int) -> torch.Tensor:
    bits = min(max(int(np.round(strength)), 1), 8)
    return image & (255 ^ (2 ** (8 - bits) - 1))


def _solarize(image: torch.Tensor, strength: float, fill: int) -> torch.Tensor:
    return torch.where(image < float(np.float32(strength)), image, 255 - image)


def _equalize(image: torch.Tensor, strength: float, fill: int) -> torch.Tensor:
    """Spread each channel's histogram by OpenCV's formula, as DALI does: the darkest level becomes 0."""
    tables = []
    for channel in image.view(-1, 3).T:
        counts = torch.bincount(channel, minlength=256).numpy()
        darkest = int(counts.argmax() if counts.max() == len(channel) else np.flatnonzero(counts)[0])
        if counts[darkest] == len(channel):
            tables.append(np.full(256, darkest))
            continue
        above = np.cumsum(counts) - counts[darkest]
        scale = np.float32(255) / np.float32(len(channel) - counts[darkest])
        tables.append(np.rint(np.maximum(above, 0).astype(np.float32) * scale))
    return _looked_up(image, np.stack(tables))


def _auto_contrast(image: torch.Tensor, strength: float, fill: int) -> torch.Tensor:
    low, high = (edge.numpy().astype(np.float32) for edge in torch.aminmax(image.view(-1, 3), dim=0))
    steps, spread = np.arange(256, dtype=np.float32), high - low
    flat = spread == 0
    scale = np.float32(255) / np.where(flat, 255, spread).astype(np.float32)
    tables = (steps[None] - np.where(flat, 0, low)[:, None]) * scale[:, None]
    return _looked_up(image, np.rint(tables).clip(0, 255))


def _looked_up(image: torch.Tensor, tables: np.ndarray) -> torch.Tensor:
    """Return the image with the levels of each channel replaced by those of its table, [3, 256]."""
    flat, tables = image.view(-1, 3).numpy(), tables.astype(np.uint8)
    done = np.empty_like(flat)
    for channel in range(3):
        np.take(tables[channel], flat[:, channel], out=done[:, channel], mode="clip")
    return torch.from_numpy(done).view(image.shape)


_OPERATIONS: dict[str, Callable[[torch.Tensor, float, int], torch.Tensor]] = {
    "translate_x": lambda image, strength, fill: _shifted(image, {(0, 2): -strength}, fill),
    "translate_y": lambda image, strength, fill: _shifted(image, {(1, 2): -strength}, fill),
    "shear_x": lambda image, strength, fill: _shifted(image, {(0, 1): -strength}, fill),
    "shear_y": lambda image, strength, fill: _shifted(image, {(1, 0): -strength}, fill),
    "rotate": kernels.turned,
    "brightness": lambda image, strength, fill: kernels.linear(image, 1 + strength, 0.0),
    "contrast": _contrast,
    "color": lambda image, strength, fill: kernels.recoloured(image, 1 + strength),
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "equalize": _equalize,
    "auto_contrast": _auto_contrast,
    "identity": lambda image, strength, fill: image,
}
