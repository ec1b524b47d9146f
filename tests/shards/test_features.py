"""Features of an image: right statistics, a thumbnail by exact area, hashes that turn with the picture, any size."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from shards.errors import BadInput
from shards.features import FEATURES_DTYPE, ORIENTATIONS, SIDE, compute, hashes, inverse, orient, orient_hashes
from shards.planted import planted_features


def smear(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Draw a smooth random picture with some noise, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(60, 240, (12, 12, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return (smooth + rng.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)


def turn(picture: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn a colour picture as `orient` turns grey ones."""
    return np.ascontiguousarray(orient(picture.transpose(2, 0, 1), orientation).transpose(1, 2, 0))


def area_average(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the thumbnail by definition: every pixel split into SIDE x SIDE equal parts, grey = (R + 2 G + B) / 4."""
    grey = picture @ np.array([0.25, 0.5, 0.25])
    height, width = grey.shape
    fine = grey.repeat(SIDE, axis=0).repeat(SIDE, axis=1)
    return np.asarray(fine.reshape(SIDE, height, SIDE, width).mean(axis=(1, 3)))


def test_statistics_are_those_of_the_pixels() -> None:
    picture = smear(64, 48)
    record = compute(picture)
    assert record["mean"] == pytest.approx(picture.reshape(-1, 3).mean(axis=0), abs=1e-3)
    assert record["std"] == pytest.approx(picture[::2].reshape(-1, 3).std(axis=0), abs=1e-3)  # every second of 64 rows


def test_a_flat_picture_has_no_contrast() -> None:
    record = compute(np.full((50, 70, 3), (10, 200, 90), np.uint8))
    assert record["mean"].tolist() == [10, 200, 90]
    assert record["std"].tolist() == [0, 0, 0]
    assert record["sharpness"] == 0
    assert (record["thumbnail"] == 125).all()


def test_blur_lowers_sharpness() -> None:
    picture = smear(120, 120)
    blurred = np.asarray(Image.fromarray(picture).resize((30, 30)).resize((120, 120), Image.Resampling.BICUBIC))
    assert compute(blurred)["sharpness"] < 0.1 * compute(picture)["sharpness"]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (40, 75), (63, 33), (28, 28), (5, 9)])
def test_thumbnail_is_the_exact_average_by_area(height: int, width: int) -> None:
    picture = smear(height, width)
    assert np.abs(compute(picture)["thumbnail"] - area_average(picture)).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(("height", "width"), [(224, 224), (363, 360), (575, 575), (1300, 1500)])
def test_thumbnail_of_large_pictures_is_close_to_the_average_by_area(height: int, width: int) -> None:
    picture = np.asarray(Image.fromarray(smear(height // 4, width // 4)).resize((width, height)))
    thumbnail = compute(picture)["thumbnail"].astype(np.float64)
    expected = np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX)) @ [0.25, 0.5, 0.25]
    assert np.abs(thumbnail - expected).mean() < 1.5


@pytest.mark.parametrize("orientation", range(ORIENTATIONS))
@pytest.mark.parametrize("shape", [(96, 96), (64, 96)])
def test_hash_and_thumbnail_turn_with_the_picture(orientation: int, shape: tuple[int, int]) -> None:
    picture = smear(*shape)
    record, turned = compute(picture), compute(turn(picture, orientation))
    assert (turned["thumbnail"] == orient(record["thumbnail"], orientation)).all()
    assert (turned["hash"] == orient_hashes(record["hash"][None], orientation)[0]).all()


def test_hashes_can_be_turned_one_by_one() -> None:
    words = hashes(np.stack([compute(smear(64, 64, seed))["thumbnail"] for seed in range(8)]))
    each = orient_hashes(words, np.arange(8))
    assert all((each[i] == orient_hashes(words[i : i + 1], i)[0]).all() for i in range(8))


def test_inverse_undoes_every_orientation() -> None:
    picture = np.arange(9).reshape(3, 3)
    for orientation in range(ORIENTATIONS):
        back = int(inverse(np.array(orientation)))
        assert (orient(orient(picture, orientation), back) == picture).all()


def test_encoding_again_changes_few_bits_and_another_picture_half_of_them() -> None:
    picture = smear(128, 128)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=40)
    own, again, other = (compute(p)["hash"] for p in (picture, np.asarray(Image.open(file)), smear(128, 128, 9)))
    assert np.bitwise_count(own ^ again).sum() <= 8
    assert np.bitwise_count(own ^ other).sum() >= 40


def test_a_cell_cut_out_on_black_is_compared_by_itself() -> None:
    cell = smear(60, 50).clip(60, 255)
    first, second = np.zeros((200, 200, 3), np.uint8), np.zeros((260, 240, 3), np.uint8)
    first[40:100, 30:80], second[150:210, 120:170] = cell, cell
    assert (compute(first)["thumbnail"] == compute(cell)["thumbnail"]).all()
    assert (compute(first)["hash"] == compute(second)["hash"]).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 3), (3, 3), (31, 33), (127, 2), (9000, 3)])
def test_any_size_has_features(shape: tuple[int, int]) -> None:
    picture = np.full((*shape, 3), 200, np.uint8)
    record = compute(picture)
    assert record.dtype == FEATURES_DTYPE
    assert record["mean"].tolist() == [200, 200, 200]
    assert (record["thumbnail"] == 200).all()


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
    ],
)
def test_what_is_no_colour_image_is_refused(wrong: NDArray[Any]) -> None:
    with pytest.raises(BadInput, match="features need uint8"):
        compute(wrong)


def test_bits_of_the_hash_are_balanced_over_all_orientations() -> None:
    features, _, _ = planted_features(500, 0)
    words = np.concatenate([orient_hashes(features["hash"], turned) for turned in range(ORIENTATIONS)])
    ones = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1).mean(axis=0)
    assert 0.45 < ones.min() <= ones.max() < 0.55
