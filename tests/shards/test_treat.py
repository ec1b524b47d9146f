"""Treatment before packing: pixels kept where they must be, upright or tagged as asked, small, and without metadata."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from shards.containers import jpeg_segments, png_chunk
from shards.errors import BadInput
from shards.images import Examined, UnusableImageError, decode, examine
from shards.metadata import personal
from shards.strip import orientation
from shards.treat import Treatment, check, encoder, parameters, treat
from tests.shards.test_images import CMYK, GOOD, GREY, RGB, SHOWN, chunk, encode, with_exif

LOSSLESS = ("png", "webp-lossless")
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SECRET = b"Dr. Secret"
"""Stands in every kind of metadata here, and may stand nowhere after stripping."""


def full_exif(turned: int = 1) -> Image.Exif:
    """Return EXIF with a name, a place, a comment and an orientation."""
    exif = Image.Exif()
    exif[0x0112], exif[0x013B], exif[0x010E] = turned, SECRET.decode(), SECRET.decode()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + SECRET
    exif.get_ifd(0x8825)[0x02] = (35.0, 42.0, 1.0)
    return exif


def secretive_jpeg(turned: int = 1, picture: Image.Image | None = None, **options: Any) -> bytes:
    """Return a JPEG with all that a JPEG can carry: EXIF, XMP, ICC, IPTC, a comment, a thumbnail, bytes behind it."""
    options = {"quality": 95, "subsampling": 0, **options}
    data = encode(
        picture or Image.fromarray(RGB), "JPEG", exif=full_exif(turned), icc_profile=PROFILE + SECRET, **options
    )
    thumbnail = b"JFXX\0\x10" + SECRET
    iptc = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0f\x1c\x02\x50\0\x0a" + SECRET + b"\0"
    extra = [(0xE0, thumbnail), (0xED, iptc), (0xFE, SECRET), (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + SECRET)]
    head = b"".join(b"\xff" + bytes([m]) + struct.pack(">H", len(c) + 2) + c for m, c in extra)
    first = next(jpeg_segments(data))
    cut = first[2] if first[0] == 0xE0 else 2  # JFIF has to come first
    return data[:cut] + head + data[cut:] + SECRET


def secretive_png(turned: int = 1, **options: Any) -> bytes:
    """Return a PNG with texts, EXIF, a profile and a time, and bytes behind its end."""
    data = encode(RGB, "PNG", exif=full_exif(turned), icc_profile=PROFILE, **options)
    texts = chunk(b"tEXt", b"Author\0" + SECRET) + chunk(b"iTXt", b"Comment\0\0\0\0\0" + SECRET)
    texts += chunk(b"tIME", bytes([7, 230, 1, 2, 3, 4, 5])) + chunk(b"prVt", SECRET)
    return data[:33] + texts + data[33:] + SECRET


def secretive_webp(turned: int = 1, **options: Any) -> bytes:
    """Return a WebP with EXIF, XMP and a profile, of even chunks (DALI cannot read others)."""
    from shards.containers import webp_chunks, webp_file

    data = encode(RGB, "WEBP", exif=full_exif(turned), icc_profile=PROFILE, xmp=SECRET, **options)
    return webp_file(((data[a - 8 : a - 4], data[a:b]) for _, a, b in webp_chunks(data)), exif=True)


def bmp_with_profile() -> bytes:
    """Return a BMP with a header of version 5, which can carry an ICC profile behind the pixels."""
    rows = RGB[::-1, :, ::-1].tobytes()  # 56 pixels of 3 bytes need no padding
    head = struct.pack("<IiiHHIIiiII", 124, 56, 40, 1, 24, 0, len(rows), 0, 0, 0, 0)
    head += struct.pack("<16sI48xIIII", bytes(16), 0x4D424544, 4, 124 + len(rows), len(SECRET), 0)
    return b"BM" + struct.pack("<IHHI", 138 + len(rows) + len(SECRET), 0, 0, 138) + head + rows + SECRET


SECRETIVE = {
    "JPEG": secretive_jpeg(),
    "JPEG turned": secretive_jpeg(6),
    "JPEG progressive": secretive_jpeg(5, progressive=True),
    "JPEG grey": secretive_jpeg(8, Image.fromarray(GREY)),
    "JPEG CMYK": secretive_jpeg(3, CMYK),
    "PNG": secretive_png(),
    "PNG turned": secretive_png(7),
    "WebP": secretive_webp(quality=90),
    "WebP turned": secretive_webp(6, lossless=True),
    "PNG moving": secretive_png(save_all=True, append_images=[Image.fromarray(RGB[::-1])]),
    "BMP with a profile": bmp_with_profile(),
    "BMP with bytes behind it": encode(RGB, "BMP") + SECRET,
    "TIFF": encode(RGB, "TIFF", tiffinfo={315: SECRET.decode(), 270: SECRET.decode()}, icc_profile=PROFILE),
    "TIFF turned": encode(RGB, "TIFF", exif=full_exif(8)),
    "JPEG 2000": encode(RGB, "JPEG2000") + SECRET,
}


def through(data: bytes, how: Treatment) -> tuple[bytes, Examined]:
    """Check the treatment, treat, and see that what is said of the result is true."""
    check(how)
    written, seen = treat(data, examine(data), how)
    again = examine(written)
    assert (seen.sha256, seen.crc32, seen.pixels_sha256) == (again.sha256, again.crc32, again.pixels_sha256)
    assert (seen.mode, seen.format, seen.rgb.shape) == (again.mode, again.format, again.rgb.shape)
    assert treat(data, examine(data), how)[0] == written  # byte for byte
    return written, seen


@pytest.mark.parametrize("name", GOOD)
def test_written_again_without_loss_every_kind_of_image_keeps_its_pixels(name: str) -> None:
    data = GOOD[name][0]
    before = examine(data)
    for encode_ in LOSSLESS:
        for exif in ("apply", "keep"):
            _, seen = through(data, Treatment(encode_, exif=exif))
            assert seen.pixels_sha256 == before.pixels_sha256
            assert seen.format == {"png": "PNG", "webp-lossless": "WEBP"}[encode_]
    grey = (before.rgb == before.rgb[..., :1]).all()
    assert through(data, Treatment("png"))[1].mode == ("L" if grey else "RGB")


@pytest.mark.parametrize("name", GOOD)
def test_by_default_no_byte_changes(name: str) -> None:
    data = GOOD[name][0]
    for how in (Treatment(), Treatment(exif="keep")):
        assert treat(data, examine(data), how)[0] is data
        assert not how.changes


@pytest.mark.parametrize("name", [*GOOD, *SECRETIVE])
def test_stripping_leaves_pixels_and_no_metadata(name: str) -> None:
    data = SECRETIVE[name] if name in SECRETIVE else GOOD[name][0]
    before = examine(data)
    for exif in ("apply", "keep"):
        written, seen = through(data, Treatment(strip=True, exif=exif))
        assert seen.pixels_sha256 == before.pixels_sha256
        assert personal(written) == {}
        assert SECRET not in written
        with Image.open(io.BytesIO(written)) as image:
            assert "icc_profile" not in image.info
            assert set(image.getexif()) <= {0x0112}
        in_place = ("JPEG", "PNG", "WEBP")
        assert seen.format == (before.format if before.format in in_place else seen.format)
        assert through(written, Treatment(strip=True, exif=exif))[0] == written  # nothing is left to strip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"]),
    kind=st.sampled_from(["JPEG", "PNG", "BMP", "TIFF", "WEBP", "JPEG2000"]),
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    turned=st.sampled_from(list(SHOWN)),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_image_keeps_its_pixels(mode: str, kind: str, width: int, height: int, turned: int, seed: int) -> None:
    """Noise in every mode and format: stripped, and written again without loss, under every orientation."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    image = Image.fromarray(noise)
    image = image.quantize(16) if mode == "P" else image.convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 200 + 7)
    try:
        data = encode(image, kind, exif=full_exif(turned))
        before = examine(data)
    except (OSError, KeyError, ValueError):  # this format has no such mode, or the readers do not decode it
        assume(False)
    assert before.width * before.height == width * height
    for how in (Treatment(strip=True), *(Treatment(e, exif=x) for e in LOSSLESS for x in ("apply", "keep"))):
        written, seen = treat(data, before, how)
        assert seen.pixels_sha256 == before.pixels_sha256
        assert personal(written) == {}


