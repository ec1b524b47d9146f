"""Decode an image fully, once, and say what it is: size, mode, format, hashes, or why it cannot be used."""

from __future__ import annotations

import hashlib
import io
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp", "JPEG2000": "jp2"}
"""The formats that DALI decodes on every device, and their extension in a shard: content decides, not the name."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".jp2", ".gif"})
"""File names that are taken for images, without regard to case."""

MAX_PIXELS = 100_000_000
"""Images with more pixels than this are rejected unread (decompression bombs)."""


class UnusableImageError(ValueError):
    """The bytes are no image that training could read; `reason` is a fixed word, the message says more."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Examined:
    """One image that decodes: its RGB pixels (uint8 [height, width, 3], EXIF orientation applied) and its identity."""

    rgb: np.ndarray
    mode: str
    format: str
    sha256: str
    crc32: int
    pixels_sha256: str

    @property
    def height(self) -> int:
        """Rows, in pixels."""
        return int(self.rgb.shape[0])

    @property
    def width(self) -> int:
        """Columns, in pixels."""
        return int(self.rgb.shape[1])


def decode(data: bytes) -> tuple[np.ndarray, str, str]:
    """Decode image bytes to (RGB uint8 [height, width, 3], PIL mode, PIL format).

    The same pixels as DALI's CPU decoder (16-bit RGB within 1): EXIF orientation applied, grey repeated, CMYK
    converted, palettes looked up, alpha dropped, 16 bit scaled to 8.

    Raises:
        UnusableImageError: empty, no image, damaged, too large, or a format that the readers do not decode.
    """
    if not data:
        raise UnusableImageError("empty", "0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            kind, mode = str(image.format), image.mode
            if kind == "MPO":  # a JPEG with a second picture behind it, as some cameras write
                kind = "JPEG"
            if image.width * image.height > MAX_PIXELS:
                raise UnusableImageError("too large", f"{image.width}x{image.height} pixels, limit {MAX_PIXELS:,}")
            if kind not in EXTENSIONS:
                raise UnusableImageError("format", f"{kind} is not decoded by the readers")
            image.load()
            return to_rgb(image), mode, kind
    except UnusableImageError:
        raise
    except UnidentifiedImageError:
        raise UnusableImageError("not an image", f"{len(data)} bytes that no decoder recognises") from None
    except Exception as error:  # decoders raise many kinds of error on damaged data; each means the same here
        raise UnusableImageError("undecodable", f"{type(error).__name__}: {error}".replace("\n", " ")) from error


def to_rgb(image: Image.Image) -> np.ndarray:
    """Return uint8 RGB pixels [height, width, 3] of a loaded PIL image, EXIF orientation applied."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey; PIL's own conversion would clip it at 255
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or (image.mode == "P" and "transparency" in image.info):
        return np.ascontiguousarray(np.asarray(image.convert("RGBA"))[..., :3])
    return np.array(image.convert("RGB"))


def examine(data: bytes) -> Examined:
    """Decode and hash image bytes; raises UnusableImageError."""
    rgb, mode, kind = decode(data)
    digest = hashlib.sha256(repr(rgb.shape).encode())
    digest.update(rgb.tobytes())
    return Examined(rgb, mode, kind, hashlib.sha256(data).hexdigest(), zlib.crc32(data), digest.hexdigest())
