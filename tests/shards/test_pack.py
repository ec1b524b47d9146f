"""Packing: the same bytes anywhere, every image accounted for, nothing shared between parts, nothing half-written."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from shards.clean import clean
from shards.divide import KEY_LENGTH, make_keys
from shards.errors import BadInput, EnvironmentFault
from shards.format import DatasetInfo, read_dataset, read_samples
from shards.pack import PackOptions, pack
from shards.sources import list_folder
from shards.synth import SynthOptions, synthesise
from shards.verify import verify
from shards.write import Sample, ShardPlan, write_shard
from tests.conftest import bloodcell, command

ROOT = Path(__file__).resolve().parents[2]
ONE = PackOptions(workers=1)


def noise(number: int, kind: str = "PNG", width: int = 24, height: int = 20, **options: Any) -> bytes:
    """Return an encoded picture of noise, another for each number: no two of them are near-duplicates."""
    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def fill(root: Path, files: dict[str, bytes]) -> Path:
    """Write files below `root`."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def plain(count: int = 20, classes: str = "ab") -> dict[str, bytes]:
    """Return `count` files of noise for each class."""
    return {f"{name}/{i:03d}.png": noise(1000 * place + i) for place, name in enumerate(classes) for i in range(count)}


def hashes(folder: Path, pattern: str = "*") -> dict[str, str]:
    """Return file name -> sha256 of what lies in a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(pattern))}


def rejects(folder: Path) -> dict[str, tuple[str, str]]:
    """Return source -> (reason, detail) of rejected.csv."""
    with open(folder / "rejected.csv", newline="", encoding="utf-8") as file:
        return {row["source"]: (row["reason"], row["detail"]) for row in csv.DictReader(file)}


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the sample table of a set."""
    found: list[dict[str, Any]] = read_samples(folder).to_pylist()
    return found


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn images with every defect that can be planted, and truth.csv about them."""
    folder = tmp_path_factory.mktemp("messy") / "images"
    options = SynthOptions(
        images=100,
        size=48,
        patients=20,
        seed=3,
        exact_duplicates=6,
        near_duplicates=12,
        contradictions=3,
        outliers=4,
        blurred=3,
        corrupt=6,
        odd_formats=14,
    )
    synthesise(folder, options)
    return folder


@pytest.fixture(scope="module")
def packed(messy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The messy folder packed by one process, in several shards for each part."""
    target = tmp_path_factory.mktemp("packed") / "set"
    pack(messy, target, replace(ONE, shard_samples=30))
    return target


