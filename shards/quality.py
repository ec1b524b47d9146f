"""Which images of a set are blurry, dark, too bright, oversaturated, tiny or oddly shaped, measured by the set itself.

An image is compared with its like: images of about the same size, of its own class where that has enough of them.
The measure is the robust z-score, (x - median) / (1.4826 * median absolute deviation) (Iglewicz and Hoaglin, "How to
detect and handle outliers", 1993, who advise 3.5). A set may be so even that a harmless image lies far out by it, so
that an image must also differ visibly from the median before it is flagged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Thresholds:
    """From where on an image is flagged. z: robust z-scores; the rest are shares or ratios to the median of its like.

    Attributes:
        z: robust z-score from which a measure is unusual.
        blurry: sharpness (variance of the Laplacian by that of the pixels) below this share of the median.
        dark: mean of the lightest channel below this share of the median.
        bright: distance of the mean grey to white below this share of the median distance.
        clipped: share of pixels that are white in all channels, above the median share by this much.
        saturated: mean saturation 0..1 above the median by this much.
        tiny_pixels: shorter side in pixels below this, unless the median image is as small.
        tiny: shorter side below this share of the set's median.
        aspect: width / height differs from the set's median by this factor.
        least: images that a class needs to be compared by itself.
    """

    z: float = 3.5
    blurry: float = 0.1
    dark: float = 0.6
    bright: float = 0.4
    clipped: float = 0.25
    saturated: float = 0.2
    tiny_pixels: int = 32
    tiny: float = 0.4
    aspect: float = 1.3
    least: int = 30


FLAGS = {
    "blurry": "far less sharp than its like",
    "dark": "far darker than its like",
    "bright": "overexposed: far brighter than its like, or large parts pure white",
    "saturated": "colours far stronger than those of its like",
    "tiny": "far smaller than the rest",
    "odd aspect": "width and height stand in another proportion than in the rest",
}


def quality_flags(
    looks: NDArray[np.void],
    sizes: NDArray[np.int64],
    labels: Sequence[str],
    thresholds: Thresholds = Thresholds(),
) -> list[list[str]]:
    """Return the flags (keys of FLAGS) of each image.

    Args:
        looks: records of `shards.appearance.LOOK_DTYPE` [images].
        sizes: width and height in pixels [images, 2].
        labels: class names [images].
        thresholds: what counts as unusual.
    """
    if not len(looks):
        return []
    strata = likes(sizes, labels, thresholds.least)
    # The Laplacian grows with the contrast: a dark or a pale image is not blurred for that.
    contrast = looks["features"]["std"].astype(np.float64).mean(axis=1)
    sharp = np.log(looks["features"]["sharpness"].astype(np.float64) + 1e-3) - 2 * np.log(contrast + 1)
    grey = looks["brightness"].astype(np.float64)
    light = looks["features"]["mean"].astype(np.float64).max(axis=1)  # strong colours lower the grey, not this
    saturation, clipped = looks["saturation"].astype(np.float64), looks["clipped"].astype(np.float64)
    sharp_z, sharp_mid = robust_z(sharp, strata)
    grey_z, grey_mid = robust_z(grey, strata)
    light_z, light_mid = robust_z(light, strata)
    colour_z, colour_mid = robust_z(saturation, strata)
    _, clipped_mid = robust_z(clipped, strata)
    short = sizes.min(axis=1)
    usual = np.median(short)
    shape = np.log(sizes[:, 0] / sizes[:, 1])
    t = thresholds
    found = {
        "blurry": (sharp_z < -t.z) & (sharp - sharp_mid < np.log(t.blurry)),
        "dark": (light_z < -t.z) & (light < t.dark * light_mid),
        "bright": ((grey_z > t.z) & (255 - grey < t.bright * (255 - grey_mid))) | (clipped > clipped_mid + t.clipped),
        "saturated": (colour_z > t.z) & (saturation > colour_mid + t.saturated),
        "tiny": ((short < t.tiny_pixels) & (usual >= t.tiny_pixels)) | (short < t.tiny * usual),
        "odd aspect": np.abs(shape - np.median(shape)) > np.log(t.aspect),
    }
    return [[name for name, hit in found.items() if hit[i]] for i in range(len(looks))]


def likes(
    sizes: NDArray[np.int64], labels: Sequence[str], least: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return (images, what they are compared with) as positions; every image is in one of the first.

    An image is compared with its class among the images of its size (within a factor of about 1.4 a side); where
    those are fewer than `least`, with all images of its size; where those are fewer too, with the whole set.
    """
    side = np.sqrt(sizes.astype(np.float64).prod(axis=1))
    bucket = np.rint(2 * np.log2(np.maximum(side, 1) / np.median(side))).astype(np.int64)
    classes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)[1]
    found = []
    for size in np.unique(bucket):
        alike = np.flatnonzero(bucket == size)
        for label in np.unique(classes[alike]):
            own = alike[classes[alike] == label]
            wider = alike if len(alike) >= least else np.arange(len(sizes))
            found.append((own, own if len(own) >= least else wider))
    return found


def robust_z(
    values: NDArray[np.float64], strata: list[tuple[NDArray[np.int64], NDArray[np.int64]]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return robust z-scores of values [n] among their like (see `likes`), and the median of each one's like [n]."""
    z, middle = np.zeros(len(values)), np.zeros(len(values))
    for own, like in strata:
        median = np.median(values[like])
        spread = 1.4826 * np.median(np.abs(values[like] - median))
        z[own] = (values[own] - median) / max(float(spread), 1e-9)
        middle[own] = median
    return z, middle
