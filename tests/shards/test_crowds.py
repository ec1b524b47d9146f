"""Crowds of foreign pictures are found and not dropped; rare classes and second stains are left alone."""

from __future__ import annotations

import csv
import html
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shards.crowds import find_crowds
from shards.misfits import find_misfits
from shards.scan import ScanOptions, explore_folder, scan
from shards.synth import SynthOptions, synthesise


def cloud(draw: np.random.Generator, count: int, middle: float, spread: float = 1.0) -> NDArray[np.float64]:
    """Return points around (middle, middle, ...), float64 [count, 12]."""
    return draw.normal(middle, spread, (count, 12))


def usual(points: NDArray[np.float64]) -> float:
    """Return the typical distance to the tenth neighbour."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    return float(np.quantile(np.sort(distances, axis=1)[:, 10], 0.75))


def test_a_crowd_in_a_class_is_found_and_a_rare_class_is_none() -> None:
    draw = np.random.default_rng(0)
    points = np.concatenate([cloud(draw, 300, 0), cloud(draw, 260, 3), cloud(draw, 30, 12), cloud(draw, 40, -9)])
    labels = np.array(["a"] * 300 + ["b"] * 260 + ["rare"] * 30 + ["b"] * 40)
    crowds = find_crowds(points, labels, usual(points))
    assert [group.tolist() for group in crowds.groups] == [list(range(590, 630))]


def test_two_stains_of_a_class_are_no_crowds() -> None:
    draw = np.random.default_rng(1)
    points = np.concatenate([cloud(draw, 120, 0), cloud(draw, 80, 9), cloud(draw, 200, 0)])
    labels = np.array(["a"] * 200 + ["b"] * 200)
    assert not find_crowds(points, labels, usual(points)).groups


def test_crowds_are_numbered_by_size_and_few_alike_are_none() -> None:
    draw = np.random.default_rng(2)
    points = np.concatenate([cloud(draw, 600, 0), cloud(draw, 12, 15), cloud(draw, 20, -15), cloud(draw, 5, 40)])
    crowds = find_crowds(points, np.array(["a"] * 637), usual(points))
    assert [len(group) for group in crowds.groups] == [20, 12]
    assert (crowds.apart[632:] > 5).all()
    assert (crowds.member[632:] == 0).all()


@pytest.mark.parametrize("count", [0, 1, 7, 19])
def test_a_small_set_has_no_crowds_and_no_misfits(count: int) -> None:
    points, labels = np.arange(count * 3.0).reshape(count, 3) ** 3, np.array(["a"] * count, dtype=str)
    assert not find_crowds(points, labels, 1.0).groups
    misfits = find_misfits(points, labels)
    assert not misfits.unlike.any()
    assert not misfits.nearer.any()


def test_what_does_not_fit_its_class() -> None:
    draw = np.random.default_rng(3)
    points = np.concatenate([cloud(draw, 200, 0), cloud(draw, 200, 4)])
    labels = np.array(["a"] * 200 + ["b"] * 200)
    labels[[3, 250]] = ["b", "a"]  # exchanged
    points[60, :6] += 7  # of another stain
    points[60, 6:] -= 7
    found = find_misfits(points, labels)
    assert np.flatnonzero(found.nearer).tolist() == [3, 250]
    assert found.other[3] == "a"
    assert found.other[250] == "b"
    assert 60 in np.flatnonzero(found.unlike)
    assert found.unlike.sum() <= 5


def test_a_planted_crowd_is_shown_and_kept_until_a_person_decides(tmp_path: Path) -> None:
    synthesise(tmp_path / "images", SynthOptions(images=300, size=64, patients=40, seed=4, foreign_crowd=36))
    result = scan(tmp_path / "images", tmp_path / "found", ScanOptions(near=False, workers=1))
    with open(tmp_path / "images/truth.csv", newline="", encoding="utf-8") as file:
        truth = {row["path"]: row for row in csv.DictReader(file)}
    with open(tmp_path / "found/decisions.csv", newline="", encoding="utf-8") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    tissue = {path for path, row in truth.items() if row["detail"] == "tissue"}
    assert max(result["crowds"]) >= len(tissue)
    for path in tissue:
        assert rows[path]["decision"] == "keep"
        assert "alike in crowd" in rows[path]["reason"]
    page = (tmp_path / "found/report.html").read_text(encoding="utf-8")
    assert "Crowd 1" in page
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    command = re.search(r"^sed -i '/in crowd 1,/.*$", text, re.MULTILINE)
    assert command
    subprocess.run(["bash", "-c", command.group()], check=True)
    with open(tmp_path / "found/decisions.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            assert row["decision"] == "drop" or "in crowd 1," not in row["reason"]


def test_other_stains_are_noticed_and_ordinary_images_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    synthesise(folder, SynthOptions(images=400, size=64, patients=60, seed=6, other_stain=6))
    found = explore_folder(folder, ScanOptions(near=False, workers=1))
    with open(folder / "truth.csv", newline="", encoding="utf-8") as file:
        stained = {row["path"] for row in csv.DictReader(file) if row["defect"] == "other_stain"}
    names = ("outlier", "crowd", "unlike its class")
    said = {i.item.source for i, own in zip(found.images, found.flags, strict=True) if set(own) & set(names)}
    assert len(said & stained) >= 5
    assert len(said - stained) <= 8
