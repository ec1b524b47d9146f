"""What is planted into drawn sets on request: copies, foreign pictures, broken files, odd formats, marks, blur."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Pixels = NDArray[np.uint8]

TURNS = {
    "rotated": Image.Transpose.ROTATE_270,
    "flipped": Image.Transpose.FLIP_LEFT_RIGHT,
    "upside down": Image.Transpose.FLIP_TOP_BOTTOM,
    "rotated by 180": Image.Transpose.ROTATE_180,
    "rotated by 270": Image.Transpose.ROTATE_90,
    "transposed": Image.Transpose.TRANSPOSE,
    "transversed": Image.Transpose.TRANSVERSE,
}
"""The orientations of the square but the upright one."""

NEAR_DUPLICATES = ("rotated", "flipped", "re-encoded", "cropped", *list(TURNS)[2:])
"""Ways to copy an image without copying its bytes."""

CORRUPT = ("truncated", "text", "empty")
"""Ways to break a JPEG file: cut off, replaced by text, without a byte."""

BIT_FLIPS = {"png": ".png", "jpeg": ".jpg"}
"""Formats in which one bit of the pixels' bytes is inverted: a PNG knows it by its checksum, a JPEG has none."""

SPOILT = ("dark", "bright", "saturated", "tiny", "odd_aspect", "other_stain")
"""Ways in which an image of cells differs from the others of its set; see `spoilt`."""

OUTLIERS = ("landscape", "stripes", "page", "rings")
"""Subjects of foreign pictures."""

ODD_FORMATS = {
    "bmp": ".bmp",
    "png": ".png",
    "grey": ".jpg",
    "cmyk": ".jpg",
    "16-bit": ".png",
    "palette": ".png",
    "exif": ".jpg",
}
"""Formats other than plain JPEG, and their file suffix: grey and 16-bit have one channel, exif is stored lying."""

EXIF_ORIENTATION = 0x0112
LYING = 6
"""EXIF orientation: to be turned by 90 degrees clockwise for display."""

MARK_COLOURS = ((200, 30, 30), (20, 130, 40), (30, 60, 200), (20, 20, 20), (210, 140, 0), (130, 0, 130))


def encode_jpeg(pixels: Pixels | Image.Image, quality: int = 90, **options: object) -> bytes:
    """Return a baseline JPEG of uint8 [height, width, 3] pixels or of an image in any mode that JPEG knows."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def near_duplicate(content: bytes, how: str) -> bytes:
    """Return a JPEG that shows the same as the JPEG `content`, changed in one of the ways NEAR_DUPLICATES."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    if how in TURNS:
        return encode_jpeg(image.transpose(TURNS[how]))
    if how == "re-encoded":
        return encode_jpeg(image, quality=70)
    margin = max(1, round(0.03 * image.width))
    box = (margin, margin, image.width - margin, image.height - margin)
    return encode_jpeg(image.resize(image.size, Image.Resampling.BICUBIC, box))