def test_stripping_keeps_the_coded_pixels_of_a_jpeg() -> None:
    bare = encode(RGB, "JPEG", quality=95, subsampling=0)
    assert through(SECRETIVE["JPEG"], Treatment(strip=True))[0] == bare
    assert through(bare, Treatment(strip=True))[0] == bare
    turned = through(SECRETIVE["JPEG turned"], Treatment(strip=True))[0]
    assert len(turned) == len(bare) + 36
    assert orientation(turned) == 6


def test_stripping_keeps_a_plain_bmp_and_turns_other_formats_into_png() -> None:
    for name in ("BMP", "BMP grey", "BMP palette"):
        assert through(GOOD[name][0], Treatment(strip=True))[0] == GOOD[name][0]
    for name in ("TIFF", "TIFF turned", "JPEG 2000", "BMP with a profile", "BMP with bytes behind it"):
        assert through(SECRETIVE[name], Treatment(strip=True))[1].format == "PNG"
    assert orientation(through(SECRETIVE["TIFF turned"], Treatment(strip=True, exif="keep"))[0]) == 8
    assert orientation(through(SECRETIVE["TIFF turned"], Treatment(strip=True))[0]) == 1


def test_png_chunks_that_describe_the_samples_stay() -> None:
    gamma = png_chunk(b"gAMA", struct.pack(">I", 45455))
    clear = encode(RGB, "PNG", transparency=(0, 0, 0))
    data = clear[:33] + gamma + clear[33:]
    assert through(data, Treatment(strip=True))[0] == data


