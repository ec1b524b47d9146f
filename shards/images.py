"""Decode an image fully, once, and say what it is: size, mode, format, hashes, or why it cannot be used."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp", "JPEG2000": "jp2"}
"""The formats that DALI decodes on every device, and their extension in a shard: content decides, not the name."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".jp2", ".gif"})
"""File names that are taken for images, without regard to case."""

OTHER_PICTURES = frozenset(
    {".avif", ".heic", ".heif", ".jxl", ".pgm", ".ppm", ".tga", ".psd", ".dng", ".cr2", ".nef", ".dcm"}
    | {".czi", ".lif", ".nd2", ".svs", ".ndpi", ".mrxs", ".scn", ".vsi"}
)
"""File names of pictures and slides that the readers do not decode: they are never passed over in silence."""

LEFT_OUT = {"TIFF": ("LA", "PA", "I", "F", "LAB"), "JPEG2000": ("LA",)}
"""Modes of these formats that DALI does not decode, or not to the same pixels."""

MAX_PIXELS = 100_000_000
"""Images with more pixels than this are rejected unread (decompression bombs)."""

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row, and distance of columns and rows, of the passes of an interlaced PNG."""

_BITS_PER_SAMPLE = 258


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

    The same pixels as DALI's CPU decoder (16-bit RGB and CMYK JPEG within 1): EXIF orientation applied, grey repeated,
    CMYK converted, palettes looked up, alpha dropped, 16 bit scaled to 8.

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
            _check_kind(image, kind)
            _check_structure(data, kind)
            image.load()
            return to_rgb(image), mode, kind
    except UnusableImageError:
        raise
    except UnidentifiedImageError:
        raise UnusableImageError("not an image", f"{len(data)} bytes that no decoder recognises") from None
    except Image.DecompressionBombError:
        raise UnusableImageError("too large", f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # decoders raise many kinds of error on damaged data; each means the same here
        raise UnusableImageError("undecodable", f"{type(error).__name__}: {error}".replace("\n", " ")) from error


def _check_kind(image: Image.Image, kind: str) -> None:
    if kind not in EXTENSIONS:
        raise UnusableImageError("format", f"{kind} is not decoded by the readers")
    if image.mode in LEFT_OUT.get(kind, ()):
        raise UnusableImageError("format", f"{kind} of mode {image.mode} is not decoded alike by the readers")
    if kind == "TIFF" and _BITS_PER_SAMPLE not in image.tag_v2:  # type: ignore[attr-defined]  # TIFF images have it
        raise UnusableImageError("format", "TIFF without the field BitsPerSample is not decoded by the readers")


def _check_structure(data: bytes, kind: str) -> None:
    """Check what PIL forgives and DALI does not: a PNG's damaged chunks or missing rows, junk between JPEG segments."""
    if kind == "PNG":
        _check_png(data)
    elif kind == "WEBP":
        _check_webp(data)
    elif kind == "JPEG":
        position, marker = 2, 0
        while marker != 0xDA:  # the pixels follow
            if data[position : position + 1] != b"\xff":
                raise UnusableImageError("undecodable", f"the JPEG has no segment at byte {position:,}")
            while data[position : position + 1] == b"\xff":  # any number may fill the gap
                position += 1
            marker = int.from_bytes(data[position : position + 1])
            position += 1 + int.from_bytes(data[position + 1 : position + 3])


def _check_webp(data: bytes) -> None:
    """Look for announced EXIF as DALI 2.4 does, which does not skip the byte of padding behind an odd chunk."""
    position = 12
    if data[12:16] == b"VP8X" and data[20] & 0x08:
        while data[position : position + 4] != b"EXIF":
            position += 8 + int.from_bytes(data[position + 4 : position + 8], "little")
            if position + 8 > len(data):
                raise UnusableImageError("undecodable", "the WebP's EXIF is not where the readers look for it")


def _check_png(data: bytes) -> None:
    position, name = 8, b""
    inflate, pixels, needed = zlib.decompressobj(), 0, _png_bytes(data)
    while name != b"IEND":
        size, name = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8]
        end = position + 12 + size
        if end > len(data):
            raise UnusableImageError("undecodable", f"the PNG is cut short at byte {len(data):,}")
        # Chunks with a small first letter may be skipped, whatever is in them.
        if name[:1].isupper() and zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise UnusableImageError("undecodable", f"the PNG's chunk at byte {position:,} is damaged")
        part = data[position + 8 : end - 4] if name == b"IDAT" else b""
        while part and pixels < needed:
            pixels += len(inflate.decompress(part, 1 << 20))
            part = inflate.unconsumed_tail
        position = end
    if pixels < needed:
        raise UnusableImageError("undecodable", f"the PNG holds {pixels:,} of {needed:,} bytes of pixels")


def _png_bytes(data: bytes) -> int:
    """Return how many bytes of filtered rows the header of a PNG announces (PNG specification, section 9)."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]
    return sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns > 0 and rows > 0)


def to_rgb(image: Image.Image) -> np.ndarray:
    """Return uint8 RGB pixels [height, width, 3] of a loaded PIL image, EXIF orientation applied (also to `image`)."""
    for name in ("xmp", "XML:com.adobe.xmp", "Raw profile type exif"):
        image.info.pop(name, None)  # PIL would take an orientation from there; no reader does
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16-bit grey; PIL's own conversion would clip it at 255
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or (image.mode == "P" and "transparency" in image.info):
        return np.ascontiguousarray(np.asarray(image.convert("RGBA"))[..., :3])
    # What numpy sees of an image is a copy made for it, which nobody else holds: no second one is needed.
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def examine(data: bytes) -> Examined:
    """Decode and hash image bytes; raises UnusableImageError."""
    rgb, mode, kind = decode(data)
    digest = hashlib.sha256(repr(rgb.shape).encode())
    digest.update(np.ascontiguousarray(rgb).data)
    return Examined(rgb, mode, kind, hashlib.sha256(data).hexdigest(), zlib.crc32(data), digest.hexdigest())
