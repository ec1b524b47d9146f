"""Features of one decoded image: a perceptual hash, a grey thumbnail and simple statistics, as one fixed-width record.

The hash is the DCT perceptual hash (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010)
with two changes. Only coefficients that are odd along at least one axis are kept: a cell in the middle of a field makes the
others nearly constant. They are laid out in pairs (u, v), (v, u), so that turning or flipping the image swaps the two words
of the hash and inverts fixed bits: the hashes of all eight orientations follow from one.

Pixels are summed as integers and every later sum is exact in float64, so a record is the same on every machine.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shards.errors import BadInput

SIDE = 32  # pixels of a thumbnail's side
ORIENTATIONS = 8  # of the square: four rotations, each with and without a flip

FEATURES_DTYPE = np.dtype(
    [
        ("hash", "<u8", (2,)),  # signs of 128 low frequencies of the thumbnail
        ("thumbnail", "u1", (SIDE, SIDE)),  # grey (luma of ITU-R BT.601), the whole picture squeezed to a square
        ("mean", "<f4", (3,)),  # of red, green and blue, 0..255
        ("std", "<f4", (3,)),  # of red, green and blue after pooling to about 64..127 pixels a side, 0..255
        ("sharpness", "<f4"),  # variance of the Laplacian of the green channel, in squared grey levels
    ]
)

_POOLED = 64  # a side is pooled by the largest whole factor that leaves at least this many pixels
_LUMA = np.array([77.0, 150.0, 29.0])  # of BT.601, in 256ths
_LAPLACIAN_ROWS = 64  # rows of the picture that the sharpness is measured on


def _frequencies() -> NDArray[np.int64]:
    """Return the 64 lowest pairs (u, v) with u < v that are not both even, in half cycles per side, shape (64, 2)."""
    pairs = [(u, v) for v in range(SIDE) for u in range(v) if u % 2 or v % 2]
    return np.array(sorted(pairs, key=lambda p: (p[0] ** 2 + p[1] ** 2, p))[:64])


FREQUENCIES = _frequencies()
_HIGHEST = int(FREQUENCIES.max()) + 1
_ANGLE = np.pi / (2 * SIDE) * (2 * np.arange(SIDE) + 1) * np.arange(_HIGHEST)[:, None]
_COSINES = np.rint(1024 * np.cos(_ANGLE))
_BITS = np.uint64(1) << np.arange(64, dtype=np.uint64)
_ODD = [np.bitwise_or.reduce(_BITS[FREQUENCIES[:, axis] % 2 == 1]) for axis in (0, 1)]


def compute(rgb: NDArray[np.uint8]) -> np.void:
    """Return the features of one image.

    Args:
        rgb: uint8 [height, width, 3], any size of at least one pixel.

    Returns:
        One record of FEATURES_DTYPE.

    Raises:
        BadInput: the array is not an RGB image of 8 bits.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise BadInput(f"features need uint8 [height, width, 3], not {rgb.dtype} {list(rgb.shape)}")
    pooled, pixels = _pool(rgb)
    flat = pooled.reshape(-1, 3)
    total, squares = flat.sum(axis=0), (flat * flat).sum(axis=0)
    mean = total / len(flat)
    record = np.zeros((), FEATURES_DTYPE)
    record["mean"] = mean / pixels
    record["std"] = np.sqrt(np.maximum(squares / len(flat) - mean * mean, 0)) / pixels
    record["sharpness"] = _sharpness(rgb[:, :, 1])
    record["thumbnail"] = thumbnail = _thumbnail(pooled @ _LUMA, 256 * pixels)
    record["hash"] = hashes(thumbnail[None])[0]
    return record[()]


