"""Decisions: followed to the letter, refused where they are unclear, and never a way around the groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.clean import clean
from shards.decisions import read_decisions, write_decisions
from shards.errors import BadInput
from shards.examine import examine_all
from shards.sources import list_folder

KNOWN = {"a/1.png", "a/2, \n3.png", "b/4.png"}


def decided(tmp_path: Path, text: str) -> dict[str, str]:
    path = tmp_path / "decisions.csv"
    path.write_text(text, encoding="utf-8")
    return read_decisions(path, KNOWN)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "decisions.csv"
    write_decisions(path, [("a/1.png", "keep", "fine"), ("a/2, \n3.png", "drop", 'a "hair", on it')])
    assert read_decisions(path, KNOWN) == {"a/2, \n3.png": 'a "hair", on it'}


def test_files_as_people_leave_them(tmp_path: Path) -> None:
    text = "\ufeffdecision,path,note\n Drop ,a/1.png,x\n\n,,\ndrop,a/1.png,y\nkeep,b/4.png,\n"
    assert decided(tmp_path, text) == {"a/1.png": ""}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("path,decision,reason\na/9.png,drop,x\n", "not there: a/9.png"),
        ("path,decision,reason\na/1.png,maybe,x\n", "'maybe' is neither keep nor drop"),
        ("path,decision,reason\na/1.png,,x\n", "neither keep nor drop"),
        ("path,decision,reason\na/1.png,drop,x\na/1.png,keep,x\n", "to be kept and to be dropped"),
        ("path,reason\na/1.png,x\n", "no column 'decision'"),
        ("", "no column 'path'"),
    ],
)
def test_unclear_decisions_are_refused(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(BadInput, match=what):
        decided(tmp_path, text)


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_decisions(tmp_path / "missing.csv", KNOWN)
    (tmp_path / "decisions.csv").write_bytes(b"path,decision\n\xff\xfe,drop\n")
    with pytest.raises(BadInput, match="cannot be read"):
        read_decisions(tmp_path / "decisions.csv", KNOWN)


def test_one_side_of_a_contradiction_can_be_saved_and_groups_stay_joined(tmp_path: Path) -> None:
    def picture(number: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(number).integers(0, 255, (24, 24, 3), dtype=np.uint8))

    for name in ("a/p1_0", "a/p1_1", "a/p2_2", "b/p2_3", "b/p3_4"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        # One picture of patient 1 lies under another label and with another patient's name as well.
        picture(0 if name in ("a/p1_0", "b/p2_3") else int(name[-1])).save(path)
    items = list_folder(tmp_path, r"(p\d)_").items
    cleaned = clean(items, examine_all(items, 1), dropped={"b/p2_3.png": "label is wrong"})
    assert [(r.item.source, r.reason, r.detail) for r in cleaned.rejected] == [
        ("b/p2_3.png", "decision", "label is wrong")
    ]
    assert len(cleaned.images) + len(cleaned.rejected) == len(items)
    groups = {image.item.source: group for image, group in zip(cleaned.images, cleaned.groups, strict=True)}
    assert groups["a/p1_0.png"] == groups["a/p1_1.png"] == groups["a/p2_2.png"] == "p1+p2"
    assert {r.reason for r in clean(items, examine_all(items, 1)).rejected} == {"contradicting label"}
