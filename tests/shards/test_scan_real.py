"""Scanning real sets finds what is known to be wrong with them."""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.appearance import look
from shards.definitions import read_definition
from shards.duplicates import PAIR_DTYPE, exact_groups
from shards.examine import Image, examine_all
from shards.outliers import by_appearance
from shards.quality import FLAGS as QUALITY_FLAGS
from shards.scan import ScanOptions, explore_folder, units_of
from shards.scan_findings import Findings
from shards.sources import Item, list_folder

pytestmark = pytest.mark.realdata


def identical(folder: Path) -> set[frozenset[str]]:
    """Return the sets of files with the same bytes, by a plain sha256 pass."""
    by_digest = defaultdict(set)
    for path in folder.glob("*/*.jpg"):
        by_digest[hashlib.sha256(path.read_bytes()).hexdigest()].add(path.relative_to(folder).as_posix())
    return {frozenset(paths) for paths in by_digest.values() if len(paths) > 1}


def same_bytes(found: Findings) -> set[frozenset[str]]:
    return {frozenset(found.images[i].item.source for i in group) for group in found.same}


def members_of(found: Findings) -> list[list[str]]:
    """Return the paths of each cluster of copies."""
    members = defaultdict(list)
    for image, cluster in zip(found.images, found.clusters.tolist(), strict=True):
        members[cluster].append(image.item.source)
    return list(members.values())


def apart(paths: list[str]) -> int:
    """Return how far the numbers in the file names of one class are apart."""
    numbers = [int(Path(path).stem.rsplit("-", 1)[-1]) for path in paths]
    return max(numbers) - min(numbers)


def share(found: Findings, *flags: str) -> float:
    """Return the share of images that carry one of the flags."""
    return sum(bool(set(own) & set(flags)) for own in found.flags) / len(found.images)


def test_all4_without_its_manifest(real_data: Path) -> None:
    folder = real_data / "all4"
    found = explore_folder(folder, ScanOptions(workers=2))
    assert same_bytes(found) >= identical(folder)
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
        known = {row["path"]: row["group"] for row in csv.DictReader(file)}
    groups = defaultdict(set)
    for image, cluster in zip(found.images, found.clusters.tolist(), strict=True):
        if known[image.item.source]:
            groups[known[image.item.source]].add(cluster)
    several = [name for name in groups if list(known.values()).count(name) > 1]
    whole = sum(len(groups[name]) == 1 for name in several)
    assert len(several) > 50
    assert whole >= 0.95 * len(several)
    said = [group for group in members_of(found) if len(group) > 1]
    right = sum(len({known[path] for path in group}) == 1 for group in said)
    # Others of the manifest's groups overlap, too: fields that were photographed one after the other.
    beside = sum(len({known[path] for path in group}) > 1 and apart(group) <= 3 for group in said)
    print(f"\n{whole} of {len(several)} groups of the manifest are whole")
    print(f"{right} of {len(said)} clusters lie in one of them, {beside} more are neighbours by number")
    assert right + beside >= 0.9 * len(said)
    assert not any("near contradiction" in flags for flags in found.flags)
    assert share(found, *QUALITY_FLAGS) < 0.02
    assert share(found, "outlier", "crowd") < 0.01
    assert share(found, "unlike its class", "like another class") < 0.02
    # The stain differs by class, which the border alone tells.
    assert "border colour" in {one.name for one in found.shortcuts if one.warned and one.target == "class"}


def test_pbc8_and_what_was_put_into_it(real_data: Path) -> None:
    folder = real_data / "pbc8"
    found = explore_folder(folder, ScanOptions(workers=2, near=False))
    assert [reject.item.source for reject in found.rejected] == ["neutrophil/.DS_169665.jpg"]
    assert same_bytes(found) == identical(folder)
    assert len(found.same) == 17
    wrong = {i.item.source for i, f in zip(found.images, found.flags, strict=True) if "contradicting label" in f}
    assert wrong == {"neutrophil/BNE_191112.jpg", "eosinophil/EO_225902.jpg"}
    assert share(found, *QUALITY_FLAGS) < 0.02
    assert share(found, "outlier") < 0.01
    assert share(found, "unlike its class", "like another class") < 0.02
    crowds = found.outliers.crowds.groups  # one in another light, which a person may well want to see
    assert sum(map(len, crowds)) < 0.05 * len(found.images)


def test_a_sprinkling_of_another_hospital_is_found(real_data: Path) -> None:
    """One picture in twenty of a class comes from another set: alike among themselves, far from the rest."""
    own = [item for item in list_folder(real_data / "all4", None).items if item.label in ("Benign", "Pre")]
    other = list_folder(real_data / "wbc4/TRAIN", None).items[::40]
    items = own[::3] + [
        replace(item, source=f"{own[0].label}/x{i}.jpg", label=own[0].label) for i, item in enumerate(other)
    ]
    images, looks, _ = examine_all(items, 1, look)
    judged = by_appearance(looks, [image.item.label for image in images])
    foreign = np.array([image.item.path.parts[-3] == "TRAIN" for image in images])
    said = judged.flagged | (judged.crowds.member > 0)
    assert foreign.sum() == 20
    assert said[foreign].mean() >= 0.9
    assert said[foreign].sum() >= 0.8 * said.sum()


def test_cnmc_patients_that_share_an_image_are_one_unit(real_data: Path) -> None:
    definition = read_definition("cnmc")
    images = []
    with open(real_data / "cnmc/manifest.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            item = Item(Path(row["path"]), row["path"], row["label"], definition.group(row["path"]))
            images.append(Image(item, row["sha256"], row["sha256"], 0, int(row["bytes"]), 450, 450, "RGB", "BMP"))
    same = exact_groups([image.pixels_sha256 for image in images])
    units = units_of(images, same, np.zeros(0, PAIR_DTYPE))
    of_patient = {image.item.group: int(unit) for image, unit in zip(images, units, strict=True) if image.item.group}
    assert of_patient["patient-20"] == of_patient["patient-21"]
    assert of_patient["patient-20"] != of_patient["patient-22"]
    shared = sum({"patient-20", "patient-21"} <= {images[i].item.group for i in group} for group in same)
    assert shared > 50
