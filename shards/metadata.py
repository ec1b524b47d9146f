"""Personal data in an image's metadata: which fields hold some, and of what kind; their values are never returned."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from itertools import islice

from shards.containers import JPEG_START, PNG_START, SCAN, jpeg_segments, png_chunks, webp_chunks
from shards.personal_fields import (
    ENCODERS,
    EXIF_FIELDS,
    GPS_FIELDS,
    IPTC_FIELDS,
    TIFF_FIELDS,
    XMP_KINDS,
    kind_of,
)

LIMIT = 1 << 16
"""Bytes of one block of XMP, IPTC or text that are looked at."""

BLOCKS, ENTRIES, DIRECTORIES = 64, 256, 8
"""Blocks of one file, entries of one EXIF directory and directories of one EXIF block that are looked at."""

START = 1 << 12
"""Bytes of one value that are looked at to see whether it says something."""

EXIF_DIRECTORY, GPS_DIRECTORY = 0x8769, 0x8825
NESTED = {0x02BC: "XMP", 0x83BB: "IPTC", 0x8649: "IPTC"}
"""Tags of a TIFF directory that hold other metadata: XMP, IPTC, Photoshop's image resources."""

SIZES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 12: 8}
"""Bytes of one value of each TIFF type; 1 for all others."""

_NAMES = "|".join(sorted(XMP_KINDS, key=len, reverse=True)).encode()
_XMP = re.compile(rb"[<\s]\w{1,32}:(" + _NAMES + rb")(?=\s*=\s*[\"'](?![\"'])|[\s>])")

Directory = tuple[int, dict[int, tuple[str, str]]]
"""Where a directory stands, and its personal fields."""


def personal(data: bytes) -> dict[str, str]:
    """Return the fields with personal data in an image file: "EXIF Artist" -> "name", ...; {} where there are none.

    Reads EXIF, XMP, IPTC, JPEG comments and PNG texts, never a pixel. The kinds are NAME, PLACE, TIME, SERIAL and
    TEXT; empty fields are left out. Damaged metadata is read as far as it goes; nothing is raised, and the work is
    bounded whatever the file claims.
    """
    found: dict[str, str] = {}
    for block, content in islice(_blocks(data), BLOCKS):
        if block == "EXIF":
            for inner, value in _exif(content, found):
                _note(inner, value, found)
        else:
            _note(block, content, found)
    return found


def _note(block: str, content: bytes, found: dict[str, str]) -> None:
    if block == "XMP":
        for name in set(_XMP.findall(content[:LIMIT])):
            found[f"XMP {name.decode()}"] = XMP_KINDS[name.decode()]
    elif block == "IPTC":
        _iptc(content[:LIMIT], found)
    else:
        found.update(_text(block, content))


