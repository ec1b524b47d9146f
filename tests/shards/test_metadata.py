"""Personal data in metadata: every planted field is named with its kind, its value never; garbage is harmless."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from shards.metadata import personal
from shards.personal_fields import EXIF_FIELDS, GPS_FIELDS, IPTC_FIELDS, TIFF_FIELDS, XMP_KINDS, kind_of
from tests.shards.test_images import RGB, chunk, encode

SECRET = "Jane Doe"


def exif_block(order: str, directories: list[dict[int, tuple[int, bytes]]]) -> bytes:
    """Return a TIFF structure: each directory maps tags to (type, value); a value of 4 bytes b"->1" points to one."""
    starts, position = [], 8
    for entries in directories:
        starts.append(position)
        position += 6 + 12 * len(entries)
    body, tail = b"", b""
    for entries in directories:
        body += struct.pack(order + "H", len(entries))
        for tag, (kind, value) in sorted(entries.items()):
            if value.startswith(b"->"):
                body += struct.pack(order + "HHII", tag, 4, 1, starts[int(value[2:])])
                continue
            count = len(value) // {3: 2, 4: 4, 5: 8}.get(kind, 1)
            if len(value) <= 4:
                body += struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
            else:
                body += struct.pack(order + "HHII", tag, kind, count, position + len(tail))
                tail += value + bytes(len(value) & 1)
        body += bytes(4)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(order + "I", 8) + body + tail


def every_field(order: str) -> bytes:
    """Return EXIF with every field that is personal, and some that are not."""
    text = (2, SECRET.encode() + b"\0")
    place = (5, struct.pack(order + "6I", 35, 1, 42, 1, 1, 1))
    first = dict.fromkeys(TIFF_FIELDS, text) | {0x0110: text, 0x0131: text, 0x8769: (4, b"->1"), 0x8825: (4, b"->2")}
    own = dict.fromkeys(EXIF_FIELDS, text) | {0x9286: (7, b"ASCII\0\0\0" + SECRET.encode()), 0x829A: place}
    return exif_block(order, [first, own, dict.fromkeys(GPS_FIELDS, place) | {0x01: (2, b"N\0")}])


EVERY_EXIF = {f"EXIF {name}": kind for table in (TIFF_FIELDS, EXIF_FIELDS, GPS_FIELDS) for name, kind in table.values()}
XMP = b'<x:xmpmeta><rdf:Description xmp:CreateDate="2020-01-02" tiff:Model="M" aux:SerialNumber = \'7\' '
XMP += b'photoshop:City="" exif:GPSLatitude="35,42N">\n<dc:creator><rdf:Seq/></dc:creator>'
XMP += b"<xmp:CreatorTool>x</xmp:CreatorTool>"
XMP_FOUND = {"XMP CreateDate": "time", "XMP SerialNumber": "serial", "XMP GPSLatitude": "place", "XMP creator": "name"}


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    """Return a JPEG with further segments (marker, content)."""
    data = encode(RGB, "JPEG")
    return (
        data[:20] + b"".join(b"\xff" + bytes([m]) + struct.pack(">H", len(c) + 2) + c for m, c in segments) + data[20:]
    )


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG with further chunks (name, content)."""
    data = encode(RGB, "PNG")
    return data[:33] + b"".join(chunk(*part) for part in chunks) + data[33:]


def iptc(number: int, value: bytes) -> bytes:
    """Return one IPTC data set of record 2."""
    return b"\x1c\x02" + bytes([number]) + struct.pack(">H", len(value)) + value


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("where", ["JPEG", "PNG", "PNG text", "WebP", "TIFF", "JPEG 2000"])
def test_every_personal_field_of_exif_is_named(where: str, order: str) -> None:
    block = every_field(order)
    profile = zlib.compress(b"\nexif\n%8d\n%s\n" % (len(block), block.hex().encode()))
    webp = encode(RGB, "WEBP", exif=Image.Exif(), xmp=b"<x/>")
    files = {
        "JPEG": jpeg_with((0xE1, b"Exif\0\0" + block)),
        "PNG": png_with((b"eXIf", block)),
        "PNG text": png_with((b"zTXt", b"Raw profile type exif\0\0" + profile)),
        "WebP": webp[:4] + struct.pack("<I", len(webp) + len(block)) + webp[8:]
        + b"EXIF" + struct.pack("<I", len(block)) + block,
        "TIFF": block,
        "JPEG 2000": encode(RGB, "JPEG2000")[:12]
        + struct.pack(">I", 24 + len(block)) + b"uuidJpgTiffExif->JP2" + block,
    }  # fmt: skip
    assert personal(files[where]) == EVERY_EXIF


