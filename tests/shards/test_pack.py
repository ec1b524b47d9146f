"""Packing: the same bytes anywhere, every image accounted for, nothing shared between parts, nothing half-written."""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.errors import BadInput
from shards.format import DatasetInfo, read_dataset
from shards.pack import pack
from shards.synth import SynthOptions, synthesise
from shards.verify import verify
from tests.conftest import bloodcell
from tests.shards.packing import ONE, fill, hashes, noise, plain, rejects, rows


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


@pytest.mark.parametrize("workers", [2, 4])
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
    with pytest.raises(BadInput, match="nothing can be written here: Not a directory"):
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
