"""Segmentation of nuclei: found where they were drawn and where others cut them out, the same on every run."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from shards.drawing import NUCLEUS, draw_smear, slide_look
from shards.images import UnusableImageError, decode
from shards.leukocytes import MORPHOLOGY
from shards.segment import Segmentation, best_clusters, lab_a, nuclei, parameters

BACKGROUND, RED_CELL, CHROMATIN = (235, 225, 220), (215, 170, 170), (90, 45, 140)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the intersection of two masks over their union."""
    return float((a & b).sum() / (a | b).sum())


def painted() -> tuple[np.ndarray, np.ndarray]:
    """Return a picture uint8 [100, 120, 3] of a nucleus, a red cell and a speck, and where the nucleus is."""
    y, x = np.mgrid[0:100, 0:120]
    rgb = np.empty((100, 120, 3), np.uint8)
    rgb[:] = BACKGROUND
    rgb[np.hypot(y - 70, x - 90) < 20] = RED_CELL
    nucleus = np.hypot(y - 40, x - 40) < 15
    rgb[nucleus] = CHROMATIN
    rgb[5:8, 110:113] = CHROMATIN
    return rgb, nucleus


def test_lab_is_that_of_the_standard() -> None:
    """Values of a for the corners of sRGB under D65, as published to two decimals."""
    corners = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 0, 255], [255, 255, 255], [0, 0, 0]], np.uint8)
    np.testing.assert_allclose(lab_a(corners) / 1000, [80.09, -86.18, 79.19, 98.23, 0, 0], atol=0.02)
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    assert np.abs(lab_a(grey)).max() < 150  # thousandths


def test_the_best_clusters_are_found() -> None:
    """Against every way to cut a small histogram."""
    rng = np.random.default_rng(0)
    for _ in range(150):
        histogram = rng.integers(0, 9, 13) * (rng.random(13) < 0.7)
        if not histogram.any():
            continue
        clusters = int(rng.integers(1, 5))
        values = np.flatnonzero(histogram)

        def cost(edges: tuple[int, ...], values: np.ndarray = values, weight: np.ndarray = histogram) -> float:
            parts = [np.repeat(values[a:b], weight[values[a:b]]) for a, b in pairwise(edges)]
            return sum(float(((part - part.mean()) ** 2).sum()) for part in parts)

        first, means = best_clusters(histogram, clusters)
        number = min(clusters, len(values))
        assert len(first) == len(means) == number
        own = (*np.searchsorted(values, first).tolist(), len(values))
        least = min(cost((0, *cut, len(values))) for cut in combinations(range(1, len(values)), number - 1))
        assert cost(own) == pytest.approx(least)
        assert all(a <= mean for a, mean in zip(first, means, strict=True))


def test_the_nucleus_is_found_and_neither_red_cell_nor_speck() -> None:
    rgb, nucleus = painted()
    np.testing.assert_array_equal(nuclei(rgb, "lab-kmeans"), nucleus)


def test_holes_are_filled_but_not_the_space_between_cells() -> None:
    rgb, nucleus = painted()
    rgb[38:43, 38:43] = BACKGROUND
    np.testing.assert_array_equal(nuclei(rgb, "lab-kmeans"), nucleus)
    y, x = np.mgrid[0:100, 0:120]
    ring = (np.hypot(y - 50, x - 60) < 45) & (np.hypot(y - 50, x - 60) > 30)
    rgb[:] = BACKGROUND
    rgb[ring] = CHROMATIN
    np.testing.assert_array_equal(nuclei(rgb, "lab-kmeans"), ring)
    assert nuclei(rgb, "lab-kmeans", Segmentation(hole=1.0))[50, 60]