@pytest.mark.parametrize("turned", SHOWN)
@pytest.mark.parametrize("encode_", [*LOSSLESS, "jpeg:100"])
def test_orientation_is_applied_or_kept_and_the_picture_is_the_same(encode_: str, turned: int) -> None:
    data, upright = with_exif(turned, "PNG"), SHOWN[turned](RGB)
    applied, seen = through(data, Treatment(encode_))
    kept, again = through(data, Treatment(encode_, exif="keep"))
    assert (orientation(applied), orientation(kept)) == (1, turned)
    with Image.open(io.BytesIO(kept)) as image:
        assert image.size == (56, 40)  # as it was stored
    for rgb in (seen.rgb, again.rgb):
        assert rgb.shape == upright.shape
        assert np.abs(rgb.astype(int) - upright).max() <= (0 if encode_ in LOSSLESS else 4)


def test_dali_shows_the_same_picture_for_every_treatment() -> None:
    """With the decoder that trains: orientation applied, kept or alone after stripping; every encoding and format.

    Tolerance: 1 of 255, where a CMYK JPEG stays one.
    """
    from nvidia.dali import fn, pipeline_def, types

    hows = [Treatment(strip=True), *(Treatment(e, exif="keep") for e in (*LOSSLESS, "jpeg:90"))]
    sources = [data for name, (data, *_) in GOOD.items() if "EXIF" in name] + list(SECRETIVE.values())
    written = [treat(data, examine(data), how)[0] for data in sources for how in hows]
    files = [np.frombuffer(data, dtype=np.uint8) for data in written]

    @pipeline_def(batch_size=len(files), num_threads=1, device_id=None)  # type: ignore[untyped-decorator]
    def graph() -> Any:
        return fn.decoders.image(fn.external_source(source=lambda: files, batch=True), output_type=types.RGB)

    pipeline = graph()
    pipeline.build()
    (images,) = pipeline.run()
    for i, data in enumerate(written):
        theirs, (ours, mode, _) = np.asarray(images[i]).astype(int), decode(data)
        assert theirs.shape == ours.shape
        assert np.abs(theirs - ours).max() <= (mode == "CMYK")


