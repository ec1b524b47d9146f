"""Images that are encoded again or stripped: done once, kept for a restart, and judged as they are packed."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.assemble import assemble
from shards.chunks import load
from shards.compose import personal_fields
from shards.errors import BadInput, EnvironmentFault
from shards.format import read_dataset
from shards.pack import examine_chunks, pack, prepared
from shards.seen import Images
from shards.verify import verify
from shards.work import alone
from tests.conftest import bloodcell
from tests.shards.packing import ONE, fill, hashes, noise, plain, rejects, rows
from tests.shards.test_pack_resume import kill, left_of, started, wait

ARTIST, MAKE = 0x013B, 0x010F


def packed_bytes(target: Path) -> dict[str, bytes]:
    """Return source -> bytes of the image in its tar."""
    shards = read_dataset(target).shards
    found = {}
    for row in rows(target):
        with open(target / shards[row["shard"]].file, "rb") as file:
            file.seek(row["offset"])
            found[row["source"]] = file.read(row["size"])
    return found


def signed(number: int, artist: str = "Dr Who") -> bytes:
    """Return a JPEG that says who took it."""
    exif = Image.Exif()
    exif[ARTIST], exif[MAKE] = artist, "Microscope"
    return noise(number, "JPEG", exif=exif)


def test_the_table_tells_of_the_bytes_that_are_packed(tmp_path: Path) -> None:
    images = fill(tmp_path / "in", plain(20) | {f"a/{i}.jpg": noise(900 + i, "JPEG", 40, 30) for i in range(5)})
    done = bloodcell("pack", images, tmp_path / "set", "--encode", "png", "--max-side", 16, "--workers", 2)
    assert done.code == 0, done.err
    assert "45 images in = 45 packed + 0 rejected" in done.out
    for row in rows(tmp_path / "set"):
        data = packed_bytes(tmp_path / "set")[row["source"]]
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.size) == ("PNG", (row["width"], row["height"]))
        assert max(image.size) == 16
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert len(data) == row["size"]
    info = read_dataset(tmp_path / "set")
    assert info.options["encode"] == "png"
    assert info.options["max_side"] == 16
    assert "Pillow" in info.extra["treatment"]["encoder"]
    assert verify(tmp_path / "set")["ok"]
    assert not list((tmp_path / "set").glob("*.bytes"))


@pytest.mark.parametrize(
    "options", [{"encode": "webp-lossless"}, {"strip": True}, {"encode": "png", "stain": "reinhard"}]
)
def test_treated_sets_are_the_same_with_any_number_of_workers(
    drawn: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    for workers in (1, 2):
        pack(drawn, tmp_path / str(workers), replace(ONE, workers=workers, **options))
    assert hashes(tmp_path / "1") == hashes(tmp_path / "2")


def test_duplicates_are_judged_after_treatment(tmp_path: Path) -> None:
    large, kept = noise(77, width=48, height=40), tmp_path / "kept"
    small = Image.open(io.BytesIO(large)).resize((24, 20), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "PNG")
    images = fill(tmp_path / "in", plain(20) | {"a/large.png": large, "a/small.png": file.getvalue()})
    pack(images, kept, ONE)
    assert rejects(kept) == {}
    pack(images, tmp_path / "set", replace(ONE, encode="png", max_side=24))
    assert rejects(tmp_path / "set") == {"a/small.png": ("exact duplicate", "same bytes as a/large.png")}


def test_what_cannot_be_treated_is_rejected(tmp_path: Path) -> None:
    white = io.BytesIO()
    Image.fromarray(np.full((40, 40, 3), 255, np.uint8)).save(white, "PNG")
    images = fill(tmp_path / "in", plain(12) | {"a/white.png": white.getvalue()})
    result = pack(images, tmp_path / "set", replace(ONE, encode="png", stain="macenko", allow_leaks=True))
    assert rejects(tmp_path / "set")["a/white.png"][0] == "stain"
    assert result["packed"] + result["rejected"] == result["images"] == 25


@pytest.mark.parametrize("options", [{"encode": "gif"}, {"encode": "jpeg:0"}, {"max_side": 9}, {"exif": "no"}])
def test_treatments_that_cannot_be_done_are_refused_before_any_work(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        pack(tmp_path / "no images", tmp_path / "set", replace(ONE, **options))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_while_encoding_nothing_is_encoded_twice(drawn: Path, tmp_path: Path, workers: int) -> None:
    flags = ["--encode", "png", "--shard-samples", 20, "--workers", workers]
    target, work = tmp_path / "set", tmp_path / "set.partial/work"
    with started("pack", drawn, target, *flags, log=tmp_path / "log") as process:
        wait(lambda: len(list(work.glob("chunk-*.arrow"))) >= 2 or process.poll() is not None)
        kill(process)
    before = {path.name: path.stat().st_ino for path in work.glob("chunk-*.arrow")}
    assert len(before) >= 2
    options = replace(ONE, encode="png", shard_samples=20)
    with prepared(drawn, target, options) as packing, alone(target) as work_:
        work_.begin(packing.identity)
        examine_chunks(packing.chunks, 1)
        assert {name: (work / name).stat().st_ino for name in before} == before
        assemble(packing, work_)
    pack(drawn, tmp_path / "undisturbed", options)
    assert hashes(target) == hashes(tmp_path / "undisturbed")
    assert left_of(target) == []


@pytest.mark.parametrize("damage", ["cut short", "gone", "flipped"])
def test_a_damaged_spool_is_made_again(tmp_path: Path, damage: str) -> None:
    images, target = fill(tmp_path / "in", plain(40)), tmp_path / "set"
    options = replace(ONE, encode="png")
    with prepared(images, target, options) as packing, alone(target) as work:
        work.begin(packing.identity)
        examine_chunks(packing.chunks, 1)
    spool = tmp_path / "set.partial/work/chunk-000000.bytes"
    data = spool.read_bytes()
    if damage == "gone":
        spool.unlink()
    else:
        spool.write_bytes(data[:-1] if damage == "cut short" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    if damage == "flipped":  # only reading it tells
        with pytest.raises(EnvironmentFault, match="the bytes of treated images are damaged"):
            pack(images, target, options)
    pack(images, target, options)
    pack(images, tmp_path / "fresh", options)
    assert hashes(target) == hashes(tmp_path / "fresh")


def test_personal_data_is_counted_and_told_and_strip_removes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = plain(20) | {f"b/{i}.jpg": signed(300 + i) for i in range(3)} | {"a/first.jpg": signed(310)}
    images = fill(tmp_path / "in", files)
    result = pack(images, tmp_path / "set", ONE)
    said = capsys.readouterr().err
    assert "4 images carry personal data in their metadata (EXIF Artist), first a/first.jpg: --strip removes it" in said
    assert "Dr Who" not in said
    extra = read_dataset(tmp_path / "set").extra
    assert extra["personal_metadata"] == {"EXIF Artist": 4}
    assert extra["personal_metadata_images"] == result["personal_metadata_images"] == 4
    assert "Dr Who" not in (tmp_path / "set/dataset.json").read_text()
    pack(images, tmp_path / "stripped", replace(ONE, strip=True))
    assert "personal data" not in capsys.readouterr().err
    extra = read_dataset(tmp_path / "stripped").extra
    assert (extra["personal_metadata"], extra["personal_metadata_images"]) == ({}, 0)
    assert not any(b"Dr Who" in data for data in packed_bytes(tmp_path / "stripped").values())
    pixels = [
        {name: np.asarray(Image.open(io.BytesIO(data))).tobytes() for name, data in packed_bytes(target).items()}
        for target in (tmp_path / "set", tmp_path / "stripped")
    ]
    assert pixels[0] == pixels[1]


def test_what_examination_found_is_read_back_as_it_was(tmp_path: Path) -> None:
    images = fill(tmp_path / "in", plain(5) | {"a/x.jpg": signed(1), "b/no.png": b"no"})
    with prepared(images, tmp_path / "set", replace(ONE, strip=True)) as packing, alone(tmp_path / "set") as work:
        work.begin(packing.identity)
        examine_chunks(packing.chunks, 1)
        seen = load(packing.chunks, packing.listing.items)
    assert [image.item.source for image in seen.images] == sorted([*plain(5), "a/x.jpg"])
    assert [(reject.item.source, reject.reason) for reject in seen.rejected] == [("b/no.png", "not an image")]
    assert len(seen.features) == 11
    assert np.cumsum([0, *(image.size for image in seen.images)])[:-1].tolist() == [im.offset for im in seen.images]
    assert personal_fields(Images.of([])) == {"personal_metadata": {}, "personal_metadata_images": 0}