@pytest.mark.parametrize("workers", [2, 3])
def test_every_file_is_the_same_with_any_number_of_workers_and_any_listing_order(
    messy: Path, packed: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted((path for path in messy.rglob("*") if path.is_file()), reverse=workers == 2)
    for path in files:
        copy = tmp_path / "elsewhere" / "images" / path.relative_to(messy)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
        os.utime(copy, (workers, workers))
    monkeypatch.setenv("PYTHONHASHSEED", str(workers))
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    target = tmp_path / "another_name"
    options = ["--shard-samples", 30, "--workers", workers]
    done = bloodcell("pack", "elsewhere/images", target, *options, cwd=tmp_path)
    assert done.code == 0, done.err
    expected = hashes(packed)
    assert {"dataset.json", "samples.parquet", "samples.npy", "rejected.csv", "report.html"} < set(expected)
    assert sum(name.endswith(".tar") for name in expected) >= 5
    assert hashes(target) == expected


def test_another_folder_name_changes_no_shard_and_another_seed_changes_the_order(
    messy: Path, packed: Path, tmp_path: Path
) -> None:
    shutil.copytree(messy, tmp_path / "renamed")
    pack(tmp_path / "renamed", tmp_path / "same", replace(ONE, shard_samples=30))
    for pattern in ("*.tar", "*.idx", "samples.*", "rejected.csv"):
        assert hashes(tmp_path / "same", pattern) == hashes(packed, pattern)
    pack(messy, tmp_path / "other", replace(ONE, shard_samples=30, seed=1))
    first, second = ({row["key"]: place for place, row in enumerate(rows(s))} for s in (packed, tmp_path / "other"))
    assert first.keys() == second.keys()
    parts = [{row["key"]: row["split"] for row in rows(folder)} for folder in (packed, tmp_path / "other")]
    both = [key for key in first if parts[0][key] == parts[1][key] == "train"]
    assert both != sorted(both)
    assert both != sorted(both, key=second.__getitem__)
    assert read_dataset(packed).fingerprint != read_dataset(tmp_path / "other").fingerprint


def test_images_in_are_packed_or_rejected(messy: Path, tmp_path: Path) -> None:
    done = bloodcell("pack", messy, tmp_path / "set", "--workers", 1)
    assert done.code == 0, done.err
    found = re.search(r"^(\d+) images in = (\d+) packed \+ (\d+) rejected$", done.out, re.MULTILINE)
    assert found
    images, kept, left = map(int, found.groups())
    assert images == sum(path.suffix in (".jpg", ".png", ".bmp") for path in messy.rglob("*")) == kept + left
    sources = [row["source"] for row in rows(tmp_path / "set")]
    assert len(sources) == kept
    assert len(rejects(tmp_path / "set")) == left
    assert not set(sources) & set(rejects(tmp_path / "set"))


def test_what_was_planted_is_left_out_or_kept_together(messy: Path, packed: Path) -> None:
    with open(messy / "truth.csv", newline="", encoding="utf-8") as file:
        truth = {row["path"]: row for row in csv.DictReader(file)}
    left, kept = rejects(packed), {row["source"]: row for row in rows(packed)}
    for path, row in truth.items():
        pair = {path, row["of"]}
        if row["defect"] == "corrupt":
            assert left[path][0] in ("empty", "not an image", "undecodable")
        elif row["defect"] == "contradiction":
            assert {left[name][0] for name in pair} == {"contradicting label"}
        elif row["defect"] == "exact_duplicate":
            gone = pair & left.keys()
            assert gone
            assert all(left[name][0] in ("exact duplicate", "contradicting label") for name in gone)
        elif row["defect"] == "near_duplicate" and pair <= kept.keys():
            assert len({kept[name]["group"] for name in pair}) == 1, pair
            assert len({kept[name]["split"] for name in pair}) == 1, pair
            assert kept[path]["group"].startswith("near:")
        elif row["defect"] not in ("near_duplicate",):
            assert path in kept or left[path][0] == "contradicting label" or row["group"] in _copied(truth)
    assert sum(row["defect"] == "near_duplicate" and row["path"] in kept for row in truth.values()) >= 10


def _copied(truth: dict[str, dict[str, str]]) -> set[str]:
    return {row["group"] for row in truth.values() if row["of"]}


def test_rejects_are_named_with_their_reason(tmp_path: Path) -> None:
    files = plain()
    twin, both = noise(1), noise(2)
    pixels = Image.open(io.BytesIO(noise(3)))
    bmp = io.BytesIO()
    pixels.save(bmp, "BMP")
    files |= {"a/dup2.png": twin, "a/dup1.png": twin, "a/x/dup3.png": twin}
    files |= {"a/two.png": both, "b/one.png": both}
    files |= {"a/p.bmp": bmp.getvalue(), "a/p.png": noise(3)}
    files |= {"b/.DS_1.jpg": b"\0\0\0\1Bud1" + bytes(100), "b/zero.png": b"", "b/half.png": noise(9)[:-300]}
    files |= {"b/anim.GIF": noise(10, "GIF"), "b/gif.jpg": noise(11, "GIF"), "b/note.txt": b"no image"}
    for name in ("a/002.png", "a/003.png", "a/001.png", "a/009.png"):
        del files[name]  # the same pictures
    fill(tmp_path / "in", files)
    os.mkfifo(tmp_path / "in/b/pipe.jpg")
    (tmp_path / "in/b/loop.jpg").symlink_to("loop.jpg")
    result = pack(tmp_path / "in", tmp_path / "set", ONE)
    left = rejects(tmp_path / "set")
    assert {name: reason for name, (reason, _) in left.items()} == {
        "a/dup2.png": "exact duplicate",
        "a/x/dup3.png": "exact duplicate",
        "a/two.png": "contradicting label",
        "b/one.png": "contradicting label",
        "a/p.png": "exact duplicate",
        "b/.DS_1.jpg": "not an image",
        "b/zero.png": "empty",
        "b/half.png": "undecodable",
        "b/anim.GIF": "format",
        "b/gif.jpg": "format",
        "b/pipe.jpg": "unreadable",
        "b/loop.jpg": "unreadable",
    }
    assert left["a/dup2.png"][1] == "same bytes as a/dup1.png"
    assert left["a/p.png"][1] == "same pixels as a/p.bmp"
    assert "a/two.png" in left["b/one.png"][1]
    assert (result["images"], result["packed"], result["rejected"]) == (len(files) + 1, len(files) + 1 - 12, 12)
    assert list(left) == sorted(left)


def test_patients_that_share_an_image_become_one_group(tmp_path: Path) -> None:
    files = plain(30)
    shared = files["a/000.png"]
    files |= {"a/100.png": shared, "b/100.png": files["b/001.png"]}
    fill(tmp_path / "in", files)
    lines = ["path,class,patient"]
    for name in files:
        number = int(name[2:5])
        patient = {"a/100.png": "p9", "b/100.png": "p007"}.get(name, f"p{number % 9}" if name[0] == "a" else "")
        lines.append(f"{name},{name[0]},{patient}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    result = pack(
        tmp_path / "in", tmp_path / "set", replace(ONE, table=str(tmp_path / "t.csv"), group_column="patient")
    )
    table = {row["source"]: row for row in rows(tmp_path / "set")}
    assert {table[name]["group"] for name in table if name[0] == "a" and int(name[2:5]) % 9 == 0} == {"p0+p9"}
    assert table["a/001.png"]["group"] == "p1"
    assert result["duplicates"]["joined_groups"] == 2
    parts: dict[str, set[str]] = {}
    for row in table.values():
        parts.setdefault(row["group"] or row["key"], set()).add(row["split"])
    assert {len(found) for found in parts.values()} == {1}


def test_patients_never_cross_parts(messy: Path, tmp_path: Path) -> None:
    options = replace(ONE, table=str(messy / "truth.csv"), group_column="patient", split="50/25/25")
    pack(messy, tmp_path / "set", options)
    with open(messy / "truth.csv", newline="", encoding="utf-8") as file:
        patient = {row["path"]: row["patient"] for row in csv.DictReader(file)}
    places: dict[str, set[str]] = {}
    for row in rows(tmp_path / "set"):
        places.setdefault(patient[row["source"]], set()).add(row["split"])
        assert patient[row["source"]] in row["group"].split("+")
    assert {len(parts) for parts in places.values()} == {1}
    assert {part for parts in places.values() for part in parts} == {"train", "val", "test"}


def test_numbers_in_a_table_stay_text(tmp_path: Path) -> None:
    fill(tmp_path / "in", plain(30))
    lines = [f"{n},{'01' if n[0] == 'a' else '1'},{'7' if int(n[2:5]) < 9 else '007'}{n[4]}" for n in plain(30)]
    (tmp_path / "t.tsv").write_text("\n".join(["path,label,slide", *lines]).replace(",", "\t") + "\n")
    pack(tmp_path / "in", tmp_path / "set", replace(ONE, table=str(tmp_path / "t.tsv")))
    assert read_dataset(tmp_path / "set").classes == ["01", "1"]
    assert {"71", "0071"} <= {row["group"] for row in rows(tmp_path / "set")}


AWKWARD = (
    "a/x.png",
    "a/x.bmp",
    "a/X.png",
    "a/x y.png",
    "a/x-y.png",
    "a/x_y.png",
    "a/ünï çødé.png",
    "a/血.png",
    "a/白.png",
    "a/line\nbreak.png",
    "a/car\rriage.png",
    'a/quote".png',
    "a/,;.png",
    "a/.hidden.png",
    "a/...png",
    "a/dots.in.name.png",
    "a/" + "long" * 50 + "1.png",
    "a/" + "long" * 50 + "2.png",
    "a/deep/er/x.png",
    "a/deep_er_x.png",
    "a/__.png",
    "b/b.png",
)


def test_keys_are_plain_and_unique_whatever_the_names(tmp_path: Path) -> None:
    files = {name: noise(i, "BMP" if name.endswith("bmp") else "PNG") for i, name in enumerate(AWKWARD)}
    fill(tmp_path / "in", files | {f"b/{i}.png": noise(100 + i) for i in range(5)})
    (tmp_path / "in/a" / os.fsdecode(b"latin\xe9.png")).write_bytes(noise(50))
    (tmp_path / "in/a" / os.fsdecode(b"empty\xff.png")).write_bytes(b"")
    result = pack(tmp_path / "in", tmp_path / "set", ONE)
    table = rows(tmp_path / "set")
    keys = [row["key"] for row in table]
    assert (result["packed"], result["rejected"]) == (len(AWKWARD) + 6, 1)
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch("[a-z0-9_]+", key) and len(key) <= KEY_LENGTH + 17 for key in keys)
    assert {row["source"] for row in table} >= {*AWKWARD, "a/latin\\xe9.png"}
    assert set(rejects(tmp_path / "set")) == {"a/empty\\xff.png"}
    assert next(row["key"] for row in table if row["source"] == "a/dots.in.name.png") == "a_dots_in_name"
    assert verify(tmp_path / "set")["ok"]


