"""Cut metadata out of an image file without touching its coded pixels."""

from __future__ import annotations

import io
import struct
import warnings

from PIL import Image

from shards.containers import END, jpeg_segments, png_chunk, png_chunks, webp_chunks, webp_file

ORIENTATION = 0x0112
"""The EXIF tag that says how stored pixels are to be shown: 1 as they are, 2 to 8 mirrored or turned."""

JFIF, ADOBE, COMMENT = 0xE0, 0xEE, 0xFE
"""JPEG markers of the segments APP0, APP14 and COM."""

PNG_KEPT = frozenset({b"tRNS", b"sBIT", b"gAMA", b"cHRM", b"sRGB", b"cICP"})
"""Ancillary chunks that say how samples are shown and nothing about anybody. The readers use none but tRNS."""

WEBP_KEPT = frozenset({b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"})

WEBP_EXIF, WEBP_OTHER = 0x08, 0x20 | 0x04
"""Flags of VP8X: there is EXIF; there is an ICC profile or XMP (WebP container specification)."""


def orientation(data: bytes) -> int:
    """Return the EXIF orientation (1 to 8) of image bytes that decode; 1 where there is none or it is nonsense."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        if image.format == "PNG":
            image.load()  # its EXIF may stand behind the pixels
        for name in ("xmp", "XML:com.adobe.xmp", "Raw profile type exif"):
            image.info.pop(name, None)  # as in shards.images.to_rgb
        value = image.getexif().get(ORIENTATION, 1)
    return value if value in range(2, 9) else 1


def minimal_exif(turned: int) -> bytes:
    """Return an EXIF block (TIFF 6.0, little endian, 26 bytes) that holds the orientation alone."""
    return b"II*\0" + struct.pack("<IHHHII", 8, 1, ORIENTATION, 3, 1, turned) + bytes(4)


def cut(data: bytes, kind: str) -> bytes | None:
    """Return the file without ICC profile and metadata, or None where that cannot be cut out of this format.

    The coded pixels are the same bytes. An EXIF orientation survives, alone in a block of its own.

    - JPEG: every APPn but JFIF (its thumbnail too is cut) and Adobe's APP14 goes, comments, what follows the picture.
    - PNG: critical chunks stay, and PNG_KEPT; texts, times, profiles, EXIF and what follows IEND go.
    - WebP: the chunks of the picture stay; ICCP, EXIF, XMP and unknown ones go.
    - BMP: has no metadata unless it carries a profile or bytes behind its pixels (None).

    Args:
        data: bytes of an image that `shards.images.decode` takes.
        kind: its format, as in `Examined.format`.
    """
    if kind == "JPEG":
        return _cut_jpeg(data)
    if kind == "PNG":
        return _cut_png(data)
    if kind == "WEBP":
        return _cut_webp(data)
    return data if kind == "BMP" and _bare_bmp(data) else None


def _cut_jpeg(data: bytes) -> bytes | None:
    kept, exif, marker, first = [data[:2]], False, 0, 1
    for marker, start, end in jpeg_segments(data, whole=True):
        part = data[start:end]
        content = part[part.index(marker, 1) + 3 :] if marker else b""
        if marker == JFIF and content.startswith(b"JFIF\0") and len(content) >= 14:
            if first == 1:
                kept.append(b"\xff\xe0\0\x10" + content[:12] + b"\0\0")  # without a thumbnail
                first = len(kept)
        elif marker == COMMENT or (0xE0 <= marker <= 0xEF and not (marker == ADOBE and content.startswith(b"Adobe"))):
            exif = exif or content.startswith(b"Exif\0")
        else:
            kept.append(part)
    if marker != END:
        return None
    turned = orientation(data) if exif else 1
    if turned != 1:
        block = b"Exif\0\0" + minimal_exif(turned)
        kept.insert(first, b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block)
    return b"".join(kept)


def _cut_png(data: bytes) -> bytes:
    kept, turned = [data[:8]], 1
    chunks = list(png_chunks(data))
    if any(name == b"eXIf" for name, *_ in chunks):
        turned = orientation(data)
    for name, start, end in chunks:
        if name == b"IDAT" and turned != 1:
            kept.append(png_chunk(b"eXIf", minimal_exif(turned)))
            turned = 1
        if name[:1].isupper() or name in PNG_KEPT:
            kept.append(data[start:end])
    return b"".join(kept)


def _cut_webp(data: bytes) -> bytes:
    chunks = [(name, data[start:end]) for name, start, end in webp_chunks(data)]
    kept = [(name, content) for name, content in chunks if name in WEBP_KEPT]
    turned = orientation(data) if any(name == b"EXIF" for name, _ in chunks) else 1
    if chunks and chunks[0][0] == b"VP8X":
        head = bytearray(chunks[0][1])
        head[0] = head[0] & ~(WEBP_OTHER | WEBP_EXIF) | (WEBP_EXIF if turned != 1 else 0)
        kept[0] = (b"VP8X", bytes(head))
    if turned != 1:
        return webp_file([*kept, (b"EXIF", minimal_exif(turned))], exif=True)
    return webp_file(kept)


def _bare_bmp(data: bytes) -> bool:
    """Whether a BMP is header, palette and plain rows of pixels, and nothing else (MSDN, bitmap header types)."""
    offset, header = struct.unpack_from("<II", data, 10)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    if header == 124 and struct.unpack_from("<I", data, 126)[0]:  # an ICC profile
        return False
    palette = 4 << bits if bits <= 8 else 0
    plain = compression in (0, 3) and offset <= 14 + header + palette + 16
    return plain and len(data) <= offset + (width * bits + 31) // 32 * 4 * abs(height) + 3