def test_fields_are_those_that_pil_writes() -> None:
    """The same file as cameras write it, made by another program than the tests' own."""
    exif = Image.Exif()
    exif[0x013B], exif[0x0110], exif[0x0132] = SECRET, "Axioscope", "2021:03:04 05:06:07"
    exif.get_ifd(0x8769)[0xA431] = "1234"
    exif.get_ifd(0x8825)[0x02] = (35.0, 42.0, 1.0)
    found = {"EXIF Artist": "name", "EXIF DateTime": "time", "EXIF BodySerialNumber": "serial"}
    for kind in ("JPEG", "PNG", "WEBP"):
        assert personal(encode(RGB, kind, exif=exif)) == found | {"EXIF GPSLatitude": "place"}
    assert personal(encode(RGB, "TIFF", tiffinfo={315: SECRET})) == {"EXIF Artist": "name"}


def test_empty_fields_and_harmless_ones_are_not_named() -> None:
    empty = {0x013B: (2, b" \0"), 0x0132: (2, b"0000:00:00 00:00:00\0"), 0x010E: (2, bytes(40)), 0x0110: (2, b"M\0")}
    comment = {0x9286: (7, b"ASCII\0\0\0" + bytes(60)), 0x9003: (2, b"    :  :     :  :  \0")}
    block = exif_block("<", [empty | {0x8769: (4, b"->1")}, comment])
    orientation = exif_block("<", [{0x0112: (3, b"\6\0")}])
    quiet = [
        jpeg_with((0xE1, b"Exif\0\0" + block)), jpeg_with((0xE1, b"Exif\0\0" + orientation)),
        jpeg_with((0xFE, b"\0  ")), encode(RGB, "JPEG2000"),
        jpeg_with((0xFE, b"CREATOR: gd-jpeg v1.0 (using IJG JPEG v62)\n")), jpeg_with((0xED, b"Photoshop 3.0\0")),
        png_with((b"tEXt", b"Software\0Fiji")), png_with((b"tEXt", b"Author\0 ")), png_with((b"gAMA", bytes(4))),
        encode(RGB, "JPEG"), encode(RGB, "PNG"), encode(RGB, "BMP"), encode(RGB, "TIFF"), encode(RGB, "WEBP"),
    ]  # fmt: skip
    for data in quiet:
        assert personal(data) == {}


def test_xmp_iptc_comments_and_texts() -> None:
    assert personal(jpeg_with((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP))) == XMP_FOUND
    assert personal(png_with((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP))) == XMP_FOUND
    assert personal(png_with((b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)))) == XMP_FOUND
    assert personal(encode(RGB, "WEBP", xmp=XMP)) == XMP_FOUND
    assert personal(exif_block(">", [{0x02BC: (1, XMP)}])) == XMP_FOUND
    assert set(XMP_FOUND) <= {f"XMP {name}" for name in XMP_KINDS}

    every = b"".join(iptc(number, SECRET.encode()) for number in IPTC_FIELDS) + iptc(80, b"") + iptc(200, b"x")
    named = {f"IPTC {name}": kind for name, kind in IPTC_FIELDS.values()}
    assert (
        personal(jpeg_with((0xED, b"Photoshop 3.0\x008BIM\4\4\0\0" + struct.pack(">I", len(every)) + every))) == named
    )
    assert personal(exif_block("<", [{0x83BB: (7, every)}])) == named

    assert personal(jpeg_with((0xFE, SECRET.encode()))) == {"JPEG comment": "free text"}
    texts = png_with(
        (b"tEXt", b"Author\0" + SECRET.encode()), (b"zTXt", b"Patient\0\0" + zlib.compress(SECRET.encode())),
        (b"tEXt", b"date:create\x002020-01-02"), (b"tIME", bytes([7, 230, 1, 2, 3, 4, 5])),
    )  # fmt: skip
    kinds = {"PNG Author": "name", "PNG Patient": "free text", "PNG date:create": "time", "PNG tIME": "time"}
    assert personal(texts) == kinds
    assert {name: kind_of(name) for name in kinds} == kinds
    assert kind_of("JPEG comment") == "free text"


