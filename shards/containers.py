"""What JPEG, PNG and WebP files are made of: their segments and chunks, found without decoding a pixel."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator

PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8"

SCAN, END = 0xDA, 0xD9
"""JPEG markers: start of scan, end of image (ITU-T T.81, table B.1)."""

_FILLED = re.compile(rb"[^\xff]")
"""The end of a gap between two segments."""

_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""A marker that is no stuffed byte and no restart: with it the coded pixels of a scan end."""

Part = tuple[bytes, bytes]
"""Name and content of one chunk."""


def jpeg_segments(data: bytes, whole: bool = False) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, first byte, first byte behind it) of each segment of a JPEG, up to the first scan.

    With `whole` the walk goes on behind it: the coded pixels of each scan are a part with marker 0, the last part is
    END. It stops early, without a word, where the file is damaged or the end is missing.
    """
    position, size = 2, len(data)
    while position + 2 <= size and data[position] == 0xFF:
        start = position
        marker = data[position + 1]
        if marker == 0xFF:  # any number of these may fill the gap
            found = _FILLED.search(data, position)
            if not found:
                return
            position = found.start() - 1
            marker = data[position + 1]
        if marker == END:
            yield END, start, position + 2
            return
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        if end > size or end < position + 4:
            return
        yield marker, start, end
        position = end
        if marker == SCAN:
            behind = _AFTER_SCAN.search(data, position) if whole else None
            if not behind:
                return
            position = behind.start()
            yield 0, end, position


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, first byte, first byte behind it) of each chunk of a PNG up to IEND; ends where it is damaged."""
    position, size = 8, len(data)
    while position + 12 <= size:
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if end > size:
            return
        name = data[position + 4 : position + 8]
        yield name, position, end
        if name == b"IEND":
            return
        position = end


def png_chunk(name: bytes, content: bytes) -> bytes:
    """Return one chunk of a PNG with its length and check sum."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, first byte of its content, first byte behind it) of each chunk of a WebP file."""
    position, size = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while position + 8 <= size:
        end = position + 8 + int.from_bytes(data[position + 4 : position + 8], "little")
        if end > size:
            return
        yield data[position : position + 4], position + 8, end
        position = end + (end & 1)


def webp_file(chunks: Iterable[Part], exif: bool = False) -> bytes:
    """Return a WebP file of these chunks.

    With `exif` a chunk of odd length gets its byte of padding inside, where decoders pass over it: DALI 2.4 does not
    skip one outside when it looks for the orientation, and cannot read the file.
    """
    body = [b"WEBP"]
    for name, content in chunks:
        odd = bytes(len(content) & 1)
        size = len(content) + (len(odd) if exif else 0)
        body += [name, struct.pack("<I", size), content, odd]
    whole = b"".join(body)
    return b"RIFF" + struct.pack("<I", len(whole)) + whole
