"""What each operation does to pixels, beside the same formula in numpy, SciPy or PIL. Tolerances are of 255 levels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter

from bloodcell.data.choosing import (
    BINS,
    CHAINS,
    DEPTH,
    MIXED_SUITE,
    SUITE,
    AugMix,
    Hybrid,
    RandAugment,
    Trivial,
)
from bloodcell.data.draws import Draws
from bloodcell.data.loader import Loader
from bloodcell.data.operations import (
    STAINS,
    Affine,
    Arguments,
    Blur,
    Brightness,
    Colour,
    Erase,
    Operation,
    Rotate,
    Sharpness,
    Stain,
)
from bloodcell.data.pipeline import View
from bloodcell.data.policies import Policy
from bloodcell.data.request import Request
from bloodcell.data.shardset import ShardSet

SIZE = 48  # of the drawn images: nothing is resized
IDS = np.arange(40)


def shown(folder: Path, *operations: Operation, views: int = 1, ids: np.ndarray = IDS) -> np.ndarray:
    """Return what the pipeline makes of samples: int64 [views * n, SIZE, SIZE, 3]."""
    view = View(SIZE, (0.0,) * 3, (1.0,) * 3, Policy("test", operations), seed=9, views=views)
    request = Request(ids, np.zeros_like(ids), 1, np.ones(len(ids), dtype=bool))
    with Loader(ShardSet.open(folder), iter([request]), view, len(ids), 1, torch.device("cpu")) as loader:
        (batch,) = loader
    return (batch.images.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.int64)


def drawn(operation: Operation, ids: np.ndarray = IDS) -> Arguments:
    sides = np.full(len(ids), SIZE)
    return operation.draw(Draws(9, 1, ids, np.zeros_like(ids)), sides, sides)


@pytest.fixture(scope="module")
def plain(small_set: Path) -> np.ndarray:
    return shown(small_set)


def levels(pixels: np.ndarray) -> np.ndarray:
    return np.rint(pixels).clip(0, 255)


def warped(image: np.ndarray, back: tuple[float, ...], fill: int = 255) -> np.ndarray:
    """Return PIL's affine transform: `back` leads from the result to the original."""
    picture = Image.fromarray(image.astype(np.uint8))
    filled = (fill, fill, fill)
    done = picture.transform(picture.size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR, fillcolor=filled)
    return np.asarray(done, dtype=np.int64)


def test_affine(small_set: Path, plain: np.ndarray) -> None:
    """Tolerance: 2 on average; at the border of the original PIL does not blend with the filling."""
    operation = Affine(0.2, (0.7, 1.4), 20.0)
    for image, after, matrix in zip(plain, shown(small_set, operation), drawn(operation)["matrix"], strict=True):
        back = matrix * [1, 1, SIZE]
        difference = np.abs(after - warped(image, tuple(back.ravel())))
        assert difference.mean() <= 2
        assert np.quantile(difference, 0.9) <= 2


def test_affine_leads_where_it_says() -> None:
    """The inverse of the drawn matrix moves the centre by the drawn shift and scales areas within the range."""
    ids = np.arange(2000)
    matrix = drawn(Affine(0.1, (0.8, 1.25), 0.0), ids)["matrix"].astype(float)
    areas = 1 / np.linalg.det(matrix[:, :, :2])
    assert 0.8**2 - 1e-5 < areas.min() < areas.max() < 1.25**2 + 1e-5
    centre = np.linalg.solve(matrix[:, :, :2], (0.5 - matrix[:, :, 2])[:, :, None])[:, :, 0]
    assert 0.09 < np.abs(centre - 0.5).max() <= 0.1 + 1e-5


def test_rotation(small_set: Path, plain: np.ndarray) -> None:
    """Tolerance: 2 on average, nine tenths of the pixels within 2: PIL does not blend the rim with the filling."""
    for image, after, angle in zip(plain, shown(small_set, Rotate()), drawn(Rotate())["angle"], strict=True):
        picture = Image.fromarray(image.astype(np.uint8))
        turned = picture.rotate(float(angle), Image.Resampling.BILINEAR, fillcolor=(255, 255, 255))
        difference = np.abs(after - np.asarray(turned, dtype=np.int64))
        assert difference.mean() <= 2
        assert np.quantile(difference, 0.9) <= 2


def test_brightness_and_contrast(small_set: Path, plain: np.ndarray) -> None:
    """Tolerance: 1, of rounding."""
    operation = Brightness(0.4, 0.4)
    factors = drawn(operation)
    for row, (image, after) in enumerate(zip(plain, shown(small_set, operation), strict=True)):
        expected = factors["brightness"][row] * (127.5 + factors["contrast"][row] * (image - 127.5))
        assert np.abs(after - levels(expected)).max() <= 1


