"""Crowds of pictures that are all alike: the work is bounded, what is left out is said, and no copy crosses parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import audit, divide, duplicates
from shards.audit import BOUNDED
from shards.errors import BadInput
from shards.format import read_dataset
from shards.pack import pack
from shards.planted import jittered_fields
from shards.scan import ScanOptions, scan
from tests.shards.packing import ONE, rows

CROWD, OTHERS, ROOM = 80, 60, 600


def pictures(others: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and pixels of a crowd of one noisy field, and of so many other fields, each in two classes."""
    rng, (first, *rest) = np.random.default_rng(3), jittered_fields(others + 1, 64, seed=4)
    for number in range(CROWD):
        noisy = np.rint(first + rng.normal(0, 1, first.shape)).clip(0, 255).astype(np.uint8)
        yield f"{'ab'[number % 2]}/crowd{number:03d}.png", noisy
    yield from ((f"{'ab'[number % 2]}/own{number:03d}.png", rgb) for number, rgb in enumerate(rest))


def draw(folder: Path, others: int = OTHERS) -> Path:
    """Write the pictures."""
    for name, rgb in pictures(others):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb).save(folder / name)
    return folder


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave room for far fewer pairs than the crowd has."""
    for module, name, value in (
        (duplicates, "_ROOM", ROOM),
        (duplicates, "_PLENTY", 100),
        (duplicates, "_COMPARED", 64),
        (audit, "_ROOM", ROOM),
        (audit, "_CROWDED", 200),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("narrow")
def test_scan_and_pack_say_alike_what_was_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = draw(tmp_path / "in")
    seen = scan(images, tmp_path / "found", ScanOptions(workers=1))
    told = capsys.readouterr().err
    packed = pack(images, tmp_path / "set", ONE)
    said = capsys.readouterr().err
    left_out = {name: value for name, value in packed["duplicates"].items() if name in seen["near_left_out"]}
    assert seen["near_left_out"] == left_out
    assert set(left_out) == {"near_pairs_known", "near_pairs_bounded"}
    assert int(str(left_out["near_pairs_known"])) > 0
    for text in (told, said, (tmp_path / "found/report.html").read_text(encoding="utf-8")):
        assert "very many pictures are alike: not compared are" in text
    assert "not compared since" in (tmp_path / "set/report.html").read_text(encoding="utf-8")
    assert packed["duplicates"]["largest_cluster"] == CROWD
    crowd = [row for row in rows(tmp_path / "set") if "crowd" in row["source"]]
    assert len(crowd) == CROWD
    assert len({(row["split"], row["group"]) for row in crowd}) == 1
    assert packed["leaks"] == 0


def test_nothing_is_said_where_nothing_was_left_out(tmp_path: Path) -> None:
    seen = scan(draw(tmp_path / "in", 20), tmp_path / "found", ScanOptions(workers=1))
    assert seen["near_left_out"] == {}
    assert "Not all pairs" not in (tmp_path / "found/report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("narrow")
def test_a_crowd_alone_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="class 'a' has 40 images in 1 groups"):
        pack(draw(tmp_path / "in", 0), tmp_path / "set", ONE)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("affordable", [1e9, 0])
def test_an_audit_that_was_bounded_says_so_and_still_finds_the_leak(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, affordable: float
) -> None:
    monkeypatch.setattr(divide, "audit", partial(audit.audit, affordable=affordable))
    images = draw(tmp_path / "in")
    with pytest.raises(BadInput, match="the split leaks"):
        pack(images, tmp_path / "set", replace(ONE, near=False))
    capsys.readouterr()
    result = pack(images, tmp_path / "set", replace(ONE, near=False, allow_leaks=True))
    crossing = {row["split"] for row in rows(tmp_path / "set") if "crowd" in row["source"]}
    assert len(crossing) > 1
    assert 0 < result["leaks"] < CROWD * CROWD / 4
    assert read_dataset(tmp_path / "set").audit["pairs_bounded"] == BOUNDED
    assert BOUNDED in capsys.readouterr().err
    sound = pack(images, tmp_path / "sound", ONE)
    assert sound["leaks"] == 0
    assert "pairs_bounded" not in read_dataset(tmp_path / "sound").audit