def hashes(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the hashes uint64 [n, 2] of thumbnails uint8 [n, SIDE, SIDE].

    Bit i of word 0 is the sign of frequency FREQUENCIES[i] = (u along rows, v along columns), of word 1 that of (v, u).
    """
    words = np.empty((len(thumbnails), 2), np.uint64)
    u, v = FREQUENCIES.T
    for first in range(0, len(thumbnails), 8192):  # bounds the memory of the coefficients
        part = slice(first, first + 8192)
        coefficients = _COSINES @ thumbnails[part].astype(np.float64) @ _COSINES.T
        words[part, 0] = (coefficients[:, u, v] > 0) @ _BITS
        words[part, 1] = (coefficients[:, v, u] > 0) @ _BITS
    return words


def orient(pictures: NDArray, orientation: int) -> NDArray:
    """Return pictures [..., t, t] in one of eight orientations: transposed if bit 2 of it is set, then upside down (bit 1),
    then mirrored left to right (bit 0)."""
    if orientation & 4:
        pictures = pictures.swapaxes(-1, -2)
    if orientation & 2:
        pictures = pictures[..., ::-1, :]
    return pictures[..., ::-1] if orientation & 1 else pictures


def orient_hashes(words: NDArray[np.uint64], orientation: int) -> NDArray[np.uint64]:
    """Return the hashes uint64 [n, 2] that the same images have in another orientation (see `orient`)."""
    turned = words[:, ::-1].copy() if orientation & 4 else words.copy()
    for bit, axis in ((2, 0), (1, 1)):
        if orientation & bit:
            turned[:, 0] ^= _ODD[axis]
            turned[:, 1] ^= _ODD[1 - axis]
    return turned


def inverse(orientation: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the orientation that undoes each of `orientation`: only the two quarter turns are not their own."""
    quarter = orientation >= 4
    swapped = 4 + ((orientation & 1) << 1) + ((orientation & 2) >> 1)
    return np.where(quarter, swapped, orientation)


def _pool(rgb: NDArray[np.uint8]) -> tuple[NDArray[np.float64], int]:
    """Return float64 [h, w, 3] sums over blocks of whole pixels, and the pixels in a block; odd rims are left out evenly."""
    height, width = rgb.shape[:2]
    tall, wide = max(1, height // _POOLED), max(1, width // _POOLED)
    rows, columns = height // tall, width // wide
    top, left = (height - rows * tall) // 2, (width - columns * wide) // 2
    core = rgb[top : top + rows * tall]
    # Rows first: summing whole rows is what the machine does fastest. uint16 holds 257 rows of 255.
    sums = core.reshape(rows, tall, width * 3).sum(axis=1, dtype=np.uint16 if tall <= 257 else np.uint32)
    sums = sums.reshape(rows, width, 3)[:, left : left + columns * wide].astype(np.float64)
    blocks = sums[:, ::wide].copy()
    for offset in range(1, wide):
        blocks += sums[:, offset::wide]
    return blocks, tall * wide


def _thumbnail(grey: NDArray[np.float64], scale: int) -> NDArray[np.uint8]:
    """Return uint8 [SIDE, SIDE] averages of `grey` (whole numbers, `scale` to a grey level) by exact area, rounded."""
    rows, columns = grey.shape
    sums = _overlaps(rows) @ grey @ _overlaps(columns).T
    return np.floor_divide(sums + (rows * columns * scale) // 2, rows * columns * scale).astype(np.uint8)


@lru_cache(maxsize=256)
def _overlaps(length: int) -> NDArray[np.float64]:
    """Return how much of each of `length` pixels lies in each of SIDE equal bins, in SIDE-ths of a pixel: [SIDE, length]."""
    first, pixel = np.arange(SIDE)[:, None] * length, np.arange(length) * SIDE
    shared = np.minimum(first + length, pixel + SIDE) - np.maximum(first, pixel)
    return np.maximum(shared, 0).astype(np.float64)


def _sharpness(channel: NDArray[np.uint8]) -> float:
    """Return the variance of the 4-neighbour Laplacian over evenly spaced rows; 0 for fewer than 3 pixels a side.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.
    """
    height, width = channel.shape
    if height < 3 or width < 3:
        return 0.0
    step = max(1, (height - 2) // _LAPLACIAN_ROWS)
    middle = channel[1 : height - 1 : step].astype(np.int16)
    laplacian = 4 * middle[:, 1:-1] - middle[:, :-2] - middle[:, 2:]
    laplacian -= channel[0 : height - 2 : step, 1:-1]
    laplacian -= channel[2:height:step, 1:-1]
    values = laplacian.astype(np.float64).ravel()
    mean = values.sum() / values.size
    return float(np.dot(values, values) / values.size - mean * mean)
