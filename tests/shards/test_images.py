"""Decoding: the right pixels for every format that people have, the same as DALI's, and a clear no to all else."""

from __future__ import annotations

import hashlib
import io
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.images import EXTENSIONS, UnusableImageError, decode, examine

ROOT = Path(__file__).resolve().parents[2]
Y, X = np.mgrid[0:40, 0:56]
RGB = np.stack([4 * X, 6 * Y, 2 * (X + Y)], axis=-1).astype(np.uint8)
"""A smooth picture, uint8 [40, 56, 3], with nothing the same in any two orientations."""
GREY = np.asarray(Image.fromarray(RGB).convert("L"))
ALPHA = (4 * X).astype(np.uint8)
SIXTEEN = (1000 * X + 37 * Y).astype(np.uint16)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def encode(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    """Return an image or an array as a file of one format."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(array: np.ndarray, depth: int, colour: int, width: int = 0, height: int = 0) -> bytes:
    """Return a PNG of an array of samples [height, ...], which PIL cannot write; the header may lie about the size."""
    size = struct.pack(">IIBBBBB", width or array.shape[1], height or len(array), depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in array))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def interlaced() -> bytes:
    """Return RGB as a PNG in the seven passes of Adam7 (PNG specification, section 8.2), which PIL cannot write."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = [b"\0" + row.tobytes() for x, y, dx, dy in passes for row in RGB[y::dy, x::dx]]
    size = struct.pack(">IIBBBBB", RGB.shape[1], RGB.shape[0], 8, 2, 0, 0, 1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size)
        + chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + chunk(b"IEND", b"")
    )


def tiff16(array: np.ndarray) -> bytes:
    """Return an uncompressed TIFF of uint16 [height, width, 3]."""
    data = array.astype("<u2").tobytes()
    height, width = array.shape[:2]
    fields = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 8 + len(data)), (259, 3, 1, 1), (262, 3, 1, 2)]
    fields += [(273, 4, 1, 8), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(data))]
    head = b"II*\0" + struct.pack("<I", 14 + len(data)) + data + struct.pack("<HHH", 16, 16, 16)
    return head + struct.pack("<H", len(fields)) + b"".join(struct.pack("<HHII", *f) for f in fields) + bytes(4)


