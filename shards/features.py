"""Features of one decoded image: a perceptual hash, a grey thumbnail and simple statistics, as one fixed-width record.

The hash is the DCT perceptual hash (Zauner, "Implementation and benchmarking of perceptual image hash functions",
2010) with two changes. Only coefficients that are odd along at least one axis are kept: a cell in the middle of a
field makes the others nearly constant. They are laid out in pairs (u, v), (v, u), so that turning or flipping the
image swaps the two words of the hash and inverts fixed bits: the hashes of all eight orientations follow from one.

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
        ("thumbnail", "u1", (SIDE, SIDE)),  # grey, (R + 2 G + B) / 4, squeezed to a square; without flat surroundings
        ("mean", "<f4", (3,)),  # of red, green and blue, 0..255
        ("std", "<f4", (3,)),  # of red, green and blue, 0..255
        ("sharpness", "<f4"),  # variance of the Laplacian of the three channels, in squared levels
    ]
)

_POOLED = 64  # a picture's rows are summed in blocks that leave at least this many, where it has them
_SAMPLED = 32  # about as many evenly spaced rows are looked at for contrast and sharpness
_FLAT = 16  # levels that the edges of a picture may differ by and still be flat surroundings
_LEAST = 16  # pixels a side that content in flat surroundings must have to be looked at by itself
_GREY = np.array([1, 2, 1])  # quarters of red, green, blue: stained cells show best in green


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
_MIRRORED, _UPSIDE_DOWN = np.array(_ODD[::-1]), np.array(_ODD)  # bits of each word that a flip inverts
_INVERTED = np.array([0 * _MIRRORED, _MIRRORED, _UPSIDE_DOWN, _MIRRORED ^ _UPSIDE_DOWN])


def compute(rgb: NDArray[np.uint8]) -> NDArray[np.void]:
    """Return the features of one image.

    Args:
        rgb: uint8 [height, width, 3], any size of at least one pixel.

    Returns:
        FEATURES_DTYPE, without dimensions.

    Raises:
        BadInput: the array is not an RGB image of 8 bits.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise BadInput(f"features need uint8 [height, width, 3], not {rgb.dtype} {list(rgb.shape)}")
    record = np.zeros((), FEATURES_DTYPE)
    sums, tall = _pool_rows(rgb)
    total = sums.sum(axis=0, dtype=np.uint64).reshape(-1, 3).sum(axis=0)
    record["mean"] = total / (len(sums) * tall * rgb.shape[1])
    record["std"], record["sharpness"] = _contrast(rgb), _sharpness(rgb)
    content = _content(rgb)
    if content is not rgb:
        sums, tall = _pool_rows(content)
    record["thumbnail"] = thumbnail = _thumbnail(sums, tall)
    record["hash"] = hashes(thumbnail[None])[0]
    return record


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
    """Return pictures [..., t, t] in one of eight orientations: transposed if its bit 2 is set, then upside down
    (bit 1), then mirrored left to right (bit 0)."""
    if orientation & 4:
        pictures = pictures.swapaxes(-1, -2)
    if orientation & 2:
        pictures = pictures[..., ::-1, :]
    return pictures[..., ::-1] if orientation & 1 else pictures


