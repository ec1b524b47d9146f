"""Stain normalisation: known stains are found, the target is reached, and what cannot be normalised is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.images import UnusableImageError, decode
from shards.stain import BLACK, STAINS, Macenko, Reinhard, lab, macenko, normalised, optical_density, stains_of

TRUE = np.array([[0.80, 0.55, 0.24], [0.25, 0.90, 0.36]])
TRUE /= np.linalg.norm(TRUE, axis=1, keepdims=True)
LIGHT = np.array([250.0, 240.0, 225.0])


def smear(stains: np.ndarray = TRUE, strength: float = 1.0, light: np.ndarray = LIGHT, seed: int = 0) -> np.ndarray:
    """Draw a picture by the Beer-Lambert law: half background, the rest two stains alone and mixed; uint8 RGB."""
    rng = np.random.default_rng(seed)
    amounts = rng.uniform(0.5, 1.5, (120, 100, 2)) * rng.choice([[0, 0], [0, 0], [1, 0], [0, 1], [1, 1]], (120, 100))
    return np.clip(np.rint(light * np.exp(-strength * amounts @ stains)), 0, 255).astype(np.uint8)


def found(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the stains of a picture and their strengths."""
    pixels = rgb.reshape(-1, 3)
    inside = pixels.max(axis=1) >= BLACK
    return stains_of(optical_density(pixels[inside], inside.mean(), Macenko()), Macenko())


@pytest.mark.parametrize("seed", range(4))
def test_macenko_finds_the_stains_that_were_drawn(seed: int) -> None:
    """Cosine 0.999 is 2.6 degrees; the strengths are the 99th percentile of those drawn, 1.5 at most."""
    own, strongest = found(smear(seed=seed))
    assert (own * TRUE).sum(axis=1).min() > 0.999
    np.testing.assert_allclose(strongest, 1.49, rtol=0.05)


def test_the_stain_that_takes_more_red_comes_first_whatever_the_order() -> None:
    np.testing.assert_allclose(found(smear(TRUE[::-1]))[0], TRUE, atol=0.05)


def test_macenko_reaches_its_target() -> None:
    out = normalised(smear(), "macenko")
    own, strongest = found(out)
    assert (own * Macenko().stains).sum(axis=1).min() > 0.995
    np.testing.assert_allclose(strongest, Macenko().strongest, rtol=0.1)
    np.testing.assert_allclose(np.percentile(out.reshape(-1, 3), 90, axis=0), Macenko().shine, atol=3)


def test_one_smear_under_other_stain_and_light_comes_out_alike() -> None:
    """The same cells, stained stronger in other hues and lit otherwise: 22 grey levels apart before, 4 after."""
    other = TRUE + np.array([[-0.1, 0.1, 0.05], [0.08, -0.02, -0.1]])
    a, b = smear(), smear(other, 1.4, np.array([230.0, 235.0, 245.0]))
    before = np.abs(a.astype(int) - b).mean()
    for name in STAINS:
        after = np.abs(normalised(a, name).astype(int) - normalised(b, name)).mean()
        assert after < 4 < before / 4, (name, before, after)


def test_reinhard_reaches_its_target() -> None:
    """Within what clipping at 255 costs."""
    out = lab(normalised(smear(), "reinhard").reshape(-1, 3))
    np.testing.assert_allclose(out.mean(axis=0), Reinhard().mean, atol=0.03)
    np.testing.assert_allclose(out.std(axis=0), Reinhard().deviation, rtol=0.15, atol=0.004)


def test_lab_is_that_of_the_paper() -> None:
    """Grey has no colour but for the rounding of the published matrix; l is the sum of three logarithms over sqrt 3."""
    grey = lab(np.full((1, 3), 100, np.uint8))[0]
    assert abs(grey[0] - np.sqrt(3) * np.log(100)) < 0.01
    assert np.abs(grey[1:]).max() < 0.01
    assert lab(np.array([[200, 200, 50]], np.uint8))[0, 1] > 0.3  # yellow
    assert lab(np.array([[220, 60, 60]], np.uint8))[0, 2] > 0.1  # red


