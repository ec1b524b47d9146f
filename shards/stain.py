"""Stain normalisation: Macenko's and Reinhard's methods, towards a fixed target.

The target is the same for every set, so that what becomes of an image depends on that image alone: not on the others,
their order, or what is added later. It is the median over 3,199 images of normal cells in May-Grünwald-Giemsa stain
(Acevedo et al., 'A dataset for microscopic peripheral blood cell images for development of automatic recognition
systems', doi:10.17632/snkd93bnjr.1, CC BY 4.0). The targets that other programs bring along are tissue sections in
haematoxylin and eosin: they turn smears pink.

Black pixels (the frame of a turned picture, the surroundings of a segmented cell) neither count nor change.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from shards.images import UnusableImageError

STAINS = ("macenko", "reinhard")

BLACK = 8
"""Pixels with all channels below this are no part of the picture."""

LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
"""RGB to the responses of the cones (Reinhard et al. 2001, equation 4)."""

OPPONENT = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])
"""Logarithms of LMS to l (light), alpha (yellow to blue), beta (red to green) (Reinhard et al. 2001, equation 6)."""

DECIMALS = 6
"""Statistics are rounded: the last bits of a sum differ between processors, the pixels must not."""


@dataclass(frozen=True)
class Macenko:
    """Parameters and target of Macenko's method.

    Attributes:
        background: percentile of each channel over the picture that is taken for the light behind the smear.
        light: that light (of 255) where more than half of a picture is black: then it shows no background.
        transparent: pixels whose mean optical density (natural logarithm) is below this do not count as stained.
        tail: percent of the stained pixels' angles, and of concentrations, that count as extreme on each side.
        least: share of the picture that has to be stained.
        stains: target: optical densities of azure and eosin in red, green and blue, of length 1, [2][3].
        strongest: target: concentration of each stain that only `tail` percent of the stained pixels exceed, [2].
        shine: target: the light behind the smear in red, green and blue, of 255.
    """

    background: float = 90.0
    light: float = 240.0
    transparent: float = 0.15
    tail: float = 1.0
    least: float = 0.002
    stains: tuple[tuple[float, float, float], ...] = ((0.7165, 0.6486, 0.2567), (0.4386, 0.8935, 0.0963))
    strongest: tuple[float, float] = (1.0106, 2.6241)
    shine: tuple[float, float, float] = (255.0, 228.0, 203.0)


@dataclass(frozen=True)
class Reinhard:
    """Target of Reinhard's method and what it asks for.

    Attributes:
        least: smallest standard deviation of l that is not taken for a blank picture.
        mean: target: means of l, alpha and beta (natural logarithms of cone responses to 1 to 255).
        deviation: target: their standard deviations.
    """

    least: float = 0.01
    mean: tuple[float, float, float] = (9.0755, 0.0372, 0.0245)
    deviation: tuple[float, float, float] = (0.4484, 0.1676, 0.0129)


def parameters(name: str) -> dict[str, object]:
    """Return the parameters and the target of a method by name, for dataset.json."""
    return asdict(Macenko() if name == "macenko" else Reinhard())


def normalised(rgb: np.ndarray, name: str) -> np.ndarray:
    """Return the image with its stain normalised: uint8 RGB [height, width, 3] in and out.

    Raises:
        UnusableImageError: there is nothing to normalise by (reason "stain"): the image is white, black, grey or of
            one colour, or (Reinhard) more than half black.
    """
    return macenko(rgb, Macenko()) if name == "macenko" else reinhard(rgb, Reinhard())


def macenko(rgb: np.ndarray, to: Macenko) -> np.ndarray:
    """Separate two stains, give them the target's colours and strengths; arguments and errors as in `normalised`.

    Macenko et al., 'A method for normalizing histology slides for quantitative analysis', ISBI 2009, pages 1107-1110.
    Two things are made for smears: the light is measured in each picture, and a pixel is stained if it is so on
    average over the channels, for azure lets blue light pass.
    """
    pixels = rgb.reshape(-1, 3)
    inside = pixels.max(axis=1) >= BLACK
    density = optical_density(pixels[inside], inside.mean(), to)
    own, strongest = stains_of(density, to)
    change = np.linalg.pinv(own) @ np.diag(np.array(to.strongest) / strongest) @ np.array(to.stains)
    out = pixels.copy()
    shone = (np.array(to.shine) + 1) * np.exp(-(density @ change)) - 1
    out[inside] = np.clip(np.rint(shone), 0, 255).astype(np.uint8)
    return out.reshape(rgb.shape)


def optical_density(pixels: np.ndarray, share: float, how: Macenko) -> np.ndarray:
    """Return -ln((I + 1) / (I0 + 1)) of each channel, float64 [pixels, 3].

    Args:
        pixels: those inside the picture, uint8 [pixels, 3].
        share: of the picture that they make up.
        how: says how the light I0 is measured.
    """
    if share > 0.5:
        light = np.percentile(pixels, how.background, axis=0)
    elif len(pixels):
        light = np.full(3, how.light)
    else:
        raise UnusableImageError("stain", "the picture is black")
    table = np.log(np.arange(256) + 1.0)
    return np.log(light + 1) - table[pixels]


def stains_of(density: np.ndarray, how: Macenko) -> tuple[np.ndarray, np.ndarray]:
    """Find the two stains of a picture: the extreme directions in the plane of the two main components.

    Args:
        density: optical densities [pixels, 3].
        how: the parameters.

    Returns:
        Their optical densities, float64 [2, 3], rows of length 1, first the one that takes more red (azure); their
        largest concentrations, float64 [2].

    Raises:
        UnusableImageError: too little is stained, or by one stain alone.
    """
    stained = density[density.mean(axis=1) >= how.transparent]
    if len(stained) < max(how.least * len(density), 16):
        raise UnusableImageError("stain", f"{len(stained):,} of {len(density):,} pixels are stained")
    values, vectors = np.linalg.eigh(np.cov(stained.T))
    plane = vectors[:, 1:] * np.where(vectors[:, 1:].sum(axis=0) < 0, -1, 1)
    shadow = stained @ plane
    angle = np.percentile(np.arctan2(shadow[:, 0], shadow[:, 1]), [how.tail, 100 - how.tail])
    if values[1] < 1e-6 or angle[1] - angle[0] < 1e-3:
        raise UnusableImageError("stain", "all that is stained has one colour")
    own = np.stack([np.sin(angle), np.cos(angle)], axis=1) @ plane.T
    own = np.round(own if own[0, 0] >= own[1, 0] else own[::-1], DECIMALS)
    strongest = np.round(np.percentile(stained @ np.linalg.pinv(own), 100 - how.tail, axis=0), DECIMALS)
    if strongest.min() < how.transparent:
        raise UnusableImageError("stain", "one of the two stains is missing")
    return own, strongest


def reinhard(rgb: np.ndarray, to: Reinhard) -> np.ndarray:
    """Give l, alpha and beta the target's means and deviations; arguments and errors as in `normalised`.

    Reinhard, Ashikhmin, Gooch, Shirley, 'Color transfer between images', IEEE Computer Graphics and Applications
    2001;21(5):34-41. The target is whole smears, background included, hence no picture that is mostly black.
    """
    pixels = rgb.reshape(-1, 3)
    inside = pixels.max(axis=1) >= BLACK
    if inside.mean() <= 0.5:
        raise UnusableImageError("stain", "more than half of the picture is black")
    opponent = lab(pixels[inside])
    mean, deviation = opponent.mean(axis=0).round(DECIMALS), opponent.std(axis=0).round(DECIMALS)
    if deviation[0] < to.least or deviation[1:].min() < 1e-4:
        raise UnusableImageError("stain", "the picture has one colour")
    moved = (opponent - mean) * (np.array(to.deviation) / deviation) + np.array(to.mean)
    out = pixels.copy()
    cones = np.exp(moved @ OPPONENT)
    out[inside] = np.clip(np.rint(cones @ np.linalg.inv(LMS).T), 0, 255).astype(np.uint8)
    return out.reshape(rgb.shape)


def lab(pixels: np.ndarray) -> np.ndarray:
    """Return l, alpha and beta of uint8 RGB [pixels, 3], float64 [pixels, 3]; 0 counts as 1 (no logarithm of 0)."""
    return np.log(np.maximum(pixels, 1) @ LMS.T) @ OPPONENT.T