@pytest.mark.parametrize(
    ("size", "limit", "wanted"),
    [((56, 40), 28, (28, 20)), ((40, 57), 19, (13, 19)), ((900, 1), 30, (30, 1)), ((7, 1), 1, (1, 1)),
     ((30, 20), 30, (30, 20)), ((30, 20), 31, (30, 20)), ((30, 20), 0, (30, 20))],
)  # fmt: skip
def test_the_longer_side_is_limited_and_nothing_enlarged(
    size: tuple[int, int], limit: int, wanted: tuple[int, int]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    _, seen = through(encode(noise, "PNG"), Treatment("png", limit))
    assert (seen.width, seen.height) == wanted
    if wanted == size:
        np.testing.assert_array_equal(seen.rgb, noise)


def test_making_smaller_does_not_alias() -> None:
    """Stripes of one pixel become grey, not stripes of another width."""
    stripes = np.zeros((90, 90, 3), np.uint8)
    stripes[:, ::2] = 255
    _, seen = through(encode(stripes, "PNG"), Treatment("png", 30))
    assert (np.abs(seen.rgb[:, 2:-2].astype(int) - 127) < 20).all()
    assert seen.mode == "L"


def test_jpeg_keeps_colour_at_full_resolution() -> None:
    red = np.zeros((40, 40, 3), np.uint8)
    red[:, 1::2, 0] = 255
    fine, _ = through(encode(red, "PNG"), Treatment("jpeg:95"))
    with Image.open(io.BytesIO(fine)) as image:
        assert [sampling[1:3] for sampling in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]
    worse, seen = through(encode(red, "PNG"), Treatment("jpeg:40"))
    assert len(worse) < len(fine)
    assert np.abs(seen.rgb.astype(int) - red).max() > np.abs(decode(fine)[0].astype(int) - red).max()


def test_a_profile_is_carried_over_only_where_it_still_tells_the_truth() -> None:
    def profile(data: bytes, how: Treatment) -> bytes | None:
        with Image.open(io.BytesIO(through(data, how)[0])) as image:
            return image.info.get("icc_profile")

    source = secretive_png()
    for name in (*LOSSLESS, "jpeg:90"):
        assert profile(source, Treatment(name)) == PROFILE
        assert profile(source, Treatment(name, strip=True)) is None
        assert personal(through(source, Treatment(name))[0]) == {}
    inks = encode(CMYK, "JPEG", icc_profile=PROFILE[:16] + b"CMYK" + PROFILE[20:])
    assert profile(inks, Treatment("png")) is None  # of other pixels than those that are written
    assert profile(source, Treatment("png", stain="reinhard")) is None  # of other colours
    assert profile(encode(GREY, "PNG", icc_profile=PROFILE), Treatment("png")) is None


@pytest.mark.parametrize(("encode_", "width"), [("webp-lossless", 17_000), ("jpeg:90", 66_000)])
def test_what_a_format_cannot_hold_is_named(encode_: str, width: int) -> None:
    data = encode(np.zeros((1, width, 3), np.uint8), "PNG")
    with pytest.raises(UnusableImageError) as caught:
        treat(data, examine(data), Treatment(encode_))
    assert caught.value.reason == "encoding"
    assert f"{width}x1" in caught.value.detail


def test_steps_come_in_the_order_that_is_told(drawn: Path) -> None:
    from shards.segment import nuclei
    from shards.stain import normalised

    data = min(drawn.rglob("*.jpg")).read_bytes()
    small = through(data, Treatment("png", 40))[1].rgb
    mask = nuclei(small, "lab-kmeans")[..., None]
    how = Treatment("png", 40, segment="lab-kmeans", stain="reinhard")
    np.testing.assert_array_equal(through(data, how)[1].rgb, np.where(mask, normalised(small, "reinhard"), 0))
    black = through(data, Treatment("png", 40, segment="lab-kmeans"))[1].rgb
    np.testing.assert_array_equal(black, np.where(mask, small, 0))
    assert 0.03 < mask.mean() < 0.7
    assert through(data, Treatment("jpeg:90", segment="lab-kmeans"))[1].format == "JPEG"


def test_an_image_in_which_nothing_is_stained_is_named() -> None:
    blank = encode(np.full((40, 40, 3), 240, np.uint8), "PNG")
    for how in (Treatment("png", segment="lab-kmeans"), Treatment("png", stain="macenko")):
        with pytest.raises(UnusableImageError) as caught:
            treat(blank, examine(blank), how)
        assert caught.value.reason in ("segmentation", "stain")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (Treatment("jpeg:0"), ["jpeg:Q", "1 to 100"]),
        (Treatment("jpeg:101"), ["'101'"]),
        (Treatment("jpeg:"), ["jpeg:95"]),
        (Treatment("jpeg"), ["jpeg:Q"]),
        (Treatment("jpeg:9.5"), ["'9.5'"]),
        (Treatment("jpg:90"), ["jpeg:Q"]),
        (Treatment("jpeg:Q"), ["'Q'"]),
        (Treatment("pgn"), ["'png'"]),
        (Treatment(""), ["webp-lossless"]),
        (Treatment("png", -1), ["--max-side"]),
        (Treatment("keep", 512), ["--max-side", "--encode png"]),
        (Treatment(segment="lab-kmeans"), ["--segment", "--encode png"]),
        (Treatment(stain="macenko"), ["--stain", "--encode png"]),
        (Treatment("png", segment="lab"), ["lab-kmeans"]),
        (Treatment("png", stain="mackenco"), ["macenko"]),
        (Treatment("png", exif="drop"), ["apply, keep"]),
    ],
)
def test_nonsense_is_refused_with_a_way_out(how: Treatment, words: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        check(how)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_what_decides_the_bytes_is_told() -> None:
    assert encoder(Treatment()) == ""
    assert parameters(Treatment()) == {}
    assert "libjpeg-turbo" in encoder(Treatment("jpeg:90"))
    assert "zlib-ng" in encoder(Treatment(strip=True))
    assert "webp" in encoder(Treatment("webp-lossless"))
    told = parameters(Treatment("png", segment="lab-kmeans", stain="macenko"))
    assert "scipy" in str(told["encoder"])
    assert told["segment"]["clusters"] == 4  # type: ignore[index]
    assert told["stain"]["stains"]  # type: ignore[index]


@pytest.mark.realdata
def test_real_images_keep_their_pixels(real_data: Path) -> None:
    """Every 60th of all4 and pbc8, of which most of the latter have their encoder's comment; with one put in."""
    paths = sorted(p for name in ("all4", "pbc8") for p in (real_data / name).rglob("*.jpg") if p.name[0] != ".")
    checked = 0
    for path in paths[::60]:
        data = path.read_bytes()
        try:
            seen = examine(data)
        except UnusableImageError:
            continue
        bare, again = treat(data, seen, Treatment(strip=True))
        assert again.pixels_sha256 == seen.pixels_sha256
        assert bare == data or (b"Intel(R) JPEG Library" in data and b"Intel(R)" not in bare)
        comment = b"\xff\xfe" + struct.pack(">H", 2 + len(SECRET)) + SECRET
        end = next(jpeg_segments(data))[2]
        assert treat(data[:end] + comment + data[end:], seen, Treatment(strip=True))[0] == bare
        assert treat(data, seen, Treatment("png"))[1].pixels_sha256 == seen.pixels_sha256
        checked += 1
    assert checked > 80
