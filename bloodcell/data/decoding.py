"""Decode the bytes of a sample on the CPU: the same pixels as DALI's CPU decoder, without DALI."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch

from bloodcell.data.shardset import ShardSet, unreadable
from bloodcell.data.smaller import shrunk
from shards.images import UnusableImageError, decode

JPEG = b"\xff\xd8"
RGB = 3
"""torchvision's ImageReadMode.RGB."""


def decoded(data: np.ndarray) -> np.ndarray:
    """Return the RGB pixels of an encoded image, uint8 [height, width, 3], EXIF orientation applied.

    Plain JPEGs go through torchvision's binding of libjpeg-turbo where there is one, which takes two thirds of PIL's
    time; all else through `shards.images.decode`. The pixels are the same.

    Args:
        data: uint8 [bytes].

    Raises:
        UnusableImageError: the bytes are no image that can be decoded.
    """
    decode_jpeg = _decoder()
    if decode_jpeg is not None and data[:2].tobytes() == JPEG and _plain(data):
        try:
            image = decode_jpeg(torch.from_numpy(data), RGB, True)
        except RuntimeError as error:
            raise UnusableImageError("undecodable", str(error).splitlines()[0]) from error
        pixels: np.ndarray = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        return pixels
    return np.require(decode(data.tobytes())[0], requirements=("C", "W"))  # torch warns of what cannot be written


def pixels_of(shards: ShardSet, sample: int, data: np.ndarray, side: int = 0) -> np.ndarray:
    """Return the pixels of a sample's bytes as `decoded` does; raises Unreadable, which names the sample.

    With a `side`, an image whose shorter side is larger is scaled down to it.
    """
    try:
        return shrunk(decoded(data), side)
    except UnusableImageError as problem:
        fix = f"restore the shard (`bloodcell verify {shards.folder}` lists all bad ones), start again"
        raise unreadable(shards, sample, f"it cannot be decoded: {problem}", fix) from problem


@functools.cache
def _decoder() -> Callable[..., torch.Tensor] | None:
    """Return torchvision's operator: its Python function warns on every call, and later versions may lack both."""
    try:
        import torchvision.io  # noqa: F401  registers it

        operator: Callable[..., torch.Tensor] = torch.ops.image.decode_jpeg
    except (ImportError, AttributeError, RuntimeError):
        return None
    return operator


def _plain(data: np.ndarray) -> bool:
    """Whether a JPEG's frame has one component or three: how four become RGB differs between the decoders."""
    head, place = data[: 1 << 16].tobytes(), 2
    while place + 9 < len(head) and head[place] == 0xFF:
        marker = head[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return head[place + 9] in (1, 3)
        place += 1 if marker == 0xFF else 2 + int.from_bytes(head[place + 2 : place + 4])
    return False
