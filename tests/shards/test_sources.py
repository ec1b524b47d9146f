"""Listing images: class folders and tables as people have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.errors import BadInput
from shards.sources import list_folder, list_table


def _touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_class_folders_with_awkward_names(tmp_path: Path) -> None:
    _touch(
        tmp_path, "a b/1.JPG", "a b/.hidden.jpg", "ü/line\nbreak.png", "ü/notes.txt", "ü/deep/2.jpeg", "manifest.csv"
    )
    listing = list_folder(tmp_path)
    assert [item.source for item in listing.items] == [
        "a b/.hidden.jpg",
        "a b/1.JPG",
        "ü/deep/2.jpeg",
        "ü/line\nbreak.png",
    ]
    assert [item.label for item in listing.items] == ["a b", "a b", "ü", "ü"]
    assert listing.ignored == 2


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    _touch(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert {item.source for item in list_folder(tmp_path).items} == {"a/1.jpg", "b/2.jpg"}


def test_linked_class_folders_are_followed(tmp_path: Path) -> None:
    _touch(tmp_path, "store/1.jpg", "set/b/2.jpg")
    (tmp_path / "set" / "a").symlink_to(tmp_path / "store")
    assert [item.label for item in list_folder(tmp_path / "set").items] == ["a", "b"]


def test_groups_from_names(tmp_path: Path) -> None:
    _touch(tmp_path, "a/95-8-10-1_1032_1.jpg", "b/95-8-10-1_7_2.jpg", "b/other.jpg")
    found = {item.source: item.group for item in list_folder(tmp_path, r"([^/]+)_\d+_\d+\.jpg$").items}
    assert found == {"a/95-8-10-1_1032_1.jpg": "95-8-10-1", "b/95-8-10-1_7_2.jpg": "95-8-10-1", "b/other.jpg": ""}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no images here"),
        (["a/1.jpg"], "only one class"),
        (["a/1.jpg", "b/2.jpg", "3.jpg"], "beside the class folders"),
        (["x/a/1.jpg", "x/b/2.jpg"], "two or more folders deep"),
    ],
)
def test_folders_that_will_not_do(tmp_path: Path, names: list[str], message: str) -> None:
    _touch(tmp_path, *names)
    with pytest.raises(BadInput, match=message):
        list_folder(tmp_path)


def test_the_folders_of_a_split(tmp_path: Path) -> None:
    _touch(tmp_path, "TRAIN/a/1.jpg", "TRAIN/b/2.jpg", "Validation/a/deep/3.jpg", "fold_02/b/4.jpg")
    found = [(item.label, item.part) for item in list_folder(tmp_path).items]
    assert found == [("a", "train"), ("b", "train"), ("a", "val"), ("b", "fold2")]


def test_no_folder_and_no_regular_expression(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        list_folder(tmp_path / "nowhere")
    _touch(tmp_path, "file")
    with pytest.raises(BadInput, match="not a folder"):
        list_folder(tmp_path / "file")
    with pytest.raises(BadInput, match="not a regular expression"):
        list_folder(tmp_path, "(")


def test_table_with_groups(tmp_path: Path) -> None:
    _touch(tmp_path, "x/1.jpg", "x/2.jpg")
    (tmp_path / "t.csv").write_text("path,class,patient\nx/2.jpg,b,7\nx/1.jpg,a,\n")
    items = list_table(tmp_path, tmp_path / "t.csv").items
    assert [(item.source, item.label, item.group) for item in items] == [("x/1.jpg", "a", ""), ("x/2.jpg", "b", "7")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,kind\nx/1.jpg,a\n", "no column for labels"),
        ("class\na\n", "no column for image paths"),
        ("path,class\nx/1.jpg,a\nx/9.jpg,b\n", "does not exist: x/9.jpg"),
        ("path,class\nx/1.jpg,a\nx/1.jpg,b\n", "twice"),
        ("path,class\nx/1.jpg,a\nx/2.jpg,\n", "no label"),
        ("", "cannot be read"),
    ],
)
def test_tables_that_will_not_do(tmp_path: Path, text: str, message: str) -> None:
    _touch(tmp_path, "x/1.jpg", "x/2.jpg")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(BadInput, match=message):
        list_table(tmp_path, tmp_path / "t.csv")
