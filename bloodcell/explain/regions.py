"""Shortcut check: how much of the maps lies where no cell is, and what the network says when that is painted over.

Two kinds of evidence for each region (border, each corner, background): the share of the map's mass against the share
of the area, and the predictions that change when the region is filled with the image's median colour. Corners are
judged against the other corners (a scale bar lies in one of them).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from bloodcell.evaluation.intervals import wilson
from bloodcell.explain.occlusion import median_colour
from shards.appearance import CORNERS

BORDER = 0.08
"""Width of the border as a share of the side."""

CORNER = (0.16, 0.30)
"""Height and width of a corner as shares of the sides: where microscope software puts its scale bar."""

LEAD = 0.05
"""Share of the predictions that must change, beyond what the other corners do, before a region is flagged."""

NAMES = ("border", *CORNERS, "background")


def masks(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Return which pixels belong to each region, {name: bool [n, h, w]}.

    Args:
        pixels: uint8 [n, h, w, 3].
    """
    n, height, width = pixels.shape[:3]
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    edge_y, edge_x = max(1, round(BORDER * height)), max(1, round(BORDER * width))
    tall, wide = round(CORNER[0] * height), round(CORNER[1] * width)
    inner = (rows >= edge_y) & (rows < height - edge_y) & (columns >= edge_x) & (columns < width - edge_x)
    top, left = rows < tall, columns < wide
    bottom, right = rows >= height - tall, columns >= width - wide
    fixed = (~inner, top & left, top & right, bottom & left, bottom & right)
    found = {name: np.broadcast_to(mask, (n, height, width)) for name, mask in zip(NAMES, fixed, strict=False)}
    return {**found, "background": np.stack([_background(image) for image in pixels])}


def _background(image: np.ndarray) -> np.ndarray:
    """Return the pixels that are not stained: saturation below Otsu's threshold (1979), bool [h, w]."""
    values = image.astype(np.int64)
    saturation = values.max(axis=2) - values.min(axis=2)
    counts = np.bincount(saturation.ravel(), minlength=256).astype(float)
    weight = np.cumsum(counts)
    total = np.cumsum(counts * np.arange(256))
    rest = weight[-1] - weight
    with np.errstate(invalid="ignore", divide="ignore"):
        between = (total[-1] * weight / weight[-1] - total) ** 2 / (weight * rest)
    return np.asarray(saturation <= int(np.nanargmax(between))) if np.isfinite(between).any() else saturation < 0


def painted(images: torch.Tensor, mask: np.ndarray) -> torch.Tensor:
    """Return the images [n, 3, h, w] with the region filled with each image's median colour."""
    inside = torch.from_numpy(np.ascontiguousarray(mask)).to(images.device)[:, None]
    return torch.where(inside, median_colour(images), images)


@dataclass
class Tally:
    """What is counted of one region, image by image: shares of area and map, and predictions before and after."""

    area: list[float]
    share: list[float]
    after: list[int]


def judge(tallies: dict[str, Tally], before: np.ndarray, labels: np.ndarray, level: float = 0.95) -> dict[str, Any]:
    """Return the figures of every region and whether it is flagged.

    Args:
        tallies: by region.
        before: predicted class of the untouched images, int64 [n].
        labels: true class, int64 [n].
        level: of the intervals.
    """
    quantile = NormalDist().inv_cdf(0.5 + level / 2)
    found: dict[str, Any] = {}
    for name, tally in tallies.items():
        after = np.array(tally.after)
        changed = float((after != before).mean())
        interval = wilson(changed, len(before), quantile)
        area, share = float(np.mean(tally.area)), float(np.mean(tally.share))
        found[name] = {
            "area": round(area, 4),
            "map": round(share, 4),
            "ratio": round(share / area, 3) if area else None,
            "changed": round(changed, 4),
            "changed_low": round(interval.low, 4),
            "changed_high": round(interval.high, 4),
            "accuracy": round(float((before == labels).mean()), 4),
            "accuracy_painted": round(float((after == labels).mean()), 4),
        }
    for name, figures in found.items():
        others = [found[other]["changed"] for other in CORNERS if other != name and other in found]
        usual = float(np.median(others)) if name in CORNERS and others else 0.0
        figures["flagged"] = bool(figures["changed_low"] > usual + LEAD)
    return found