def orient_hashes(words: NDArray[np.uint64], orientation: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the hashes [n, 2] of the same images in another orientation (see `orient`): one for all, or int64 [n]."""
    turned = np.asarray(orientation)
    swapped = np.where((turned & 4 > 0)[..., None], words[:, ::-1], words)
    return np.asarray(swapped ^ _INVERTED[turned & 3])


def inverse(orientation: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the orientation that undoes each of `orientation`: only the two quarter turns are not their own."""
    quarter = orientation >= 4
    swapped = 4 + ((orientation & 1) << 1) + ((orientation & 2) >> 1)
    return np.where(quarter, swapped, orientation)


def _content(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the part that is not flat surroundings: a cell cut out on black is compared by itself, not by its outline.

    The surroundings are flat if the four edges of the picture have one colour (within _FLAT levels). Another picture is
    returned as it is.
    """
    height, width = rgb.shape[:2]
    if np.ptp(rgb[0, :, 1]) > _FLAT:  # most pictures: a quick answer
        return rgb
    edges = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    lowest, highest = edges.min(axis=0).astype(np.int16), edges.max(axis=0).astype(np.int16)
    if (highest - lowest).max() > _FLAT or min(height, width) < 2 * _LEAST:
        return rgb
    outside = ((rgb < lowest - _FLAT) | (rgb > highest + _FLAT)).any(axis=2)
    rows, columns = np.flatnonzero(outside.any(axis=1)), np.flatnonzero(outside.any(axis=0))
    if len(rows) == 0 or rows[-1] - rows[0] < _LEAST or columns[-1] - columns[0] < _LEAST:
        return rgb
    return rgb[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _pool_rows(rgb: NDArray[np.uint8]) -> tuple[NDArray[np.unsignedinteger], int]:
    """Return sums of blocks of rows, [rows, 3 * width], and the rows in a block; rows left over are not used."""
    height, width = rgb.shape[:2]
    tall = _block(height)
    rows = height // tall
    top = (height - rows * tall) // 2
    blocks = rgb[top : top + rows * tall].reshape(rows, tall, 3 * width)
    # uint16 holds 257 rows of 255.
    return blocks.sum(axis=1, dtype=np.uint16 if tall <= 257 else np.uint32), tall


@lru_cache(maxsize=256)
def _block(height: int) -> int:
    """Return the rows in a block: exact bins where SIDE divides the height, else what leaves the fewest rows over."""
    if height % SIDE == 0:
        return height // SIDE
    most = max(1, height // _POOLED)
    return min(range(most, most // 2, -1), key=lambda rows: height % rows)


def _thumbnail(sums: NDArray[np.unsignedinteger], tall: int) -> NDArray[np.uint8]:
    """Return uint8 [SIDE, SIDE] grey averages by exact area, rounded half up, of sums of `tall` rows."""
    rows, width = len(sums), sums.shape[1] // 3
    exact = np.float32 if 255 * tall * 4 * width < 2**24 else np.float64  # whole numbers that this type holds exactly
    across = sums.astype(exact) @ _columns(width).astype(exact, copy=False)
    total = _overlaps(rows) @ across
    scale = 4 * tall * rows * width
    # Of whole numbers this small a quotient is never rounded up to the next whole number: exact, and faster than //.
    return np.floor((total + scale // 2) / scale).astype(np.uint8)


@lru_cache(maxsize=256)
def _overlaps(length: int) -> NDArray[np.float64]:
    """Return [SIDE, length]: how much of each of `length` pixels lies in each of SIDE equal bins, in SIDE-ths."""
    first, pixel = np.arange(SIDE)[:, None] * length, np.arange(length) * SIDE
    shared = np.minimum(first + length, pixel + SIDE) - np.maximum(first, pixel)
    return np.maximum(shared, 0).astype(np.float64)


@lru_cache(maxsize=256)
def _columns(width: int) -> NDArray[np.float32]:
    """Return what turns a row of red, green, blue, red, ... into SIDE sums of grey: [3 * width, SIDE]."""
    return np.kron(_overlaps(width).T, _GREY[:, None]).astype(np.float32)


def _every(height: int, rim: int) -> slice:
    """Return about _SAMPLED evenly spaced rows, none of them within `rim` rows of the upper and lower edge."""
    return slice(rim, height - rim, max(1, (height - 2 * rim) // _SAMPLED))


def _contrast(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the standard deviation of each channel over sampled rows, float64 [3]."""
    sample = rgb[_every(len(rgb), 0)].reshape(-1, 3 * rgb.shape[1]).astype(np.uint16)
    count = sample.size // 3
    mean, square = (
        values.sum(axis=0, dtype=np.uint32).reshape(-1, 3).sum(axis=0) / count for values in (sample, sample * sample)
    )  # 255 squared fits 16 bits
    return np.sqrt(np.maximum(square - mean * mean, 0))


def _sharpness(rgb: NDArray[np.uint8]) -> float:
    """Return the variance of the 4-neighbour Laplacian over sampled rows of all channels; 0 below 3 pixels a side.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.
    """
    height, width = rgb.shape[:2]
    if height < 3 or width < 3:
        return 0.0
    lines, chosen = rgb.reshape(height, 3 * width), _every(height, 1)
    middle = lines[chosen].astype(np.int16)
    laplacian = 4 * middle[:, 3:-3] - middle[:, :-6] - middle[:, 6:]
    for shift in (-1, 1):
        laplacian -= lines[slice(chosen.start + shift, chosen.stop + shift, chosen.step), 3:-3]
    values = laplacian.astype(np.float64).ravel()
    mean = values.sum() / values.size
    return float(np.dot(values, values) / values.size - mean * mean)
