"""Decoding in DALI's graph: whole images or the windows that are looked at, and what its decoder on a GPU is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

DEVICE_PADDING, HOST_PADDING = 6, 4
"""Bytes of the decoder's buffers on the GPU and on the host for each pixel of the largest image: what the ResNet-50 of
NVIDIA's DeepLearningExamples sets for the largest image of ImageNet, rounded up."""


@dataclass(frozen=True)
class Decoder:
    """How DALI decodes.

    Attributes:
        roi: decode the drawn window of each image alone, where the policy has a crop.
        hw_load: share of the images that a GPU's JPEG unit decodes; the others go to its kernels.
        hints: tell the decoder of a GPU the largest image beforehand.
    """

    roi: bool = False
    hw_load: float = 0.65
    hints: bool = False

    def told(self, device: str, largest: tuple[int, int]) -> dict[str, Any]:
        """Return the arguments of DALI's decoder on `device` ("cpu" or "gpu"); `largest`: height and width, pixels."""
        if device == "cpu":
            return {"device": "cpu"}
        told: dict[str, Any] = {"device": "mixed", "hw_decoder_load": self.hw_load}
        if self.hints:
            height, width = largest
            told |= {"preallocate_height_hint": height, "preallocate_width_hint": width}
            told |= {"device_memory_padding": max(DEVICE_PADDING * height * width, 1 << 24)}
            told |= {"host_memory_padding": max(HOST_PADDING * height * width, 1 << 23)}
        return told


def boxes(window: np.ndarray, height: np.ndarray, width: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """Return the whole pixels that scaling windows to size x size looks at, and the windows inside these boxes.

    The antialiasing filter reaches beyond a window by as much as an output pixel is wide there; with a box that holds
    it, the result is that of decoding all (but for one level where a position is rounded otherwise).

    Args:
        window: top, left, bottom, right as shares of the images, [n, 4].
        height: of the images, pixels, int64 [n].
        width: likewise.
        size: of the result, pixels.

    Returns:
        first row and column, and those behind the last, int32 [n, 2] each; windows as shares of boxes, float32 [n, 4].
    """
    sides = np.stack([height, width], axis=1)
    first, last = window[:, :2].astype(float) * sides, window[:, 2:].astype(float) * sides
    reach = np.maximum((last - first) / size, 1.0)
    begin = np.clip(np.floor(first - reach), 0, sides - 1)
    end = np.clip(np.ceil(last + reach), begin + 1, sides)
    inside = np.concatenate([(first - begin) / (end - begin), (last - begin) / (end - begin)], axis=1)
    return begin.astype(np.int32), end.astype(np.int32), inside.astype(np.float32)


def decoded_images(encoded: Any, told: Mapping[str, Any], begin: Any = None, end: Any = None, size: Any = None) -> Any:
    """Return the node of RGB images, uint8 [height, width, 3].

    Args:
        encoded: node of their bytes.
        told: the decoder's arguments (Decoder.told).
        begin: node of the first row and column of the part that is decoded, int32 [2]; None decodes all.
        end: node of the row and the column behind it.
        size: node of the height and width to which images are scaled, float32 [2]; None leaves them.
    """
    from nvidia.dali import fn, types

    if begin is not None:
        return fn.decoders.image_slice(encoded, start=begin, end=end, axis_names="HW", output_type=types.RGB, **told)
    images = fn.decoders.image(encoded, output_type=types.RGB, **told)
    return images if size is None else fn.resize(images, size=size, antialias=True)