def test_colour(small_set: Path, plain: np.ndarray) -> None:
    """A turn and a stretch of the plane of colours in YIQ. Tolerance: 2, of the rounded matrices."""
    operation = Colour(0.5, 40.0)
    yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
    factors = drawn(operation)
    for row, (image, after) in enumerate(zip(plain, shown(small_set, operation), strict=True)):
        angle, stretch = np.radians(factors["hue"][row]), factors["saturation"][row]
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        change = np.eye(3)
        change[1:, 1:] = stretch * turn
        expected = image @ (np.linalg.inv(yiq) @ change @ yiq).T
        assert np.abs(after - levels(expected)).max() <= 2


def test_stain(small_set: Path, plain: np.ndarray) -> None:
    """Densities to amounts of stain and back, in double precision. Tolerance: 1, of rounding."""
    operation = Stain(0.3, 0.1, 0.7)
    arguments = drawn(operation)
    draws = Draws(9, 1, IDS, np.zeros_like(IDS))
    factor, shift = 1 + 0.3 * (2 * draws.block("stain.scale") - 1), 0.1 * (2 * draws.block("stain.shift") - 1)
    assert 0 < arguments["apply"].sum() < len(IDS)
    for row, (image, after) in enumerate(zip(plain, shown(small_set, operation), strict=True)):
        amounts = -np.log((image + 1) / 256) @ np.linalg.inv(STAINS)
        expected = 256 * np.exp(-(amounts * factor[row] + shift[row]) @ STAINS) - 1
        if not arguments["apply"][row]:
            expected = image
        assert np.abs(after - levels(expected)).max() <= 1


def test_sharpness(small_set: Path, plain: np.ndarray) -> None:
    """Tolerance inside the border, which PIL leaves alone: 2, as PIL rounds the smoothed image first."""
    operation = Sharpness(1.0)
    draws = Draws(9, 1, IDS, np.zeros_like(IDS))
    factors = draws.span("sharpness", 0.0, 2.0)
    for image, after, factor in zip(plain, shown(small_set, operation), factors, strict=True):
        picture = ImageEnhance.Sharpness(Image.fromarray(image.astype(np.uint8))).enhance(float(factor))
        assert np.abs(after - np.asarray(picture, dtype=np.int64))[1:-1, 1:-1].max() <= 2


def test_blur(small_set: Path, plain: np.ndarray) -> None:
    """Tolerance: 1, of rounding; images that drew no blur stay as they are."""
    operation = Blur((0.4, 3.0), 0.5)
    arguments = drawn(operation)
    for row, (image, after) in enumerate(zip(plain, shown(small_set, operation), strict=True)):
        if arguments["apply"][row]:
            sigma = float(arguments["sigma"][row])
            radius = int(np.ceil(3 * sigma))
            blurred = gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="mirror", radius=(radius, radius, 0))
            assert np.abs(after - blurred).max() <= 1
        else:
            assert np.array_equal(after, image)


def test_erasing(small_set: Path, plain: np.ndarray) -> None:
    """The box is painted, give or take a pixel at its edges; all else is untouched."""
    operation = Erase((0.05, 0.3), probability=0.7, fill=77)
    arguments = drawn(operation)
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    for row, (image, after) in enumerate(zip(plain, shown(small_set, operation), strict=True)):
        top, left = arguments["anchor"][row] * SIZE
        bottom, right = arguments["anchor"][row] * SIZE + arguments["shape"][row] * SIZE
        depth = np.min([rows - top, bottom - rows, columns - left, right - columns], axis=0)
        if arguments["shape"][row, 0] == 0:
            depth = np.full_like(depth, -SIZE)
        assert (after[depth >= 1] == 77).all()
        assert (after[depth <= -1] == image[depth <= -1]).all()


def chosen(name: str, image: np.ndarray, magnitude: float) -> np.ndarray:
    """Return what PIL makes of one operation of the suites, with the value that its magnitude stands for."""
    picture = Image.fromarray(image.astype(np.uint8))
    done: dict[str, Callable[[], object]] = {
        "translate_x": lambda: warped(image, (1, 0, -magnitude * SIZE, 0, 1, 0)),
        "translate_y": lambda: warped(image, (1, 0, 0, 0, 1, -magnitude * SIZE)),
        "shear_x": lambda: warped(image, (1, -magnitude, 0, 0, 1, 0)),
        "shear_y": lambda: warped(image, (1, 0, 0, -magnitude, 1, 0)),
        "rotate": lambda: picture.rotate(magnitude, Image.Resampling.BILINEAR, fillcolor=(255, 255, 255)),
        "brightness": lambda: ImageEnhance.Brightness(picture).enhance(1 + magnitude),
        "contrast": lambda: ImageEnhance.Contrast(picture).enhance(1 + magnitude),
        "color": lambda: ImageEnhance.Color(picture).enhance(1 + magnitude),
        "sharpness": lambda: ImageEnhance.Sharpness(picture).enhance(1 + magnitude),
        "posterize": lambda: ImageOps.posterize(picture, max(round(magnitude), 1)),
        "solarize": lambda: ImageOps.solarize(picture, int(np.ceil(magnitude))),
        "equalize": lambda: ImageOps.equalize(picture),
        "auto_contrast": lambda: ImageOps.autocontrast(picture),
        "identity": lambda: picture,
    }
    return np.asarray(done[name](), dtype=np.int64)


