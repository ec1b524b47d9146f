"""Pictures of an explanation: images with their maps, and the map of the features, as small data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

SIDE = 176
"""Longer side of a picture in pixels."""

COLOURS = "tab10"
MOST_NAMES = 10
"""Names that get a colour of their own; the others are grey."""


def overlay(pixels: np.ndarray, heat: np.ndarray, side: int = SIDE) -> str:
    """Return an image with its map over it as a JPEG data URI.

    Args:
        pixels: uint8 [h, w, 3].
        heat: float [h, w] in 0..1; where it is 0 the image shows unchanged.
        side: longer side of the result, pixels, at most.
    """
    colour = mpl.colormaps["inferno"](heat)[..., :3] * 255
    strength = 0.65 * heat[..., None]
    return uri((pixels * (1 - strength) + colour * strength).round().astype(np.uint8), side)


def uri(pixels: np.ndarray, side: int = SIDE) -> str:
    """Return pixels uint8 [h, w, 3] as a JPEG data URI of at most `side` pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def scatter(places: np.ndarray, names: Sequence[str], title: str) -> str:
    """Return points in the plane, coloured by name, as a PNG data URI.

    Args:
        places: float [n, 2].
        names: of each point; the most frequent ones get a colour.
        title: what the colours mean.
    """
    known, counts = np.unique(names, return_counts=True)
    shown = [str(name) for name in known[np.argsort(-counts, kind="stable")][:MOST_NAMES] if name]
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    rest = np.array([name not in shown for name in names])
    if rest.any():
        axes.scatter(
            places[rest, 0], places[rest, 1], s=7, color="#bbbbbb", label="others" if shown else None, linewidths=0
        )
    for name, colour in zip(shown, mpl.colormaps[COLOURS].colors, strict=False):  # type: ignore[attr-defined]
        chosen = np.array([other == name for other in names])
        axes.scatter(places[chosen, 0], places[chosen, 1], s=7, color=colour, label=name[:40], linewidths=0)
    axes.set(xticks=[], yticks=[], title=title)
    if shown:
        axes.legend(fontsize="small", markerscale=2, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
