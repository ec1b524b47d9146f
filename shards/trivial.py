"""Trivial features of an image: its border, its size, its file, the number in its name, its corners; no cells."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from shards.appearance import CORNERS
from shards.examine import Image

INVISIBLE = ("file format and bytes", "number in the file name", "source")
"""Groups of features that no network sees; they tell how the set was collected."""


def trivial_features(images: Sequence[Image], looks: NDArray[np.void]) -> dict[str, NDArray[np.float64]]:
    """Return the groups of features, each float64 [images, d].

    `looks` are the images' records of `shards.appearance.LOOK_DTYPE`. The files are opened once more, for the heads of
    those that are JPEG.
    """
    sizes = np.array([(image.width, image.height, image.width / image.height) for image in images], np.float64)
    lengths = np.array([(image.size, image.size / (image.width * image.height)) for image in images], np.float64)
    kinds = [f"{image.format} {image.mode}" for image in images]
    hot = np.array([[kind == one for one in sorted(set(kinds))] for kind in kinds], np.float64)
    corners = looks["corners"].reshape(len(looks), len(CORNERS), -1).astype(np.float64)
    return {
        "border colour": looks["border"].astype(np.float64),
        "image size": sizes,
        "file format and bytes": np.hstack([lengths, hot]),
        "JPEG quality": np.array([quantisation(image) for image in images], np.float64),
        "number in the file name": np.array([_number(image.item.source) for image in images], np.float64),
        **{f"{name} corner": corners[:, place] for place, name in enumerate(CORNERS)},
    }


def quantisation(image: Image) -> tuple[float, float]:
    """Return the mean steps of a JPEG's quantisation tables for brightness and for colour: coarse is low quality.

    -1 for other formats, and where the file cannot be read any more.
    """
    if image.format != "JPEG":
        return -1.0, -1.0
    try:
        with Pillow.open(image.item.path) as file:
            tables = dict(getattr(file, "quantization", {}))
    except OSError:
        tables = {}
    means = [float(np.mean(tables[key])) for key in sorted(tables)] or [-1.0]
    return means[0], means[-1]


def _number(source: str) -> tuple[float, float]:
    """Return the last number in a file name, and how many digits it has; -1 and 0 if there is none."""
    found = re.findall(r"\d+", source.rsplit("/", 1)[-1].rsplit(".", 1)[0])
    return (float(found[-1][-15:]), len(found[-1])) if found else (-1.0, 0)