@pytest.mark.parametrize("name", STAINS)
def test_a_black_frame_neither_counts_nor_changes(name: str) -> None:
    inner = smear()
    framed = np.zeros((140, 120, 3), np.uint8)
    framed[10:-10, 10:-10] = inner
    out = normalised(framed, name)
    np.testing.assert_array_equal(out[10:-10, 10:-10], normalised(inner, name))
    assert not out[:10].any()
    assert not out[:, -10:].any()


def test_a_segmented_cell_has_no_background_to_measure_the_light_by() -> None:
    cell = np.zeros((200, 200, 3), np.uint8)
    cell[:90, :90] = smear()[:90, :90]
    assert not macenko(cell, Macenko())[100:].any()
    with pytest.raises(UnusableImageError, match="black"):
        normalised(cell, "reinhard")


@pytest.mark.parametrize("name", STAINS)
@pytest.mark.parametrize("value", [0, 255, 128, (200, 150, 180), "grey", "one pixel"])
def test_pictures_without_stain_are_refused_not_passed_on(name: str, value: object) -> None:
    rgb = np.zeros((30, 30, 3), np.uint8)
    if value == "grey":
        rgb[:] = np.arange(30, dtype=np.uint8)[:, None] * 8 + 9
    elif value == "one pixel":
        rgb = np.full((1, 1, 3), 90, np.uint8)
    else:
        rgb[:] = value
    with pytest.raises(UnusableImageError) as caught:
        normalised(rgb, name)
    assert caught.value.reason == "stain"


@pytest.mark.parametrize("name", STAINS)
def test_an_image_is_normalised_by_itself_alone_and_always_alike(name: str) -> None:
    rgb = smear()
    once = normalised(rgb, name)
    normalised(smear(strength=2.0, seed=5), name)
    np.testing.assert_array_equal(normalised(rgb.copy(), name), once)
    np.testing.assert_array_equal(normalised(rgb[::-1, ::-1], name)[::-1, ::-1], once)  # no place counts
    assert once.dtype == np.uint8
    assert once.shape == rgb.shape


@pytest.mark.realdata
def test_targets_are_the_medians_of_the_set_that_they_name(real_data: Path) -> None:
    """On every 50th of its images; the constants are of all 3,199."""
    paths = sorted(p for p in (real_data / "pbc8").rglob("*.jpg") if not p.name.startswith("."))
    own, means, deviations = [], [], []
    for path in paths[::50]:
        rgb = decode(path.read_bytes())[0]
        own.append(found(rgb))
        values = lab(rgb.reshape(-1, 3))
        means.append(values.mean(axis=0))
        deviations.append(values.std(axis=0))
    stains = np.median([s for s, _ in own], axis=0)
    np.testing.assert_allclose(stains / np.linalg.norm(stains, axis=1, keepdims=True), Macenko().stains, atol=0.03)
    np.testing.assert_allclose(np.median([c for _, c in own], axis=0), Macenko().strongest, rtol=0.07)
    np.testing.assert_allclose(np.median(means, axis=0), Reinhard().mean, atol=0.02)
    np.testing.assert_allclose(np.median(deviations, axis=0), Reinhard().deviation, rtol=0.07)


@pytest.mark.realdata
@pytest.mark.parametrize("name", STAINS)
def test_real_sets_come_closer_to_each_other(real_data: Path, name: str) -> None:
    """Median colours of three hospitals' smears: their spread falls to less than half; under 1 % are refused."""
    before, after, refused = [], [], 0
    for folder in ("all4", "pbc8", "raabin5"):
        paths = sorted(p for p in (real_data / folder).rglob("*.jpg") if not p.name.startswith("."))
        pictures = [decode(path.read_bytes())[0][::2, ::2] for path in paths[:: len(paths) // 24]]
        done = []
        for rgb in pictures:
            try:
                done.append(normalised(rgb, name))
            except UnusableImageError:
                refused += 1
        before.append(np.mean([rgb.mean(axis=(0, 1)) for rgb in pictures], axis=0))
        after.append(np.mean([rgb.mean(axis=(0, 1)) for rgb in done], axis=0))
    spread = [np.std(colours, axis=0).mean() for colours in (before, after)]
    assert spread[1] < spread[0] / 2, spread
    assert refused == 0
