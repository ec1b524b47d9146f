"""An `.npz` as MedMNIST ships it, written out as lossless PNG files in the folders of its split and its classes.

Arrays `train_images`, `train_labels`, `val_images`, ... (Yang et al., "MedMNIST v2", Scientific Data 2023,
doi:10.1038/s41597-022-01721-8). The archive is read row by row: memory does not grow with it, and nothing in it is
unpickled.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import PIL
from PIL import Image

from shards.atomic import disk_errors
from shards.console import progress
from shards.errors import BadInput

PARTS = ("train", "val", "test")
PNG_LEVEL = 6
"""Compression level: fixed, so that the same archive gives the same bytes."""

_FIX = "give an .npz with train_images [n, height, width(, 3)] of uint8 and train_labels [n, 1], val_..., test_..."


def encoder() -> str:
    """Return what the bytes of the PNG files depend on beside the pixels."""
    return f"Pillow {PIL.__version__}, zlib {zlib.ZLIB_RUNTIME_VERSION}, PNG level {PNG_LEVEL}"


def unpack(archive: Path, folder: Path) -> int:
    """Write every image of the archive to `folder/<part>/<label>/<row>.png`; return how many there are.

    The files have the archive's time: unpacked again they are the same files.

    Raises:
        BadInput: no such file, damaged, arrays missing or of another shape or type, or several labels for an image.
        EnvironmentFault: the disk is full or fails.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            names = {name.removesuffix(".npy") for name in content.namelist()}
            parts = [part for part in PARTS if f"{part}_images" in names]
            if not parts:
                raise BadInput("the archive has no arrays train_images, val_images or test_images", archive, _FIX)
            missing = [f"{part}_labels" for part in parts if f"{part}_labels" not in names]
            if missing:
                raise BadInput(f"the archive has no array {missing[0]}", archive, _FIX)
            count = sum(_unpack_part(content, part, archive, folder / part) for part in parts)
            if not count:
                raise BadInput("the archive holds no images", archive, _FIX)
            return count
    except FileNotFoundError:
        raise BadInput("no such file", archive, "check the path") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise BadInput(f"the archive cannot be read: {error}", archive, "fetch it again") from error


def _unpack_part(content: zipfile.ZipFile, part: str, archive: Path, folder: Path) -> int:
    labels = _labels(content, f"{part}_labels", archive)
    changed = archive.stat().st_mtime_ns
    with content.open(f"{part}_images.npy") as stream:
        shape, kind = _header(stream, f"{part}_images", archive)
        if kind != np.uint8:
            raise BadInput(f"{part}_images has the type {kind}, not uint8", archive, _FIX)
        if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)) or 0 in shape[1:]:
            raise BadInput(f"{part}_images has the shape {shape}", archive, _FIX)
        if len(labels) != shape[0]:
            raise BadInput(f"{part}: {shape[0]} images and {len(labels)} labels", archive, "fetch the archive again")
        width = len(str(max(shape[0] - 1, 0)))
        rows = progress(_rows(stream, shape, archive), f"unpacking {part}", shape[0])
        for number, (pixels, label) in enumerate(zip(rows, labels, strict=True)):
            place = folder / str(label)
            with disk_errors(place):
                place.mkdir(parents=True, exist_ok=True)
                picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 and pixels.ndim == 3 else pixels)
                path = place / f"{number:0{width}d}.png"
                picture.save(path, "PNG", compress_level=PNG_LEVEL)
                os.utime(path, ns=(changed, changed))
    return shape[0]


def _labels(content: zipfile.ZipFile, name: str, archive: Path) -> list[int]:
    with content.open(f"{name}.npy") as stream:
        shape, kind = _header(stream, name, archive)
        if kind.kind not in "iu" or len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
            raise BadInput(
                f"{name} has the shape {shape} and the type {kind}, not one whole number for each image", archive, _FIX
            )
        count = shape[0]
        return np.frombuffer(_read(stream, count * kind.itemsize, archive), kind).tolist()


def _header(stream: IO[bytes], name: str, archive: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Read the header of an array; one of Python objects (which only unpickling could read) is refused."""
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"format version {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, columns_first, kind = read(stream)
    except ValueError as error:
        raise BadInput(f"the array {name} cannot be read: {error}", archive, "fetch the archive again") from error
    if kind.hasobject or (columns_first and sum(n > 1 for n in shape) > 1) or not shape:
        raise BadInput(f"the array {name} is not one of plain numbers in rows ({kind})", archive, _FIX)
    return shape, kind


def _rows(stream: IO[bytes], shape: tuple[int, ...], archive: Path) -> Iterator[np.ndarray]:
    """Yield the images, uint8 [height, width] or [height, width, channels]."""
    size = int(np.prod(shape[1:]))
    for _ in range(shape[0]):
        yield np.frombuffer(_read(stream, size, archive), np.uint8).reshape(shape[1:])


def _read(stream: IO[bytes], size: int, archive: Path) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise BadInput("the archive ends too early", archive, "fetch it again")
    return data
