"""What goes into one listing: split folders, archives, several roots, label maps; and the sets packed from them."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.errors import BadInput
from shards.format import read_dataset, read_samples
from shards.pack import PackOptions, pack
from shards.sources.gather import Request, gathered
from shards.verify import verify
from tests.conftest import bloodcell

ONE = PackOptions(workers=1)


def noise(number: int) -> bytes:
    """Return a PNG of noise, another for each number."""
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def fill(root: Path, counts: dict[str, int], first: int = 0) -> Path:
    """Write so many pictures of noise into each folder below `root`."""
    number = first
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            (root / folder / f"{i:03d}.png").write_bytes(noise(number))
            number += 1
    return root


def listed(*roots: Path, scratch: Path, **asked: Any) -> list[tuple[str, str, str]]:
    """Return (source, label, part) of a request."""
    with gathered(Request(roots, scratch, **asked)) as listing:
        return [(item.source, item.label, item.part) for item in listing.items]


def archive(path: Path, counts: dict[str, int], **changed: np.ndarray) -> tuple[Path, dict[str, np.ndarray]]:
    """Write an .npz like those of MedMNIST with two classes in turn."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in counts.items():
        arrays[f"{part}_images"] = rng.integers(0, 255, (count, 28, 28, 3), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count, dtype=np.uint8) % 2)[:, None]
    arrays.update(changed)
    np.savez_compressed(path, **arrays)
    return path, arrays


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with TRAIN and TEST of two classes."""
    root = tmp_path_factory.mktemp("divided") / "in"
    return fill(root, {"TRAIN/a": 16, "TRAIN/b": 16, "TEST/a": 6, "TEST/b": 6})


def test_a_split_is_kept_or_merged_but_never_overlooked(divided: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"in a split \(test, train\).*--keep-splits.*--merge-splits"):
        pack(divided, tmp_path / "set", ONE)
    assert not list(tmp_path.iterdir())
    kept = pack(divided, tmp_path / "kept", replace(ONE, keep_splits=True, split="50/50/0"))
    assert kept["splits"] == {part: {"a": n, "b": n} for part, n in (("train", 8), ("val", 8), ("test", 6))}
    table = read_samples(tmp_path / "kept")
    for source, part in zip(table["source"].to_pylist(), table["split"].to_pylist(), strict=True):
        assert (part == "test") == source.startswith("TEST/")
    assert read_dataset(tmp_path / "kept").split["method"] == "kept as it was found"
    assert verify(tmp_path / "kept")["ok"]
    merged = pack(divided, tmp_path / "merged", replace(ONE, merge_splits=True, split="50/25/25"))
    assert merged["splits"]["train"] == {"a": 11, "b": 11}
    with pytest.raises(BadInput, match="kept or merged, not both"):
        pack(divided, tmp_path / "set", replace(ONE, keep_splits=True, merge_splits=True))
    with pytest.raises(BadInput, match="kept or folds are made"):
        pack(divided, tmp_path / "set", replace(ONE, keep_splits=True, folds=3))


def test_without_a_share_for_val_nothing_is_cut_off(divided: Path, tmp_path: Path) -> None:
    kept = pack(divided, tmp_path / "kept", replace(ONE, keep_splits=True, split="80/0/20"))
    assert kept["splits"] == {"train": {"a": 16, "b": 16}, "test": {"a": 6, "b": 6}}


def test_what_official_parts_share_is_dropped_or_refused(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", {"train/a": 8, "train/b": 8, "val/a": 4, "val/b": 4, "test/a": 4, "test/b": 4})
    (root / "train" / "a" / "copy.png").write_bytes((root / "test" / "a" / "000.png").read_bytes())
    kept = replace(ONE, keep_splits=True)
    result = pack(root, tmp_path / "copies", kept)
    assert (result["rejected"], result["leaks"]) == (1, 0)
    pixels = Image.open(root / "test" / "a" / "001.png").rotate(90, expand=True)
    pixels.save(root / "train" / "a" / "turned.png")
    with pytest.raises(BadInput, match=r"the split leaks: .*--merge-splits.*--allow-leaks"):
        pack(root, tmp_path / "set", kept)
    assert pack(root, tmp_path / "leaking", replace(kept, allow_leaks=True))["leaks"]
    assert read_dataset(tmp_path / "leaking").leaks
    assert not pack(root, tmp_path / "anew", replace(ONE, merge_splits=True, split="50/25/25"))["leaks"]


def test_patients_that_span_official_parts_are_refused(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", {"train/a": 8, "train/b": 8, "test/a": 4, "test/b": 4})
    for part in ("train", "test"):
        (root / part / "a" / "000.png").rename(root / part / "a" / f"p7_{part}.png")
    with pytest.raises(BadInput, match=r"the split leaks: 1 times.*group"):
        pack(root, tmp_path / "set", replace(ONE, keep_splits=True, group_pattern=r"(p\d+)_"))


def test_official_folds(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", {f"fold_{k}/{name}": 5 for k in range(3) for name in "ab"})
    result = pack(root, tmp_path / "set", replace(ONE, keep_splits=True))
    assert list(result["splits"]) == ["fold0", "fold1", "fold2"]
    info = read_dataset(tmp_path / "set")
    assert info.splits["fold1/test"] == ["fold1-000000.tar"]
    assert info.splits["fold1/val"] == ["fold2-000000.tar"]
    (root / "fold_2").rename(tmp_path / "away")
    with pytest.raises(BadInput, match="2 folds leave no part"):
        pack(root, tmp_path / "other", replace(ONE, keep_splits=True))


def test_patients_of_cnmc_that_share_an_image_across_official_folds(tmp_path: Path) -> None:
    for fold in range(3):
        for patient in range(3):
            for name, mark in (("all", ""), ("hem", "H")):
                number = 3 * fold + patient
                place = tmp_path / "in" / f"fold_{fold}" / name / f"UID_{mark}{number}_1_1_{name}.bmp"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(noise(100 * number + len(mark)))
    same = (tmp_path / "in" / "fold_0" / "all" / "UID_0_1_1_all.bmp").read_bytes()
    (tmp_path / "in" / "fold_1" / "all" / "UID_3_2_1_all.bmp").write_bytes(same)
    cnmc = replace(ONE, dataset="cnmc")
    with pytest.raises(BadInput, match=r"the split leaks: 1 times.*, group \(audit"):
        pack(tmp_path / "in", tmp_path / "set", replace(cnmc, keep_splits=True))
    merged = pack(tmp_path / "in", tmp_path / "set", replace(cnmc, merge_splits=True, folds=3))
    assert (merged["packed"], merged["rejected"], merged["leaks"]) == (18, 1, 0)
    groups = read_samples(tmp_path / "set")["group"].to_pylist()
    assert groups.count("patient-0+patient-3") == 1 + 1


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["TRAIN/a", "TRAIN/b", "TEST_SIMPLE/a"], "'TEST_SIMPLE' lies beside split folders"),
        (["train", "test"], "holds images but no class folders"),
        (["a", "b"], "there is no split to keep"),
    ],
)
def test_split_folders_that_will_not_do(tmp_path: Path, folders: list[str], message: str) -> None:
    root = fill(tmp_path / "in", dict.fromkeys(folders, 1))
    with pytest.raises(BadInput, match=message):
        listed(root, scratch=tmp_path, keep_splits=True)


def test_several_roots_with_one_label_map(tmp_path: Path) -> None:
    one = fill(tmp_path / "one" / "images", {"lympho": 2, "mono": 1})
    two = fill(tmp_path / "two" / "images", {"LYM": 1, "dust": 2}, first=50)
    (tmp_path / "map.csv").write_text("label,class\nlympho,lymphocyte\nLYM,lymphocyte\nmono,monocyte\ndust,\n")
    assert listed(one, two, scratch=tmp_path, labels=str(tmp_path / "map.csv")) == [
        ("images-2/LYM/000.png", "lymphocyte", ""),
        ("images/lympho/000.png", "lymphocyte", ""),
        ("images/lympho/001.png", "lymphocyte", ""),
        ("images/mono/000.png", "monocyte", ""),
    ]
    (tmp_path / "map.csv").write_text("label,class\nlympho,lymphocyte\nmono,monocyte\ndust,\n")
    with pytest.raises(BadInput, match="the label 'LYM' is not in the map"):
        listed(one, two, scratch=tmp_path, labels=str(tmp_path / "map.csv"))
    with pytest.raises(BadInput, match="given twice"):
        listed(one, one, scratch=tmp_path)
    with pytest.raises(BadInput, match="names all images itself"):
        listed(one, two, scratch=tmp_path, table="t.csv")


def test_also_and_labels_on_the_command_line(tmp_path: Path) -> None:
    one = fill(tmp_path / "one", {"x": 9})
    two = fill(tmp_path / "two", {"y": 9}, first=50)
    three = fill(tmp_path / "three", {"z": 9}, first=90)
    (tmp_path / "map.tsv").write_text("label\tclass\nx\ta\ny\tb\nz\ta\n")
    more = ["--also", two, "--also", three, "--labels", tmp_path / "map.tsv", "--workers", 1]
    done = bloodcell("pack", one, tmp_path / "set", *more, "--json")
    assert done.code == 0, done.err
    assert done.json["images"] == done.json["packed"] == 27
    info = read_dataset(tmp_path / "set")
    assert info.classes == ["a", "b"]
    assert info.options["also"] == ["two", "three"]
    assert str(tmp_path) not in (tmp_path / "set" / "dataset.json").read_text()


def test_a_manifest_in_the_folder_is_ignored_unless_asked_for(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", {"a": 2, "b": 2})
    (root / "manifest.csv").write_text("path,class,split\na/000.png,x,train\nb/000.png,y,test\n")
    assert [label for _, label, _ in listed(root, scratch=tmp_path)] == ["a", "a", "b", "b"]
    table = str(root / "manifest.csv")
    assert listed(root, scratch=tmp_path, table=table) == [("a/000.png", "x", ""), ("b/000.png", "y", "")]
    kept = listed(root, scratch=tmp_path, table=table, keep_splits=True)
    assert [part for _, _, part in kept] == ["train", "test"]


def test_an_archive_is_packed_without_losing_a_pixel(tmp_path: Path) -> None:
    path, arrays = archive(tmp_path / "blood.npz", {"train": 20, "val": 8, "test": 8})
    with pytest.raises(BadInput, match="in a split"):
        pack(path, tmp_path / "set", ONE)
    result = pack(path, tmp_path / "set", replace(ONE, keep_splits=True))
    assert result["splits"] == {part: {"0": n, "1": n} for part, n in (("train", 10), ("val", 4), ("test", 4))}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["blood.npz", "set"]
    info = read_dataset(tmp_path / "set")
    assert info.extra["encoder"].startswith("Pillow ")
    for row in read_samples(tmp_path / "set").to_pylist():
        with open(tmp_path / "set" / info.shards[row["shard"]].file, "rb") as tar:
            tar.seek(row["offset"])
            pixels = np.asarray(Image.open(io.BytesIO(tar.read(row["size"]))))
        part, label, number = row["source"].removesuffix(".png").split("/")
        assert (part, label) == (row["split"], row["class"])
        np.testing.assert_array_equal(pixels, arrays[f"{part}_images"][int(number)])
    merged = pack(path, tmp_path / "merged", replace(ONE, merge_splits=True, dataset="bloodmnist"))
    assert set(merged["splits"]["train"]) == {"basophil", "eosinophil"}
    again = pack(path, tmp_path / "again", replace(ONE, keep_splits=True, workers=2))
    assert again["shards"] == result["shards"]


def test_grey_archives_and_archives_in_a_folder(tmp_path: Path) -> None:
    grey = np.random.default_rng(1).integers(0, 255, (6, 28, 28), dtype=np.uint8)
    archive(tmp_path / "bloodmnist_64.npz", {"train": 6}, train_images=grey)
    found = listed(tmp_path, scratch=tmp_path, dataset="bloodmnist", merge_splits=True)
    assert [label for _, label, _ in found] == ["basophil"] * 3 + ["eosinophil"] * 3
    archive(tmp_path / "bloodmnist.npz", {"train": 6})
    with pytest.raises(BadInput, match="several archives"):
        listed(tmp_path, scratch=tmp_path, dataset="bloodmnist", merge_splits=True)


class _Canary:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_labels": np.zeros((6, 2), np.uint8)}, "not one whole number for each image"),
        ({"train_labels": np.zeros((5, 1), np.uint8)}, "6 images and 5 labels"),
        ({"train_images": np.zeros((6, 4, 4, 3), np.float32)}, "not uint8"),
        ({"train_images": np.zeros((6, 4), np.uint8)}, "has the shape"),
        ({"train_images": np.asfortranarray(np.zeros((6, 4, 4, 3), np.uint8))}, "plain numbers in rows"),
    ],
)
def test_archives_that_will_not_do(tmp_path: Path, changed: dict[str, np.ndarray], message: str) -> None:
    path, _ = archive(tmp_path / "x.npz", {"train": 6}, **changed)
    with pytest.raises(BadInput, match=message):
        listed(path, scratch=tmp_path, merge_splits=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.npz"]


def test_archives_that_are_none_are_cut_short_or_hold_objects(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(BadInput, match="no such"):
        listed(path, scratch=tmp_path, merge_splits=True)
    path.write_bytes(b"not a zip")
    with pytest.raises(BadInput, match="cannot be read"):
        listed(path, scratch=tmp_path, merge_splits=True)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(BadInput, match="no arrays train_images"):
        listed(path, scratch=tmp_path, merge_splits=True)
    np.savez(path, train_images=np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(BadInput, match="no array train_labels"):
        listed(path, scratch=tmp_path, merge_splits=True)
    canary = np.array([_Canary(tmp_path / "ran")] * 2, dtype=object)
    np.savez(path, train_images=np.zeros((2, 4, 4), np.uint8), train_labels=canary)
    with pytest.raises(BadInput, match="plain numbers"):
        listed(path, scratch=tmp_path, merge_splits=True)
    assert not (tmp_path / "ran").exists()
    whole, _ = archive(tmp_path / "whole.npz", {"train": 6})
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as cut:
        for name in source.namelist():
            data = source.read(name)
            cut.writestr(name, data[:-100] if "images" in name else data)
    with pytest.raises(BadInput, match="ends too early"):
        listed(path, scratch=tmp_path, merge_splits=True)


@pytest.mark.realdata
def test_wbc4_kept_and_merged(real_data: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--keep-splits.*--merge-splits"):
        pack(real_data / "wbc4", tmp_path / "set", PackOptions(dataset="wbc4"))
    kept = pack(real_data / "wbc4", tmp_path / "kept", PackOptions(dataset="wbc4", keep_splits=True, allow_leaks=True))
    assert kept["packed"] + kept["rejected"] == kept["images"] == 1111
    assert list(kept["splits"]) == ["train", "val", "test", "test_simple"]
    table = read_samples(tmp_path / "kept")
    for source, part in zip(table["source"].to_pylist(), table["split"].to_pylist(), strict=True):
        expected = {"TRAIN": ("train", "val"), "TEST": ("test",), "TEST_SIMPLE": ("test_simple",)}
        assert part in expected[source.split("/")[0]]
    merged = pack(real_data / "wbc4", tmp_path / "merged", PackOptions(dataset="wbc4", merge_splits=True))
    assert merged["packed"] == kept["packed"]
    assert list(merged["splits"]) == ["train", "val", "test"]
    assert merged["leaks"] == 0 < kept["leaks"]