def test_a_key_depends_on_its_path_unless_paths_collide() -> None:
    assert make_keys(["a/b.png", "a/c.png"]) == ["a_b", "a_c"]
    clashing = make_keys(["a/b.png", "a/b.jpg", "a/B.png", "a_b.png"])
    assert len(set(clashing)) == 4
    assert all(re.fullmatch("a_b_[0-9a-f]{16}", key) for key in clashing)
    assert make_keys(["a/b.jpg", "a_b.png", "a/b.png"]) == [clashing[1], clashing[3], clashing[0]]


def splits(info: DatasetInfo, table: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Return split -> keys."""
    return {
        name: {table[i]["key"] for first, last in info.ranges(name) for i in range(first, last)} for name in info.splits
    }


def test_folds_share_nothing_and_test_each_sample_once(tmp_path: Path) -> None:
    fill(tmp_path / "in", plain(25))
    pack(tmp_path / "in", tmp_path / "set", replace(ONE, folds=5))
    info, table = read_dataset(tmp_path / "set"), rows(tmp_path / "set")
    found = splits(info, table)
    assert sorted(found) == sorted(f"fold{k}/{part}" for k in range(5) for part in ("train", "val", "test"))
    everything = {row["key"] for row in table}
    for k in range(5):
        train, val, test = (found[f"fold{k}/{part}"] for part in ("train", "val", "test"))
        assert len(train) + len(val) + len(test) == len(everything) == 50
        assert train | val | test == everything
        assert {row["class"] for row in table if row["key"] in test} == {"a", "b"}
    assert Counter(key for k in range(5) for key in found[f"fold{k}/test"]) == Counter(everything)
    assert Counter(key for k in range(5) for key in found[f"fold{k}/val"]) == Counter(everything)
    assert verify(tmp_path / "set")["ok"]


def test_everything_can_be_one_part(tmp_path: Path) -> None:
    fill(tmp_path / "in", plain(3))
    pack(tmp_path / "in", tmp_path / "set", replace(ONE, split="0/0/100"))
    assert list(read_dataset(tmp_path / "set").splits) == ["test"]
    assert read_dataset(tmp_path / "set").count("test") == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 2}, "2 folds leave no part for validation"),
        ({"folds": -1}, "no part for validation"),
        ({"split": "nan/50/50"}, "not a split"),
        ({"split": "inf/0/0"}, "not a split"),
        ({"workers": -1}, "-1 processes"),
        ({"split": "80/10/10", "group_pattern": r"^([ab])/"}, "class 'a' has 20 images in 1 groups, too few"),
    ],
)
def test_options_that_will_not_do(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    fill(tmp_path / "in", plain())
    with pytest.raises(BadInput, match=message):
        pack(tmp_path / "in", tmp_path / "set", replace(ONE, **options))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_class_without_a_usable_image_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "in", plain() | {"c/1.png": b"", "c/2.png": b"text", "c/3.jpg": b"text"})
    with pytest.raises(BadInput, match=r"class 'c' has no usable image \(2 not an image, 1 empty\)"):
        pack(tmp_path / "in", tmp_path / "set", ONE)


def test_shards_keep_to_their_size(tmp_path: Path) -> None:
    files = plain(20)
    files["a/big.png"] = noise(5000, width=90, height=90)
    fill(tmp_path / "in", files)
    limit = 8000
    assert max(map(len, files.values())) > limit
    pack(tmp_path / "in", tmp_path / "bytes", replace(ONE, shard_bytes=limit))
    table, shards = rows(tmp_path / "bytes"), read_dataset(tmp_path / "bytes").shards
    for number, shard in enumerate(shards):
        sizes = [row["size"] for row in table if row["shard"] == number]
        assert len(sizes) == shard.samples
        assert sum(sizes) <= limit or len(sizes) == 1
    assert sum(shard.part == "train" for shard in shards) > 3
    pack(tmp_path / "in", tmp_path / "samples", replace(ONE, shard_samples=7))
    counts = [shard.samples for shard in read_dataset(tmp_path / "samples").shards if shard.part == "train"]
    assert counts == [7] * (sum(counts) // 7) + [sum(counts) % 7] * (sum(counts) % 7 > 0)
    assert {row["key"] for row in rows(tmp_path / "samples")} == {row["key"] for row in table}


@pytest.mark.parametrize("there", ["folder", "file", "link"])
def test_an_existing_target_is_refused_before_any_work(tmp_path: Path, there: str) -> None:
    target = tmp_path / "set"
    if there == "folder":
        target.mkdir()
    elif there == "file":
        target.touch()
    else:
        target.symlink_to("nowhere")
    with pytest.raises(BadInput, match="the set exists already"):
        pack(tmp_path / "no images", target, ONE)


def test_a_target_below_a_file_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with pytest.raises(BadInput, match="no set can be written here"):
        pack(tmp_path / "no images", tmp_path / "plain" / "set", ONE)


def test_width_and_height_are_those_after_rotation(tmp_path: Path) -> None:
    files = plain(3)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files[f"a/exif{orientation}.jpg"] = noise(200 + orientation, "JPEG", 40, 16, exif=exif)
    fill(tmp_path / "in", files)
    pack(tmp_path / "in", tmp_path / "set", replace(ONE, split="0/0/100"))
    table = {row["source"]: row for row in rows(tmp_path / "set")}
    index = np.load(tmp_path / "set" / "samples.npy")
    for orientation in range(1, 9):
        row = table[f"a/exif{orientation}.jpg"]
        assert (row["width"], row["height"]) == ((40, 16) if orientation < 5 else (16, 40))
    assert index["width"].tolist() == [row["width"] for row in rows(tmp_path / "set")]
    assert index["height"].tolist() == [row["height"] for row in rows(tmp_path / "set")]


@pytest.mark.parametrize("change", ["other bytes", "longer", "vanished", "a folder now"])
def test_an_image_that_changes_between_looking_and_writing_stops_the_packing(tmp_path: Path, change: str) -> None:
    fill(tmp_path / "in", plain(5))
    images = clean(list_folder(tmp_path / "in").items, 1).images
    victim = images[7].item.path
    if change == "other bytes":
        victim.write_bytes(noise(77))
    elif change == "longer":
        victim.write_bytes(victim.read_bytes() + b"\0")
    else:
        victim.unlink()
        if change == "a folder now":
            victim.mkdir()
    samples = [Sample(image, f"k{i}", 0, "", "train") for i, image in enumerate(images)]
    (tmp_path / "out").mkdir()
    said = "changed" if change in ("other bytes", "longer") else "vanished"
    with pytest.raises(BadInput, match=f"an image {said} while packing.*{victim.name}"):
        write_shard(ShardPlan(tmp_path / "out" / "train-000000.tar", "train", ["a"], samples))
    assert list((tmp_path / "out").iterdir()) == []


def pages(path: Path) -> int:
    """Return the bytes that a file takes of a tmpfs."""
    return -(-path.stat().st_size // 4096) * 4096


def test_a_full_disk_leaves_nothing_whichever_file_it_cuts_short(tmpfs: Path, tmp_path: Path) -> None:
    fill(
        tmp_path / "in",
        {f"{name}/{i}.png": noise(i + 500 * (name == "b"), "PNG", 4, 4) for name in "ab" for i in range(150)},
    )
    options = replace(ONE, near=False, allow_leaks=True)  # so small, they all look alike
    pack(tmp_path / "in", tmp_path / "set", options)
    tars = [f"{part}-000000.{end}" for part in ("train", "val", "test") for end in ("tar", "idx")]
    last = ["samples.parquet", "samples.npy", "rejected.csv", "dataset.json", "report.html"]
    assert sorted(tars + last) == sorted(path.name for path in (tmp_path / "set").iterdir())
    needed = 0
    for name in tars + last:
        needed += pages(tmp_path / "set" / name)
        ballast = tmpfs / "ballast"
        ballast.write_bytes(bytes(2 * 1024 * 1024 - needed + 4096))
        with pytest.raises(EnvironmentFault, match="could not write"):
            pack(tmp_path / "in", tmpfs / "set", options)
        assert [path.name for path in tmpfs.iterdir()] == ["ballast"], name
        ballast.unlink()
    pack(tmp_path / "in", tmpfs / "set", options)
    assert hashes(tmpfs / "set") == hashes(tmp_path / "set")


def test_a_disk_that_is_too_small_is_refused_before_writing(tmpfs: Path, tmp_path: Path) -> None:
    fill(tmp_path / "in", plain(20))
    (tmpfs / "ballast").write_bytes(bytes(2 * 1024 * 1024 - 8192))
    with pytest.raises(EnvironmentFault, match="not enough room: 0 MB to write"):
        pack(tmp_path / "in", tmpfs / "set", ONE)
    assert [path.name for path in tmpfs.iterdir()] == ["ballast"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_exit_3(tmpfs: Path, tmp_path: Path, workers: int) -> None:
    fill(tmp_path / "in", plain(40))
    (tmpfs / "ballast").write_bytes(bytes(2 * 1024 * 1024 - 150_000))  # the images fit, the tars around them do not
    done = bloodcell("pack", tmp_path / "in", tmpfs / "set", "--shard-samples", 20, "--workers", workers, "--json")
    assert done.code == 3, done.err
    said = [line for line in done.err.splitlines() if line.startswith("bloodcell: ")]
    assert len(said) == 1
    assert "could not write" in said[0]
    assert "Traceback" not in done.err
    assert done.json["exit"] == 3
    assert [path.name for path in tmpfs.iterdir()] == ["ballast"]


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_while_writing_there_is_no_set_and_packing_again_works(
    drawn: Path, tmp_path: Path, workers: int
) -> None:
    target, partial = tmp_path / "set", tmp_path / "set.partial"
    options = ["--shard-samples", 1, "--workers", workers]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command("pack", drawn, target, *options), cwd=ROOT, stdout=log, stderr=log)
    try:
        _wait(lambda: len(list(partial.glob("*.tar"))) >= 5 or process.poll() is not None)
        helpers = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert partial.exists()
    assert not target.exists()
    assert not (partial / "dataset.json").exists()
    assert len(helpers) >= workers - 1
    _wait(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in helpers))
    result = pack(drawn, target, replace(ONE, shard_samples=100))
    assert result["packed"] == read_samples(target).num_rows
    assert verify(target)["ok"]
    assert not partial.exists()


def _wait(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_an_interrupt_is_one_line_and_leaves_nothing(drawn: Path, tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as log:
        words = command("pack", drawn, tmp_path / "set", "--shard-samples", 1, "--workers", 2)
        process = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(lambda: list((tmp_path / "set.partial").glob("*.tar")) or process.poll() is not None)
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: the workers get it too
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    said = (tmp_path / "log").read_text()
    assert "bloodcell: interrupted" in said
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_set_that_leaks_is_refused_unless_allowed(tmp_path: Path) -> None:
    synthesise(tmp_path / "in", SynthOptions(images=80, size=64, patients=8, near_duplicates=40, seed=2))
    refused = bloodcell("pack", tmp_path / "in", tmp_path / "set", "--no-near", "--split", "50/25/25", "--workers", 1)
    assert refused.code == 2, refused.err
    said = [line for line in refused.err.splitlines() if line.startswith("bloodcell: ")]
    assert len(said) == 1
    assert "the split leaks" in said[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    options = replace(ONE, near=False, split="50/25/25", allow_leaks=True)
    result = pack(tmp_path / "in", tmp_path / "set", options)
    assert result["leaks"]
    assert read_dataset(tmp_path / "set").leaks
    assert verify(tmp_path / "set")["ok"]
    sound = pack(tmp_path / "in", tmp_path / "sound", replace(options, near=True, allow_leaks=False))
    assert not sound["leaks"]
    assert not read_dataset(tmp_path / "sound").leaks


@pytest.mark.realdata
def test_all4_is_the_same_with_one_and_two_workers_and_a_flipped_byte_is_found(real_data: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        done = bloodcell("pack", real_data / "all4", tmp_path / str(workers), "--workers", workers, "--json")
        assert done.code == 0, done.err
        assert done.json["packed"] + done.json["rejected"] == done.json["images"] == 2604
        assert done.json["leaks"] == 0
    assert hashes(tmp_path / "1") == hashes(tmp_path / "2")
    assert bloodcell("verify", tmp_path / "1", "--workers", 2).code == 0
    row = rows(tmp_path / "1")[1234]
    path = tmp_path / "1" / read_dataset(tmp_path / "1").shards[row["shard"]].file
    with open(path, "r+b") as file:
        file.seek(row["offset"] + row["size"] // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    found = bloodcell("verify", tmp_path / "1", "--workers", 2)
    assert found.code == 1
    assert row["key"] in found.out


@pytest.mark.realdata
def test_pbc8_is_cleaned(real_data: Path, tmp_path: Path) -> None:
    result = pack(real_data / "pbc8", tmp_path / "set", PackOptions())
    left = rejects(tmp_path / "set")
    assert left["neutrophil/.DS_169665.jpg"][0] == "not an image"
    reasons = Counter(reason for reason, _ in left.values())
    assert reasons == {"not an image": 1, "contradicting label": 2, "exact duplicate": 16}
    pair = {name for name, (reason, _) in left.items() if reason == "contradicting label"}
    assert pair == {"neutrophil/BNE_191112.jpg", "eosinophil/EO_225902.jpg"}
    kept = {row["source"] for row in rows(tmp_path / "set")}
    for name, (reason, detail) in left.items():
        assert name not in kept
        assert reason != "exact duplicate" or detail.removeprefix("same bytes as ") in kept
    assert result["images"] == 3200 == len(kept) + len(left)