def magnitude_of(name: str, share: float, sign: int, ranges: dict[str, tuple[float, float]]) -> float:
    low, high = ranges.get(name, (0.0, 0.0))
    strength = low + share * (high - low)
    return -strength if sign and name not in ("posterize", "solarize") else strength


RAND = {
    **dict.fromkeys(("translate_x", "translate_y"), (0.0, 100 / 224)),
    **dict.fromkeys(("shear_x", "shear_y"), (0.0, 0.3)),
    **dict.fromkeys(("brightness", "contrast", "color", "sharpness"), (0.0, 0.9)),
    "rotate": (0.0, 30.0),
    "posterize": (8.0, 4.0),
    "solarize": (256.0, 0.0),
}
WIDE = {
    **dict.fromkeys(("translate_x", "translate_y"), (0.0, 32 / 224)),
    **dict.fromkeys(("shear_x", "shear_y"), (0.0, 0.99)),
    **dict.fromkeys(("brightness", "contrast", "color", "sharpness"), (0.01, 0.99)),
    "rotate": (0.0, 135.0),
    "posterize": (8.0, 2.0),
    "solarize": (256.0, 0.0),
}
MIX = {
    **dict.fromkeys(("translate_x", "translate_y"), (0.0, 1 / 3)),
    **dict.fromkeys(("shear_x", "shear_y"), (0.0, 0.3)),
    "rotate": (0.0, 30.0),
    "posterize": (4.0, 0.0),
    "solarize": (256.0, 0.0),
}


@pytest.mark.parametrize(
    ("operation", "ranges"), [(RandAugment(levels=1, magnitude=17), RAND), (Trivial(), WIDE)], ids=["rand", "trivial"]
)
def test_chosen_operations(
    small_set: Path, plain: np.ndarray, operation: Operation, ranges: dict[str, tuple[float, float]]
) -> None:
    """Tolerance to PIL: 2 on average (borders, rounding); 12 where DALI's formula of the histogram is another."""
    ids = np.arange(160)
    sources, after, arguments = shown(small_set, ids=ids), shown(small_set, operation, ids=ids), drawn(operation, ids)
    seen = set()
    for row in range(len(ids)):
        name = SUITE[arguments["op"][row, 0]]
        share = arguments["bin"][row, 0] / (BINS - 1)
        magnitude = magnitude_of(name, share, int(arguments["sign"][row, 0]), ranges)
        difference = np.abs(after[row] - chosen(name, sources[row], magnitude)).mean()
        assert difference <= (12 if name == "equalize" else 2), (name, magnitude)
        seen.add(name)
    assert seen == set(SUITE)


def test_augmix(small_set: Path, plain: np.ndarray) -> None:
    """Chains and weights as drawn, each operation by PIL.

    Tolerance: 2 on average; where an equalised histogram, another formula in DALI, is passed on, 3 for half of them.
    """
    operation = AugMix(severity=5.0)
    arguments, after = drawn(operation), shown(small_set, operation)
    differences: dict[bool, list[float]] = {True: [], False: []}
    for row, image in enumerate(plain):
        weight = arguments["weight"][row]
        blend, equalized = weight[0] * image, False
        for chain in range(CHAINS):
            link = image
            for level in range(arguments["depth"][row, chain]):
                place = chain * DEPTH + level
                name = MIXED_SUITE[arguments["op"][row, place]]
                strength = magnitude_of(name, arguments["bin"][row, place] / 100, arguments["sign"][row, place], MIX)
                link = chosen(name, link, strength)
                equalized |= name == "equalize"
            blend = blend + weight[chain + 1] * link
        differences[equalized].append(np.abs(after[row] - blend).mean())
    assert len(differences[False]) >= 10
    assert max(differences[False]) <= 2
    assert np.median(differences[True]) <= 3


def test_neutral_values_change_no_pixel(small_set: Path, plain: np.ndarray) -> None:
    still = (
        *(Affine(0.0, (1.0, 1.0), 0.0), Rotate(0.0), Brightness(0.0, 0.0), Sharpness(0.0)),
        *(Stain(0.0, 0.0), Blur(probability=0.0), Erase(probability=0.0)),
    )
    for operation in still:
        assert np.array_equal(shown(small_set, operation), plain), operation


def test_the_first_of_three_views_is_clean(small_set: Path, plain: np.ndarray) -> None:
    """Bit by bit, for both parts of the mixture; the second view is that of a single one, the third is another."""
    clean, first, second = np.split(shown(small_set, Hybrid(), views=3), 3)
    assert np.array_equal(clean, plain)
    assert np.array_equal(first, shown(small_set, Hybrid()))
    differing = [(a != b).any() for a, b in zip(first, second, strict=True)]
    assert np.mean(differing) > 0.9
