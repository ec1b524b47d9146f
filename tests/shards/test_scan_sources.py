"""Scan takes the same inputs as pack, says which source things come from, what crosses a split and what is personal."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from shards.pack import PackOptions
from shards.scan import ScanOptions, explore_folder, scan
from shards.source_options import SourceOptions
from shards.synth import SynthOptions, synthesise
from tests.conftest import bloodcell


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders with one set of labels: pictures of the second are smaller, framed, and coarsely encoded."""
    root = tmp_path_factory.mktemp("sources")
    synthesise(root / "north", SynthOptions(images=120, size=64, patients=24, seed=1))
    synthesise(root / "south", SynthOptions(images=160, size=64, patients=24, seed=2, imbalance=8.0, outliers=3))
    for path in (root / "south").glob("*/*.jpg"):
        image = Image.open(path).convert("RGB").resize((56, 56))
        framed = Image.new("RGB", (60, 60), (30, 40, 60))
        framed.paste(image, (2, 2))
        framed.save(path, quality=60)
    return root / "north", root / "south"


def test_scan_and_pack_share_their_sources() -> None:
    shared = {one.name: one.metadata["help"] for one in fields(SourceOptions)}
    for options in (ScanOptions, PackOptions):
        own = {one.name: one.metadata["help"] for one in fields(options)}
        assert own.items() >= shared.items()


def test_sources_are_told_apart_and_named(two_sources: tuple[Path, Path], tmp_path: Path) -> None:
    north, south = two_sources
    result = scan(north, tmp_path / "found", ScanOptions(also=(str(south),), workers=1))
    assert result["sources"] == {"north": 120, "south": 163}
    rows = pyarrow.parquet.read_table(tmp_path / "found/scan.parquet", columns=["path", "source"]).to_pylist()
    assert all(row["path"].startswith(f"{row['source']}/") for row in rows)
    page = (tmp_path / "found/report.html").read_text(encoding="utf-8")
    assert '<section id="sources">' in page
    assert "--also" in page
    told = {one.split(" the source is told")[0] for one in result["shortcuts"] if "the source is told" in one}
    assert {"From the border colour alone", "From the image size alone", "From the JPEG quality alone"} <= told
    found = explore_folder(north, ScanOptions(also=(str(south),), near=False, workers=1))
    by_source = next(one for one in found.shortcuts if (one.target, one.name) == ("class", "source"))
    assert not by_source.visible
    assert by_source.chance == 0.25
    border = next(one for one in found.shortcuts if (one.target, one.name) == ("source", "border colour"))
    assert border.auroc > 0.95
    assert border.warned


def test_class_told_by_the_source_alone(drawn: Path, tmp_path: Path) -> None:
    classes = sorted(path.name for path in drawn.iterdir() if path.is_dir())
    for name in classes:  # each hospital sends two classes
        shutil.copytree(drawn / name, tmp_path / ("east" if name in classes[:2] else "west") / name)
    options = ScanOptions(also=(str(tmp_path / "west"),), near=False, workers=1)
    found = explore_folder(tmp_path / "east", options)
    by_source = next(one for one in found.shortcuts if (one.target, one.name) == ("class", "source"))
    assert by_source.warned
    assert 0.45 < by_source.accuracy <= 0.55
    assert "different classes" in by_source.sentence


def test_an_archive_and_a_map_of_labels(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 24), ("test", 12)):
        arrays[f"{part}_images"] = draw.integers(0, 256, (count, 28, 28, 3), np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % 3)[:, None]
    arrays["test_images"][0] = arrays["train_images"][3]
    np.savez(tmp_path / "cells.npz", **arrays)
    (tmp_path / "labels.csv").write_text("label,class\n0,lymphocyte\n1,monocyte\n2,\n")
    done = bloodcell(
        "scan", tmp_path / "cells.npz", "--labels", tmp_path / "labels.csv", "--out", tmp_path / "found", "--json"
    )
    assert done.code == 0, done.err
    assert done.json["images"] == 24
    rows = pyarrow.parquet.read_table(tmp_path / "found/scan.parquet").to_pylist()
    assert {row["class"] for row in rows} == {"lymphocyte", "monocyte"}
    assert {row["part"] for row in rows} == {"train", "test"}
    crossing = [row["path"] for row in rows if "crosses the split" in row["flags"]]
    assert crossing == ["test/0/00.png", "train/0/03.png"]
    assert "data:image/jpeg" in (tmp_path / "found/report.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.npz", "found", "labels.csv"]


def test_patients_across_a_split_are_named(tmp_path: Path) -> None:
    options = SynthOptions(images=160, size=48, patients=16, seed=3, spanning_patients=2, split_folders=True)
    spanning = set(synthesise(tmp_path / "images", options)["spanning_patients"])
    how = ScanOptions(group_pattern=r"_(p\d+)_", near=False, workers=1)
    found = explore_folder(tmp_path / "images", how)
    crossing = {i.item.group for i, own in zip(found.images, found.flags, strict=True) if "crosses the split" in own}
    assert crossing == spanning


def test_personal_metadata_is_counted_and_not_repeated(drawn: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(drawn, folder, ignore=shutil.ignore_patterns("*.csv"))
    chosen = sorted(folder.glob("*/*.jpg"))[7]
    exif = Image.Exif()
    exif[0x013B] = "Erika Mustermann"  # Artist
    image = Image.open(chosen)
    image.load()
    image.save(chosen, exif=exif)
    result = scan(folder, tmp_path / "found", ScanOptions(near=False, workers=1))
    assert result["personal"] == {"EXIF Artist": 1}
    assert result["flags"]["personal metadata"] == 1
    page = (tmp_path / "found/report.html").read_text(encoding="utf-8")
    assert chosen.relative_to(folder).as_posix() in page
    assert "EXIF Artist" in page
    assert "Mustermann" not in page