def _blocks(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (EXIF, XMP, IPTC, or the name of a text, content) of the metadata of a file."""
    if data.startswith(JPEG_START):
        return _jpeg_blocks(data)
    if data.startswith(PNG_START):
        return _png_blocks(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp_blocks(data)
    if data.startswith((b"II*\0", b"MM\0*")):
        return iter([("EXIF", data)])
    if data[4:12] == b"jP  \r\n\x87\n":
        return _jp2_blocks(data)
    return iter(())


def _jpeg_blocks(data: bytes) -> Iterator[tuple[str, bytes]]:
    for marker, start, end in jpeg_segments(data):
        if marker == 0xFE:
            yield "JPEG comment", data[start + 4 : end]
        elif marker in (0xE1, 0xED):
            block = data[start + 4 : end]
            if block.startswith(b"Exif\0"):
                yield "EXIF", block[6:]
            elif block.startswith(b"http://ns.adobe.com/x"):
                yield "XMP", block
            elif block.startswith(b"Photoshop 3.0\0"):
                yield "IPTC", block
        elif marker == SCAN:
            return


def _png_blocks(data: bytes) -> Iterator[tuple[str, bytes]]:
    for name, start, end in png_chunks(data):
        if name == b"eXIf":
            yield "EXIF", data[start + 8 : end - 4]
        elif name == b"tIME":
            yield "PNG tIME", b"time"
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            content = data[start + 8 : min(end - 4, start + 8 + LIMIT)]
            yield from _png_text(name, content)


def _png_text(name: bytes, content: bytes) -> Iterator[tuple[str, bytes]]:
    keyword, _, text = content.partition(b"\0")
    if name == b"zTXt":
        text = _inflated(text[1:])
    elif name == b"iTXt":
        packed = text[:1] == b"\1"
        text = text[2:].partition(b"\0")[2].partition(b"\0")[2]
        text = _inflated(text) if packed else text
    title = keyword[:79].decode("latin-1")
    if title == "XML:com.adobe.xmp":
        yield "XMP", text
    elif title.startswith("Raw profile type "):  # ImageMagick: name, length, then hexadecimal digits
        block = _unhex(text)
        kind = title[17:]
        if kind in ("exif", "APP1"):
            yield "EXIF", block.removeprefix(b"Exif\0\0")
        elif kind == "xmp":
            yield "XMP", block
        elif kind in ("iptc", "8bim"):
            yield "IPTC", block
    else:
        yield f"PNG {title}", text


def _webp_blocks(data: bytes) -> Iterator[tuple[str, bytes]]:
    for name, start, end in webp_chunks(data):
        if name == b"EXIF":
            yield "EXIF", data[start:end].removeprefix(b"Exif\0\0")
        elif name == b"XMP ":
            yield "XMP", data[start:end]


def _jp2_blocks(data: bytes) -> Iterator[tuple[str, bytes]]:
    position = 0
    for _ in range(BLOCKS):
        size, name = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8]
        if size < 8 or name == b"jp2c":
            return
        content = data[position + 8 : position + size]
        if name == b"uuid" and content.startswith(b"JpgTiffExif->JP2"):
            yield "EXIF", content[16:].removeprefix(b"Exif\0\0")
        elif name == b"uuid" and content.startswith(
            b"\xbe\x7a\xcf\xcb\x97\xa9\x42\xe8\x9c\x71\x99\x94\x91\xe3\xaf\xac"
        ):
            yield "XMP", content[16:]
        elif name == b"xml ":
            yield "JPEG 2000 xml", content
        position += size


def _inflated(packed: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(packed, LIMIT)
    except zlib.error:
        return b""


def _unhex(text: bytes) -> bytes:
    digits = re.sub(rb"\s", b"", text.lstrip().partition(b"\n")[2].lstrip().partition(b"\n")[2])
    try:
        return bytes.fromhex(digits[: len(digits) & ~1].decode("ascii"))
    except ValueError:
        return b""


def _text(name: str, content: bytes) -> Iterator[tuple[str, str]]:
    if not _says(content) or (name == "JPEG comment" and content.startswith(ENCODERS)):
        return
    kind = kind_of(name)
    if kind:
        yield name, kind


def _says(value: bytes) -> bool:
    """Whether a value says something: not only blanks, zeros and signs between them (as in 0000:00:00)."""
    return bool(value[:START].strip(b"\0 \t\r\n0:-/."))


def _exif(block: bytes, found: dict[str, str]) -> list[tuple[str, bytes]]:
    """Note the personal fields of an EXIF block (a small TIFF file); return other metadata that lies inside it."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    inner: list[tuple[str, bytes]] = []
    if not order or len(block) < 8:
        return inner
    waiting: list[Directory] = [(struct.unpack_from(order + "I", block, 4)[0], TIFF_FIELDS)]
    seen: set[int] = set()
    while waiting and len(seen) < DIRECTORIES:
        offset, fields = waiting.pop()
        if offset not in seen and 8 <= offset <= len(block) - 2:
            seen.add(offset)
            waiting += _directory(block, order, offset, fields, found, inner)
    return inner


def _directory(
    block: bytes,
    order: str,
    offset: int,
    fields: dict[int, tuple[str, str]],
    found: dict[str, str],
    inner: list[tuple[str, bytes]],
) -> list[Directory]:
    """Note the personal fields of one directory; return the directories that it points to."""
    deeper: list[Directory] = []
    (count,) = struct.unpack_from(order + "H", block, offset)
    entries = block[offset + 2 : offset + 2 + 12 * min(count, ENTRIES)]
    for tag, kind, number, place in struct.iter_unpack(order + "HHII", entries[: len(entries) // 12 * 12]):
        if tag in (EXIF_DIRECTORY, GPS_DIRECTORY):
            deeper.append((place, EXIF_FIELDS if tag == EXIF_DIRECTORY else GPS_FIELDS))
        elif tag in fields or tag in NESTED:
            size = min(number * SIZES.get(kind, 1), LIMIT)
            value = block[place : place + size] if size > 4 else struct.pack(order + "I", place)[:size]
            if tag in NESTED:
                if len(inner) < len(NESTED):
                    inner.append((NESTED[tag], value))
                continue
            name, what = fields[tag]
            if _says(value[8:] if name == "UserComment" else value):  # its first 8 bytes name a character set
                found[f"EXIF {name}"] = what
    return deeper


def _iptc(block: bytes, found: dict[str, str]) -> None:
    """Note the data sets of an IPTC block, alone or inside Photoshop's image resources."""
    position = -1
    for _ in range(ENTRIES):
        position = block.find(b"\x1c\x02", position + 1)
        if position < 0 or position + 5 > len(block):
            return
        size = int.from_bytes(block[position + 3 : position + 5])
        known = IPTC_FIELDS.get(block[position + 2])
        value = block[position + 5 : position + 5 + size]
        if known and len(value) == size and _says(value):
            found[f"IPTC {known[0]}"] = known[1]
