"""Scanning real sets finds what is known to be wrong with them."""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from pathlib import Path

import pytest

from shards.scan import Findings, ScanOptions, explore

pytestmark = pytest.mark.realdata


def identical(folder: Path) -> set[frozenset[str]]:
    """Return the sets of files with the same bytes, by a plain sha256 pass."""
    by_digest = defaultdict(set)
    for path in folder.glob("*/*.jpg"):
        by_digest[hashlib.sha256(path.read_bytes()).hexdigest()].add(path.relative_to(folder).as_posix())
    return {frozenset(paths) for paths in by_digest.values() if len(paths) > 1}


def same_bytes(found: Findings) -> set[frozenset[str]]:
    return {frozenset(found.images[i].item.source for i in group) for group in found.same}


def test_all4_without_its_manifest(real_data: Path) -> None:
    folder = real_data / "all4"
    found = explore(folder, ScanOptions(workers=2))
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
    assert not any("near contradiction" in flags for flags in found.flags)
    # The stain differs by class, which the border alone tells.
    assert "border colour" in {one.name for one in found.shortcuts if one.warned and one.target == "class"}


def test_pbc8_and_what_was_put_into_it(real_data: Path) -> None:
    folder = real_data / "pbc8"
    found = explore(folder, ScanOptions(workers=2, near=False))
    assert [reject.item.source for reject in found.rejected] == ["neutrophil/.DS_169665.jpg"]
    assert same_bytes(found) == identical(folder)
    assert len(found.same) == 17
    wrong = {i.item.source for i, f in zip(found.images, found.flags, strict=True) if "contradicting label" in f}
    assert wrong == {"neutrophil/BNE_191112.jpg", "eosinophil/EO_225902.jpg"}