def corrupt(content: bytes, how: str, name: str) -> bytes:
    """Return the JPEG `content` broken in one of the ways CORRUPT; the text names the file."""
    if how == "truncated":
        return content[: len(content) // 2]
    return f"{name} is no image.\n".encode() if how == "text" else b""


def bit_flipped(pixels: Pixels, how: str, rng: np.random.Generator) -> bytes:
    """Return uint8 [size, size, 3] pixels as one of BIT_FLIPS with one bit inverted in the middle half of the file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    content = bytearray(buffer.getvalue() if how == "png" else encode_jpeg(pixels))
    content[int(rng.integers(len(content) // 4, 3 * len(content) // 4))] ^= 1 << int(rng.integers(8))
    return bytes(content)


def odd_format(pixels: Pixels, how: str) -> bytes:
    """Return uint8 [size, size, 3] pixels encoded in one of the ODD_FORMATS."""
    image = Image.fromarray(pixels)
    if how == "grey":
        return encode_jpeg(image.convert("L"))
    if how == "cmyk":
        return encode_jpeg(image.convert("CMYK"))
    if how == "exif":
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = LYING
        return encode_jpeg(image.transpose(Image.Transpose.ROTATE_90), exif=exif)
    if how == "16-bit":
        image = Image.fromarray(np.asarray(image.convert("L"), dtype=np.uint16) * np.uint16(257))
    elif how == "palette":
        image = image.quantize(128)
    buffer = io.BytesIO()
    image.save(buffer, "BMP" if how == "bmp" else "PNG")
    return buffer.getvalue()


def blurred(pixels: Pixels) -> Pixels:
    """Return the picture far out of focus."""
    radius = max(1.5, 0.035 * pixels.shape[0])
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def spoilt(pixels: Pixels, how: str) -> Pixels:
    """Return the picture changed in one of the ways SPOILT; tiny and odd_aspect change its size."""
    height, width = pixels.shape[:2]
    if how == "dark":
        return (pixels * 0.35).astype(np.uint8)
    if how == "bright":
        return (255 - (255 - pixels.astype(np.float32)) * 0.15).astype(np.uint8)
    if how == "tiny":
        return np.asarray(Image.fromarray(pixels).resize((width // 5, height // 5), Image.Resampling.BOX))
    if how == "odd_aspect":
        return np.ascontiguousarray(pixels[height // 4 : height - height // 4])
    hsv = np.asarray(Image.fromarray(pixels).convert("HSV")).astype(np.int64)
    if how == "saturated":
        hsv[..., 1] = 255 - (255 - hsv[..., 1]) // 3
    else:  # from violet to brown, as if another dye had been used
        hsv[..., 0] = (hsv[..., 0] + 64) % 256
        hsv[..., 1] = np.minimum(hsv[..., 1] * 3 // 2, 255)
    return np.asarray(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB"))


def mark_corner(pixels: Pixels, label: int) -> Pixels:
    """Return the picture with a small label in the lower right corner, whose colour gives the class away."""
    size = pixels.shape[0]
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    left, top, unit = round(0.8 * size), round(0.87 * size), max(1, size // 64)
    right, bottom = size - 1 - unit, size - 1 - unit
    draw.rectangle((left, top, right, bottom), fill=(250, 250, 250))
    bar = (left + unit, top + unit, right - unit, bottom - unit)
    draw.rectangle(bar, fill=MARK_COLOURS[label % len(MARK_COLOURS)])
    return np.asarray(image)


def outlier(rng: np.random.Generator, how: str, size: int) -> Pixels:
    """Draw a picture that shows no cells: one of OUTLIERS, uint8 [size, size, 3]."""
    line = np.linspace(0, 1, size, dtype=np.float32)
    x, y = line[None, :, None], line[:, None, None]
    one, other = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    if how == "landscape":
        wave, phase = rng.uniform((3, 12), (9, 30)), rng.uniform(0, 6, 2)
        hills = rng.uniform(0.35, 0.65) + 0.12 * np.sin(x * wave[0] + phase[0]) + 0.05 * np.sin(x * wave[1] + phase[1])
        sky = (1 - y) * np.array((90, 150, 230)) + y * np.array((250, 220, 190))
        picture = np.where(y > hills, rng.uniform((40, 90, 30), (120, 140, 80)) * (1.3 - 0.6 * y), sky)
    elif how == "stripes":
        angle, width = rng.uniform(0, np.pi), rng.uniform(15, 60)
        share = np.sin((x * np.cos(angle) + y * np.sin(angle)) * width) > 0
        picture = np.where(share, one, other)
    elif how == "rings":
        centre = rng.uniform(0.2, 0.8, 2)
        share = np.sin(np.hypot(x - centre[0], y - centre[1]) * rng.uniform(20, 70)) * 0.5 + 0.5
        picture = share * one + (1 - share) * other
    else:
        picture = np.full((size, size, 3), 245.0)
        lines = (np.arange(size) // max(2, size // 40)) % 2 == 1
        words = rng.random((size, max(4, size // 6))) < 0.7
        words = np.repeat(words[:: max(2, size // 40)], max(2, size // 40), axis=0)[:size]
        words = np.repeat(words, -(-size // words.shape[1]), axis=1)[:, :size]
        picture[lines[:, None] & words] = 30
    return np.clip(picture + rng.normal(0, 2, (size, size, 3)), 0, 255).astype(np.uint8)
