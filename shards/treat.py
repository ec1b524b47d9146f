"""What is done to an image before it is packed: kept, stripped, or made smaller, treated and written again."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import PIL
from PIL import Image, features

from shards.containers import webp_chunks, webp_file
from shards.errors import BadInput, nearest
from shards.images import Examined, UnusableImageError, examine
from shards.segment import SEGMENTATIONS, nuclei
from shards.segment import parameters as segment_parameters
from shards.stain import STAINS, normalised
from shards.stain import parameters as stain_parameters
from shards.strip import cut, minimal_exif, orientation

ENCODINGS = ("keep", "png", "webp-lossless", "jpeg:Q")

EXIF = ("apply", "keep")

PNG_LEVEL = 4
"""Of zlib: half the time of the usual 6 for 2 % more bytes on smears."""

WEBP_EFFORT = {"method": 2, "quality": 0}
"""A fifth of the time of the usual 4 and 80 for 9 % more bytes on smears, still a fifth fewer than PNG."""

STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How an upright picture is turned to be stored under each EXIF orientation (TIFF 6.0, tag 274)."""


@dataclass(frozen=True)
class Treatment:
    """What is done to every image. The default keeps every byte.

    With `encode` keep a file stays as it is, but for what `strip` cuts out of it. With any other `encode` each image
    is written again: decoded as the readers decode it (8-bit RGB; alpha dropped, palettes looked up, CMYK converted,
    16 bit scaled to 8), made smaller, segmented, stain-normalised, and encoded, in this order; grey pictures stay
    grey. (Nuclei are looked for in the picture's own colours; what lies around them still counts for the stain, and
    is made black at the end.) Such a file holds pixels, the ICC profile if it still describes them, and with `exif`
    keep the orientation; no other metadata is carried over.

    Attributes:
        encode: keep; png or webp-lossless (pixels unchanged); or jpeg:Q with a quality Q of 1 to 100 (4:4:4: the colour
            of a nucleus is not averaged over its edge).
        max_side: no image has a longer side, in pixels; larger ones are made smaller (Lanczos, aspect ratio kept, at
            least 1 pixel), smaller ones never larger. 0 leaves sizes as they are.
        exif: apply: images that are written again are upright and have no orientation tag. keep: their pixels are
            stored as they were, the tag beside them. The readers show the same picture either way, and for files that
            are not written again the tag always stays.
        strip: remove the ICC profile and all metadata; an orientation that is needed survives, alone in its EXIF.
            With `encode` keep JPEG, PNG, WebP and BMP keep their coded pixels; of other formats (TIFF, JPEG 2000) the
            metadata cannot be cut out, they become PNG files of the same pixels.
        segment: "lab-kmeans" makes all but stained nuclei black (shards/segment.py); "" does not.
        stain: "macenko" or "reinhard" normalises the stain (shards/stain.py); "" does not.
    """

    encode: str = "keep"
    max_side: int = 0
    exif: str = "apply"
    strip: bool = False
    segment: str = ""
    stain: str = ""

    @property
    def changes(self) -> bool:
        """Whether the bytes of an image may change."""
        return self.encode != "keep" or self.strip


def check(how: Treatment) -> None:
    """Raise BadInput for a treatment that cannot be done."""
    name, _, quality = how.encode.partition(":")
    if name == "jpeg":
        if quality not in map(str, range(1, 101)):
            raise BadInput(f"no JPEG quality {quality!r}", "--encode", "give jpeg:Q with Q from 1 to 100, as jpeg:95")
    else:
        _check_name("encoding", how.encode, "--encode", ENCODINGS[:-1], shown=ENCODINGS)
    _check_name("EXIF treatment", how.exif, "--exif", EXIF)
    if how.segment:
        _check_name("segmentation", how.segment, "--segment", SEGMENTATIONS)
    if how.stain:
        _check_name("stain normalisation", how.stain, "--stain", STAINS)
    if how.max_side < 0:
        raise BadInput(f"a longest side of {how.max_side} pixels", "--max-side", "give 1 or more, or 0 for any size")
    changing = {"--max-side": how.max_side, "--segment": how.segment, "--stain": how.stain}
    for flag in (flag for flag, wanted in changing.items() if wanted and how.encode == "keep"):
        raise BadInput("other pixels have to be encoded again", flag, "give --encode png (or jpeg:95) with it")


def _check_name(what: str, name: str, flag: str, known: tuple[str, ...], shown: tuple[str, ...] = ()) -> None:
    if name not in known:
        listed = f"choose from {', '.join(shown or known)}"
        raise BadInput(f"no {what} {name!r}", flag, nearest(name, list(shown or known)) or listed)