def with_exif(orientation: int, kind: str, **options: Any) -> bytes:
    """Return RGB, stored as it is, with the remark that it is to be shown in another orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(RGB, kind, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else options))


def announcing_exif() -> bytes:
    """Return a WebP whose header says that it has EXIF, which it has not."""
    data = bytearray(encode(RGB, "WEBP", lossless=True, xmp=XMP))
    data[20] |= 0x08
    return bytes(data)


def raw_profile_exif() -> bytes:
    """Return a PNG with an orientation where only ImageMagick and PIL look for it, in a text."""
    exif = Image.Exif()
    exif[0x0112] = 6
    text = b"\nexif\n%8d\n%s\n" % (len(exif.tobytes()), exif.tobytes().hex().encode())
    data = encode(RGB, "PNG")
    return data[:33] + chunk(b"tEXt", b"Raw profile type exif\0" + text) + data[33:]


def repeated(grey: np.ndarray) -> np.ndarray:
    """Return a grey picture in three equal channels."""
    return np.repeat(grey[..., None], 3, axis=2)


SHOWN: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}
"""What a picture stored as `a` looks like under each EXIF orientation (TIFF 6.0, tag 274)."""

PALETTE = Image.fromarray(RGB).quantize(64)
LOOKED_UP = np.asarray(PALETTE.convert("RGB"))
CMYK = Image.fromarray(RGB).convert("CMYK")
RGBA = Image.fromarray(np.dstack([RGB, ALPHA]))
BITS = Image.fromarray(GREY > 120)
COLOUR16 = (RGB.astype(np.uint32) * 257).astype(">u2")
GREY16 = ((SIXTEEN.astype(np.uint32) + 128) // 257).astype(np.uint8)

# name -> (file, pixels, PIL mode, largest difference): 0 where the format loses nothing
GOOD: dict[str, tuple[bytes, np.ndarray, str, int]] = {
    "JPEG": (encode(RGB, "JPEG", quality=98, subsampling=0), RGB, "RGB", 6),
    "JPEG progressive": (encode(RGB, "JPEG", quality=98, subsampling=0, progressive=True), RGB, "RGB", 6),
    "JPEG grey": (encode(GREY, "JPEG", quality=98), repeated(GREY), "L", 6),
    "JPEG CMYK": (encode(CMYK, "JPEG", quality=98), RGB, "CMYK", 8),
    "JPEG with XMP": (encode(RGB, "JPEG", quality=98, subsampling=0, xmp=XMP), RGB, "RGB", 6),
    "JPEG with broken EXIF": (encode(RGB, "JPEG", quality=98, exif=b"Exif\0\0MM\0*" + b"junk" * 9), RGB, "RGB", 12),
    "JPEG of a camera": (
        encode(RGB, "MPO", quality=98, save_all=True, append_images=[RGBA.convert("RGB")]),
        RGB,
        "RGB",
        12,
    ),
    "PNG": (encode(RGB, "PNG"), RGB, "RGB", 0),
    "PNG grey": (encode(GREY, "PNG"), repeated(GREY), "L", 0),
    "PNG grey and alpha": (encode(Image.fromarray(np.dstack([GREY, ALPHA])), "PNG"), repeated(GREY), "LA", 0),
    "PNG alpha": (encode(RGBA, "PNG"), RGB, "RGBA", 0),
    "PNG palette": (encode(PALETTE, "PNG"), LOOKED_UP, "P", 0),
    "PNG palette, one clear": (encode(PALETTE, "PNG", transparency=5), LOOKED_UP, "P", 0),
    "PNG palette, alpha": (encode(PALETTE, "PNG", transparency=bytes(range(64))), LOOKED_UP, "P", 0),
    "PNG one clear colour": (encode(RGB, "PNG", transparency=(0, 0, 0)), RGB, "RGB", 0),
    "PNG with EXIF in a text": (raw_profile_exif(), RGB, "RGB", 0),
    "PNG interlaced": (interlaced(), RGB, "RGB", 0),
    "PNG 1 bit": (encode(BITS, "PNG"), repeated(np.where(GREY > 120, 255, 0).astype(np.uint8)), "1", 0),
    "PNG 16 bit": (encode(SIXTEEN, "PNG"), repeated(GREY16), "I;16", 0),
    "PNG 16 bit colour": (png(COLOUR16, 16, 2), RGB, "RGB", 0),
    "PNG 16 bit alpha": (png(np.dstack([COLOUR16, COLOUR16[..., :1]]).astype(">u2"), 16, 6), RGB, "RGBA", 0),
    "BMP": (encode(RGB, "BMP"), RGB, "RGB", 0),
    "BMP grey": (encode(GREY, "BMP"), repeated(GREY), "L", 0),
    "BMP palette": (encode(PALETTE, "BMP"), LOOKED_UP, "P", 0),
    "TIFF": (encode(RGB, "TIFF"), RGB, "RGB", 0),
    "TIFF LZW": (encode(RGB, "TIFF", compression="tiff_lzw"), RGB, "RGB", 0),
    "TIFF 16 bit": (encode(SIXTEEN, "TIFF"), repeated(GREY16), "I;16", 0),
    "TIFF 16 bit colour": (tiff16(COLOUR16), RGB, "RGB", 0),
    "TIFF CMYK": (encode(CMYK, "TIFF"), RGB, "CMYK", 0),
    "TIFF of two pages": (encode(RGB, "TIFF", save_all=True, append_images=[RGBA.convert("RGB")]), RGB, "RGB", 0),
    "WebP": (encode(RGB, "WEBP", quality=100), RGB, "RGB", 24),
    "WebP lossless": (encode(RGB, "WEBP", lossless=True), RGB, "RGB", 0),
    "WebP moving": (encode(RGB, "WEBP", lossless=True, save_all=True, append_images=[RGBA]), RGB, "RGBA", 0),
    "WebP EXIF 6": (with_exif(6, "WEBP", quality=100), SHOWN[6](RGB), "RGB", 24),
    "WebP with XMP": (encode(RGB, "WEBP", lossless=True, xmp=XMP), RGB, "RGB", 0),
    "JPEG 2000": (encode(RGB, "JPEG2000"), RGB, "RGB", 0),
    "JPEG 2000 16 bit": (encode(SIXTEEN, "JPEG2000"), repeated(GREY16), "I;16", 0),
    **{
        f"{kind} EXIF {orientation}": (with_exif(orientation, kind), shown(RGB), "RGB", 6 if kind == "JPEG" else 0)
        for orientation, shown in SHOWN.items()
        for kind in ("JPEG", "PNG", "TIFF")
    },
}


@pytest.mark.parametrize("name", GOOD)
def test_pixels_are_right(name: str) -> None:
    data, expected, mode, allowed = GOOD[name]
    rgb, found, kind = decode(data)
    assert rgb.dtype == np.uint8
    assert (rgb.shape, found) == (expected.shape, mode)
    assert kind in EXTENSIONS
    assert np.abs(rgb.astype(int) - expected).max() <= allowed


def test_pixels_are_those_of_dali() -> None:
    """Tolerance: 1 of 255, in 16-bit colour only."""
    from nvidia.dali import fn, pipeline_def, types

    files = [np.frombuffer(data, dtype=np.uint8) for data, *_ in GOOD.values()]

    @pipeline_def(batch_size=len(files), num_threads=1, device_id=None)  # type: ignore[untyped-decorator]
    def graph() -> Any:
        return fn.decoders.image(fn.external_source(source=lambda: files, batch=True), output_type=types.RGB)

    pipeline = graph()
    pipeline.build()
    (images,) = pipeline.run()
    for i, (name, (data, *_)) in enumerate(GOOD.items()):
        theirs, ours = np.asarray(images[i]).astype(int), decode(data)[0]
        assert theirs.shape == ours.shape, name
        assert np.abs(theirs - ours).max() <= ("16 bit" in name), name


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty", b"", "empty"),
        ("text", b"cell 7 is no image.\n", "not an image"),
        (".DS_Store", b"\0\0\0\1Bud1" + bytes(6000), "not an image"),
        ("zeros", bytes(5000), "not an image"),
        ("only a JPEG's first bytes", b"\xff\xd8\xff", "not an image"),
        ("only a PNG's first bytes", encode(RGB, "PNG")[:8], "not an image"),
        ("GIF", encode(RGB, "GIF"), "format"),
        ("PPM", encode(RGB, "PPM"), "format"),
        ("ICO", encode(RGB, "ICO"), "format"),
        ("TIFF of floats", encode(X.astype(np.float32) / 56, "TIFF"), "format"),
        ("TIFF of 32 bit", encode(X.astype(np.int32), "TIFF"), "format"),
        ("TIFF of grey and alpha", encode(Image.fromarray(np.dstack([GREY, ALPHA])), "TIFF"), "format"),
        ("TIFF of CIELAB", encode(Image.fromarray(RGB).convert("LAB"), "TIFF"), "format"),
        ("TIFF of bits", encode(BITS, "TIFF"), "format"),
        ("JPEG 2000 of grey and alpha", encode(Image.fromarray(np.dstack([GREY, ALPHA])), "JPEG2000"), "format"),
        ("junk between segments", GOOD["JPEG"][0].replace(b"\xff\xda", b"junk\xff\xda", 1), "undecodable"),
        ("no end", encode(RGB, "PNG")[:-12], "undecodable"),
        ("no pixels", png(RGB, 8, 2)[:33] + chunk(b"IEND", b""), "undecodable"),
        ("a short picture", png(RGB[:5], 8, 2, height=40), "undecodable"),
        ("WebP whose EXIF DALI does not find", with_exif(6, "WEBP", lossless=True), "undecodable"),
        ("WebP that announces EXIF in vain", announcing_exif(), "undecodable"),
    ],
)
def test_what_is_no_image_is_named(name: str, data: bytes, reason: str) -> None:
    with pytest.raises(UnusableImageError) as caught:
        decode(data)
    assert caught.value.reason == reason, caught.value.detail
    assert caught.value.detail
    assert "\n" not in caught.value.detail


@pytest.mark.parametrize("name", ["JPEG", "JPEG progressive", "PNG", "BMP", "TIFF LZW", "WebP", "JPEG 2000"])
def test_a_truncated_image_is_never_taken(name: str) -> None:
    data, noise = GOOD[name][0], random.Random(0)
    for size in [1, 2, 30, len(data) // 2, len(data) - 20, *(noise.randrange(1, len(data) - 20) for _ in range(60))]:
        with pytest.raises(UnusableImageError):
            decode(data[:size])


def test_any_flipped_bit_of_a_png_is_noticed() -> None:
    data = bytearray(encode(RGB[:12, :12], "PNG"))
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(UnusableImageError):
            decode(bytes(data))
        data[bit // 8] ^= 1 << bit % 8
    assert (decode(bytes(data))[0] == RGB[:12, :12]).all()


@pytest.mark.parametrize("name", ["JPEG", "JPEG progressive", "PNG palette", "BMP", "TIFF LZW", "WebP", "JPEG 2000"])
def test_flipped_bits_give_pixels_or_a_clear_no(name: str) -> None:
    whole, noise, answers = GOOD[name][0], random.Random(1), set()
    for _ in range(250):
        data = bytearray(whole)
        data[noise.randrange(min(700, len(data)))] ^= 1 << noise.randrange(8)
        try:
            rgb = decode(bytes(data))[0]
            assert rgb.dtype == np.uint8
            assert rgb.ndim == rgb.shape[2] == 3
            answers.add("pixels")
        except UnusableImageError as error:
            answers.add(error.reason)
    assert "undecodable" in answers or "not an image" in answers


BOMBS = {
    "PNG over our limit": png(np.zeros((1, 4), np.uint8), 8, 0, 10_001, 10_000),
    "PNG over PIL's limit": png(np.zeros((1, 4), np.uint8), 8, 0, 2**31 - 1, 2**31 - 1),
    "BMP": encode(RGB, "BMP")[:18] + struct.pack("<ii", 60_000, 60_000) + encode(RGB, "BMP")[26:],
    "TIFF": tiff16(COLOUR16).replace(struct.pack("<HHII", 256, 4, 1, 56), struct.pack("<HHII", 256, 4, 1, 2**30)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_without_unpacking_it(name: str, tmp_path: Path) -> None:
    """In a process of its own that may take 128 MB more."""
    (tmp_path / "bomb").write_bytes(BOMBS[name])
    code = (
        "import sys, resource\n"
        "from shards.images import UnusableImageError, decode\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, used + 2**27))\n"
        "try: decode(open(sys.argv[1], 'rb').read())\n"
        "except UnusableImageError as error: print(error.reason)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "bomb")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.stdout.strip() == "too large", done.stderr


def test_examined_images_know_themselves() -> None:
    jpeg, turned = GOOD["JPEG"][0], GOOD["PNG EXIF 6"][0]
    seen = examine(jpeg)
    assert (seen.width, seen.height, seen.mode, seen.format) == (56, 40, "RGB", "JPEG")
    assert seen.sha256 == hashlib.sha256(jpeg).hexdigest()
    assert seen.crc32 == zlib.crc32(jpeg)
    assert (examine(turned).width, examine(turned).height) == (40, 56)
    same = examine(encode(np.ascontiguousarray(SHOWN[6](RGB)), "BMP"))
    assert same.pixels_sha256 == examine(turned).pixels_sha256 != seen.pixels_sha256
    assert same.sha256 != examine(turned).sha256
    flat = [
        examine(encode(np.zeros(shape, np.uint8), "PNG")).pixels_sha256 for shape in ((4, 9, 3), (9, 4, 3), (6, 6, 3))
    ]
    assert len(set(flat)) == 3