def test_the_name_of_a_field_tells_its_kind() -> None:
    tables = {"EXIF": [TIFF_FIELDS, EXIF_FIELDS, GPS_FIELDS], "IPTC": [IPTC_FIELDS]}
    fields = [(f"{block} {name}", kind) for block, some in tables.items() for f in some for name, kind in f.values()]
    assert all(kind_of(name) == kind for name, kind in fields)
    assert all(kind_of(f"XMP {name}") == kind for name, kind in XMP_KINDS.items())
    assert {name: kind_of(name) for name in EVERY_EXIF} == EVERY_EXIF


def test_values_are_never_told() -> None:
    for data in (exif_block("<", [{0x013B: (2, SECRET.encode())}]), jpeg_with((0xFE, SECRET.encode()))):
        assert personal(data)
        assert SECRET not in repr(personal(data))


def many_samples() -> list[bytes]:
    """Return one file of each kind with metadata."""
    block = every_field("<")
    return [
        jpeg_with((0xE1, b"Exif\0\0" + block), (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP), (0xFE, b"hello")),
        png_with((b"eXIf", block), (b"zTXt", b"A\0\0" + zlib.compress(bytes(9000))), (b"iTXt", b"B\0\1\0\0\0x")),
        encode(RGB, "WEBP", exif=b"Exif\0\0" + block, xmp=XMP),
        block,
        encode(RGB, "TIFF", tiffinfo={315: SECRET}),
        encode(RGB, "JPEG2000"),
    ]


def test_garbage_is_read_without_a_word() -> None:
    noise = random.Random(0)
    for whole in many_samples():
        for size in range(0, len(whole), 7):
            assert isinstance(personal(whole[:size]), dict)
        for _ in range(400):
            data = bytearray(whole)
            for _ in range(noise.randrange(1, 6)):
                data[noise.randrange(min(len(data), 3000))] = noise.choice((0, 1, 127, 255, noise.randrange(256)))
            assert all(isinstance(kind, str) for kind in personal(bytes(data)).values())


@pytest.mark.timeout(30)  # all together take less than a second
def test_work_is_bounded_whatever_a_file_claims() -> None:
    """Directories that point to each other, all full of large values; thousands of texts; an XMP of near misses."""
    entry = struct.pack("<HHII", 0x010E, 2, 2**31, 8)
    full = struct.pack("<H", 65535) + entry * 60_000
    directory = struct.pack("<HHII", 0x8769, 4, 1, 8)
    hostile = [
        b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 65535) + directory * 60_000,
        b"II*\0" + struct.pack("<I", 8) + full + bytes(1 << 20),
        b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 2) + struct.pack("<HHII", 0x02BC, 1, 1 << 30, 40) * 2
        + bytes(20) + b"<aaaa:" * 500_000,
        png_with(*[(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(bytes(10_000_000)))] * 40),
        png_with(*[(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<a:creato" * 8000)] * 40),
        b"\xff\xd8" + (b"\xff\xfe\0\3x") * 200_000,
        b"\xff\xd8" + b"\xff" * 2_000_000,
        jpeg_with((0xED, b"Photoshop 3.0\0" + b"\x1c\2" * 30_000)),
    ]  # fmt: skip
    for data in hostile:
        personal(data)


@pytest.mark.realdata
def test_real_images_hold_what_is_known_of_them(real_data: Path) -> None:
    """all4 and pbc8 have nothing; the photograph beside the weights has its day, computer and place in a library."""
    for name in ("all4", "pbc8"):
        for path in sorted((real_data / name).rglob("*.jpg"))[::40]:
            assert personal(path.read_bytes()) == {}
    dog = real_data / "weights" / "check" / "dog.jpg"
    found = personal(dog.read_bytes())
    assert {
        "EXIF DateTimeOriginal": "time",
        "EXIF HostComputer": "name",
        "XMP DocumentID": "serial",
    }.items() <= found.items()
    with Image.open(io.BytesIO(dog.read_bytes())) as image:
        assert image.getexif()[0x013C]
