"""Segmentation of stained nuclei: 1-D k-means on the a channel of CIE Lab, threshold, holes and specks, black around.

The preset with which many groups prepare leukaemia smears (after Ghaderzadeh et al., Int J Intell Syst
2022;37:5113-5133, doi:10.1002/int.22753, whose data set comes with black backgrounds). On the a channel (green to
magenta) azure-stained chromatin stands far above red cells and background, whatever the light.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache

import numpy as np

from shards.images import UnusableImageError

SEGMENTATIONS = ("lab-kmeans",)

BINS, LOWEST, STEP = 256, -64_000, 750
"""The histogram of a, in thousandths: 256 bins of 0.75 from -64 on. What lies outside joins the ends."""

FULL = 65535
"""X and Y of white as whole numbers: sums of whole numbers are the same on every processor, and fast."""

XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750))
"""Linear sRGB to X and Y (IEC 61966-2-1); each row sums to that of the white point D65."""


@dataclass(frozen=True)
class Segmentation:
    """The parameters, stored with the set.

    Attributes:
        clusters: of the k-means.
        threshold: where between the lowest centre (0) and the highest (1) a cluster counts as stained.
        contrast: least distance of the lowest and the highest centre, in units of a; below, nothing is stained.
        hole: holes up to this share of the image's area are filled; larger ones are background between cells.
        speck: objects below this share of the image's area are removed.
    """

    clusters: int = 4
    threshold: float = 0.5
    contrast: float = 10.0
    hole: float = 0.01
    speck: float = 0.002


def parameters(how: Segmentation | None = None) -> dict[str, float]:
    """Return the parameters by name, for dataset.json."""
    return asdict(how or Segmentation())


def nuclei(rgb: np.ndarray, name: str, how: Segmentation | None = None) -> np.ndarray:
    """Return where stained nuclei are: bool [height, width] for uint8 RGB [height, width, 3].

    A function of the pixels alone: the k-means is the best one there is (not one from random centres).

    Args:
        rgb: the picture.
        name: one of SEGMENTATIONS.
        how: the parameters; those of every set if left out.

    Raises:
        UnusableImageError: nothing is stained, or only specks are (reason "segmentation").
    """
    from scipy import ndimage  # slow to load, and most sets are not segmented

    assert name in SEGMENTATIONS
    how = how or Segmentation()
    bins = np.clip((lab_a(rgb) - LOWEST) // STEP, 0, BINS - 1)
    first, centres = best_clusters(np.bincount(bins.ravel(), minlength=BINS), how.clusters)
    if STEP / 1000 * (centres[-1] - centres[0]) < how.contrast:
        raise UnusableImageError("segmentation", f"nothing is stained: a differs by less than {how.contrast:g}")
    stained = centres >= centres[0] + how.threshold * (centres[-1] - centres[0])
    mask = bins >= first[np.argmax(stained)]
    holes, count = ndimage.label(~mask)
    if count:
        sizes = np.bincount(holes.ravel())
        edge = np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]])
        filled = sizes <= how.hole * mask.size
        filled[edge] = False
        mask |= filled[holes]
    objects, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    large = np.bincount(objects.ravel()) >= how.speck * mask.size
    large[0] = False
    if not large.any():
        raise UnusableImageError("segmentation", "only specks are stained")
    return large[objects]


def lab_a(rgb: np.ndarray) -> np.ndarray:
    """Return the a channel of CIE 1976 L*a*b* (D65) in thousandths: int32 [...] for uint8 sRGB [..., 3]."""
    light, cube = _tables()
    red, green, blue = (rgb[..., channel] for channel in range(3))
    x, y = (cube[row[0][red] + row[1][green] + row[2][blue]] for row in light)
    return x - y


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Return the share of each sRGB value in X and Y, int32 [2, 3, 256], and 500,000 f(t) for both, int32 [FULL + 4].

    f is the cube root of Lab, linear near black (CIE 15:2004, section 8.2.1.1).
    """
    value = np.arange(256) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    weight = np.array([np.array(row) / sum(row) for row in XYZ])
    t = np.arange(FULL + 4) / FULL
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t * 841 / 108 + 4 / 29)
    return np.rint(FULL * weight[..., None] * linear).astype(np.int32), np.rint(500_000 * f).astype(np.int32)


def best_clusters(histogram: np.ndarray, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k-means of a histogram with the least sum of squares of all, by dynamic programming.

    On a line clusters are intervals, so the best ones are found exactly (Fisher, J Am Stat Assoc 1958;53:789-798;
    Wang and Song, R Journal 2011;3:29-33).

    Args:
        histogram: counts of each value, int64 [values].
        clusters: at most so many; fewer where there are fewer values.

    Returns:
        The first value of each cluster int64 [clusters] and its mean float64 [clusters], both rising.
    """
    values = np.flatnonzero(histogram)
    weight, number = histogram[values].astype(np.float64), len(values)
    sums = np.stack([np.concatenate([[0.0], np.cumsum(weight * values**power)]) for power in (0, 1, 2)])
    span = sums[:, None, 1:] - sums[:, :-1, None]  # of the interval [row, column]
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(np.tri(number, k=-1, dtype=bool), np.inf, span[2] - span[1] ** 2 / span[0])
    best, starts = cost[0], []
    for _ in range(min(clusters, number) - 1):
        total = best[:-1, None] + cost[1:]  # the last cluster starts behind row, ends at column
        starts.append(np.concatenate([[0], total.argmin(axis=0)[1:] + 1]) if number > 1 else np.zeros(1, np.int64))
        best = np.concatenate([[np.inf], total.min(axis=0)[1:]])
    edges = [number]
    for start in reversed(starts):
        edges.append(int(start[edges[-1] - 1]))
    edges = [*edges, 0][::-1]
    at = np.array(edges[:-1])
    moments = sums[:, edges[1:]] - sums[:, edges[:-1]]
    return values[at], moments[1] / moments[0]