def test_parameters_do_what_they_say_and_are_told() -> None:
    rgb, nucleus = painted()
    assert nuclei(rgb, "lab-kmeans", Segmentation(speck=0)).sum() == nucleus.sum() + 9
    assert nuclei(rgb, "lab-kmeans", Segmentation(threshold=0.1)).sum() > 2 * nucleus.sum()  # the red cell too
    with pytest.raises(UnusableImageError):
        nuclei(rgb, "lab-kmeans", Segmentation(contrast=90))
    assert parameters() == {"clusters": 4, "threshold": 0.5, "contrast": 10.0, "hole": 0.01, "speck": 0.002}


@pytest.mark.parametrize("value", [0, 255, "grey", "red cells", "speck", "one pixel"])
def test_pictures_without_a_nucleus_are_refused(value: object) -> None:
    rgb = np.zeros((100, 120, 3), np.uint8)
    if value == "grey":
        rgb[:] = np.arange(100, dtype=np.uint8)[:, None, None] * 2
    elif value == "red cells":
        rgb[:] = BACKGROUND
        rgb[20:50, 20:50] = (228, 205, 202)
    elif value == "speck":
        rgb[:] = BACKGROUND
        rgb[5:8, 110:113] = CHROMATIN
    elif value == "one pixel":
        rgb = np.full((1, 1, 3), 90, np.uint8)
    else:
        rgb[:] = value
    with pytest.raises(UnusableImageError) as caught:
        nuclei(rgb, "lab-kmeans")
    assert caught.value.reason == "segmentation"


def test_nothing_but_the_pixels_counts() -> None:
    look = slide_look(1, 2, 0)
    rgb = draw_smear("pro", look, np.random.default_rng(5), 64)
    mask = nuclei(rgb, "lab-kmeans")
    np.testing.assert_array_equal(nuclei(rgb.copy(), "lab-kmeans"), mask)
    np.testing.assert_array_equal(nuclei(rgb[::-1].swapaxes(0, 1), "lab-kmeans"), mask[::-1].T)


@pytest.mark.parametrize("name", sorted(MORPHOLOGY))
def test_drawn_nuclei_are_found(name: str) -> None:
    """A drawing with and without its nucleus says where the nucleus is. Mean overlap over eight patients' slides."""
    overlaps = []
    for patient in range(8):
        look = replace(slide_look(3, patient, 0), noise=0.0)
        without = look.colours.copy()
        without[NUCLEUS] = 0
        drawn, empty = (
            draw_smear(name, replace(look, colours=colours), np.random.default_rng(patient), 96)
            for colours in (look.colours, without)
        )
        there = np.abs(drawn.astype(int) - empty).max(axis=2) > 25
        overlaps.append(overlap(nuclei(drawn, "lab-kmeans"), there))
    assert np.mean(overlaps) > 0.8, overlaps


@pytest.mark.realdata
def test_published_segmentations_are_found_again(real_data: Path) -> None:
    """C-NMC 2019 was published with everything but the cell made black: overlap 0.979 to 1.000 on nine images."""
    for path in sorted((real_data / "cnmc").rglob("*.bmp")):
        rgb = decode(path.read_bytes())[0]
        assert overlap(nuclei(rgb, "lab-kmeans"), rgb.max(axis=2) > 8) > 0.95, path.name


@pytest.mark.realdata
def test_the_cell_in_the_middle_of_a_real_picture_is_found(real_data: Path) -> None:
    """Pictures of single cells are centred on them: the middle fifth is stained in 98 %; red cells are left out."""
    middle, shares = [], []
    for name, step in (("pbc8", 40), ("raabin5", 25), ("aml2", 12)):
        paths = sorted(p for p in (real_data / name).rglob("*.jpg") if not p.name.startswith("."))
        for path in paths[::step]:
            mask = nuclei(decode(path.read_bytes())[0], "lab-kmeans")
            height, width = mask.shape
            middle.append(mask[height * 2 // 5 : height * 3 // 5, width * 2 // 5 : width * 3 // 5].mean() > 0.15)
            shares.append(mask.mean())
    assert np.mean(middle) >= 0.98
    assert 0.03 < np.median(shares) < 0.2