def encoder(how: Treatment) -> str:
    """Return the libraries and versions that decide the bytes of treated images, for dataset.json; "" for none."""
    if not how.changes:
        return ""
    codec = {"jpeg": "libjpeg_turbo", "webp-lossless": "webp"}.get(how.encode.partition(":")[0], "zlib_ng")
    used = [f"Pillow {PIL.__version__}", f"{codec.replace('_', '-')} {features.version(codec)}"]
    if how.segment or how.stain:
        used.append(f"numpy {np.__version__}")
    if how.segment:
        used.append(f"scipy {version('scipy')}")
    return ", ".join(used)


def parameters(how: Treatment) -> dict[str, object]:
    """Return all that decides the bytes of treated images, for dataset.json; {} where they are kept."""
    if not how.changes:
        return {}
    steps: dict[str, object] = {"encoder": encoder(how)}
    if how.segment:
        steps["segment"] = {"method": how.segment, **segment_parameters()}
    if how.stain:
        steps["stain"] = {"method": how.stain, **stain_parameters(how.stain)}
    return steps


def treat(data: bytes, seen: Examined, how: Treatment) -> tuple[bytes, Examined]:
    """Return what is packed of an image: its bytes and what is seen in them.

    Args:
        data: the image as it was found.
        seen: what `examine(data)` gave.
        how: a treatment that `check` has passed.

    Raises:
        UnusableImageError: nothing is stained (reasons "stain", "segmentation"), or the format cannot hold the image
            (reason "encoding").
    """
    if how.encode == "keep":
        return _stripped(data, seen, how) if how.strip else (data, seen)
    rgb = _shrunk(seen.rgb, how.max_side)
    mask = nuclei(rgb, how.segment) if how.segment else None  # in its own colours: others change what stands out
    if how.stain:
        rgb = normalised(rgb, how.stain)
    if mask is not None:
        rgb = np.where(mask[..., None], rgb, np.uint8(0))
    return _written(rgb, data, how, how.encode)


def _stripped(data: bytes, seen: Examined, how: Treatment) -> tuple[bytes, Examined]:
    bare = cut(data, seen.format)
    if bare == data:
        return data, seen
    if bare:
        again = examine(bare)
        if again.pixels_sha256 == seen.pixels_sha256:
            return bare, again
    return _written(seen.rgb, data, how, "png")


def _written(rgb: np.ndarray, data: bytes, how: Treatment, encode: str) -> tuple[bytes, Examined]:
    """Encode upright pixels; `data` is the file that they came from, whose orientation or profile may be kept."""
    image = Image.fromarray(_plain(rgb))
    turned = orientation(data) if how.exif == "keep" else 1
    exif = b""
    if turned != 1:
        image, exif = image.transpose(STORED[turned]), b"Exif\0\0" + minimal_exif(turned)
    written = _encoded(image, encode, exif, b"" if how.strip or how.stain else _profile(data, image.mode))
    return written, examine(written)


def _encoded(image: Image.Image, encode: str, exif: bytes, profile: bytes) -> bytes:
    file = io.BytesIO()
    name, _, quality = encode.partition(":")
    try:
        if name == "jpeg":
            image.save(file, "JPEG", quality=int(quality), subsampling=0, optimize=True, exif=exif, icc_profile=profile)
        elif name == "png":
            image.save(file, "PNG", compress_level=PNG_LEVEL, exif=exif or None, icc_profile=profile or None)
        else:
            image.save(file, "WEBP", lossless=True, exif=exif, icc_profile=profile, **WEBP_EFFORT)
    except (OSError, ValueError) as error:
        size = f"{image.width}x{image.height} pixels"
        raise UnusableImageError("encoding", f"{encode} of {size}: {error}".replace("\n", " ")) from error
    written = file.getvalue()
    if name == "webp-lossless" and exif:
        written = webp_file(((name, written[start:end]) for name, start, end in webp_chunks(written)), exif=True)
    return written


def _profile(data: bytes, mode: str) -> bytes:
    """Return the ICC profile of a file if it describes pixels of this mode (ICC.1, header field 'colour space')."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        profile = Image.open(io.BytesIO(data)).info.get("icc_profile") or b""
    return profile if profile[16:20] == {"RGB": b"RGB ", "L": b"GRAY"}[mode] else b""


def _plain(rgb: np.ndarray) -> np.ndarray:
    """Return one channel where all three are the same."""
    grey = rgb[..., 0]
    same = np.array_equal(grey, rgb[..., 1]) and np.array_equal(grey, rgb[..., 2])
    return np.ascontiguousarray(grey) if same else rgb


def _shrunk(rgb: np.ndarray, max_side: int) -> np.ndarray:
    longer = max(rgb.shape[:2])
    if not max_side or longer <= max_side:
        return rgb
    height, width = (max(1, (2 * side * max_side + longer) // (2 * longer)) for side in rgb.shape[:2])
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.LANCZOS))
