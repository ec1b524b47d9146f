"""Tables, decisions, folders and targets as people leave them: the right set, a warning, or one clear line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import BadInput
from shards.pack import pack
from shards.scan import ScanOptions, scan
from shards.sources import Item, Items, list_folder, list_table
from shards.sources.listing import class_names
from shards.sources.table import read_table
from shards.synth import SynthOptions, synthesise
from tests.shards.packing import ONE, fill, noise, plain, rejects

NAMES = list(plain(4))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Eight images of noise in two classes."""
    return fill(tmp_path / "in", plain(4))


def table(folder: Path, rows: list[str], head: str = "path,label", encoding: str = "utf-8") -> Path:
    """Write a CSV beside the images."""
    path = folder.parent / "t.csv"
    path.write_text("\n".join([head, *rows]) + "\n", encoding=encoding)
    return path


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_tables_of_any_spreadsheet(images: Path, mark: str, encoding: str) -> None:
    written = table(images, [mark.join([name, f" {name[0]} "]) for name in NAMES], f"path{mark}label", encoding)
    assert list_table(images, written).items.distinct("label") == ["a", "b"]


def test_missing_cells_of_a_table_are_no_values(images: Path) -> None:
    columns: dict[str, list[Any]] = {"path": NAMES, "label": [name[0] for name in NAMES]}
    path = images.parent / "t.parquet"
    pq.write_table(pa.table({**columns, "patient": [1.0, *[float("nan")] * 7]}), path)
    assert list(list_table(images, path).items.each("group")) == ["1.0", *[""] * 7]
    pq.write_table(pa.table({**columns, "label": [float("nan"), *[1.0] * 3, *[2.0] * 4]}), path)
    with pytest.raises(BadInput, match="a row has no label"):
        list_table(images, path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (",a", "a row has no path"),
        ("a/000.png,  ", "a row has no label"),
        ("https://example.org/x.png,a", "fetch the images first"),
        ("a\\000.png,a", "write / between the folders"),
        ("x" * 5000 + ",a", "cannot be looked at.*File name too long"),
        ("a,a", "does not exist: a "),
    ],
)
def test_rows_that_name_no_image(images: Path, row: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        list_table(images, table(images, [*(f"{name},{name[0]}" for name in NAMES), row]))


def test_columns_of_one_name_and_of_none(images: Path) -> None:
    with pytest.raises(BadInput, match="two columns are called 'path'"):
        read_table(table(images, ["a,b,c"], "path,path,label"))
    assert read_table(table(images, ["a,b,,"], "path,label,,")).column_names == ["path", "label"]
    with pytest.raises(BadInput, match="in UTF-8"):
        read_table(table(images, ["a,b"], encoding="utf-16"))


@pytest.mark.parametrize("mark", [";", "\t"])
def test_decisions_of_any_spreadsheet(tmp_path: Path, mark: str) -> None:
    files = fill(tmp_path / "in", plain(12))
    rows = [mark.join(row) for row in (("path", "decision", "reason"), ("a/003.png", "drop", "smudge, cut off"))]
    (tmp_path / "d.csv").write_text("\r\n".join(rows), encoding="utf-8-sig")
    pack(files, tmp_path / "set", replace(ONE, decisions=str(tmp_path / "d.csv")))
    assert rejects(tmp_path / "set") == {"a/003.png": ("decision", "smudge, cut off")}


def test_what_would_be_passed_over_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = plain(2) | {"a/x.jfif": noise(50, "JPEG"), "a/y.HEIC": b"x", "a/z.heic": b"x", "b/s.svs": b"x"}
    folder = fill(tmp_path / "in", files)
    for name in ("empty", ".hidden"):
        (folder / name).mkdir()
    assert "a/x.jfif" in list(list_folder(folder).items.each("source"))
    said = capsys.readouterr().err
    assert "formats that are not read are passed over (2 .heic, 1 .svs), first a/y.HEIC" in said
    assert "folders without an image are no classes: empty\n" in said
    split = fill(tmp_path / "split", {f"train/{name}": data for name, data in plain(2).items()})
    (split / "train/c").mkdir()
    list_folder(split)
    assert "are no classes: train/c\n" in capsys.readouterr().err


def test_trash_and_previews_are_no_images_of_the_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = (".Trash-1000/files/x.png", "a/@eaDir/000.png/thumb.jpg", "a/.ipynb_checkpoints/000-checkpoint.png")
    folder = fill(tmp_path / "in", plain(4) | dict.fromkeys(own, noise(0)) | {"a/.hidden.png": noise(60)})
    listing = list_folder(folder)
    assert set(listing.items.each("source")) == {*plain(4), "a/.hidden.png"}
    assert listing.ignored == 3
    said = "3 images in hidden folders are passed over, first .Trash-1000/files/x.png"
    assert said in capsys.readouterr().err


def test_classes_whose_names_look_alike_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("Early", "early ", "e\u0301osinophil", "\u00e9osinophil", "CD4+", "CD4-")
    folder = fill(tmp_path / "in", {f"{name}/x.png": noise(k) for k, name in enumerate(names)})
    pack(folder, tmp_path / "set", replace(ONE, split="100/0/0"))
    said = sorted(line for line in capsys.readouterr().err.splitlines() if "look alike" in line)
    assert len(said) == 2
    assert "'Early' and 'early ' are 2 classes" in said[0]


def test_patients_that_are_asked_for_and_not_found_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{name}/P{k}_{i}.png" for name in "ab" for k in range(6) for i in range(2)]
    files = {name: noise(i) for i, name in enumerate(names)}
    folder = fill(tmp_path / "in", files | {"a/other.png": noise(70), "a/p1_9.png": noise(71)})
    with pytest.raises(BadInput, match=r"finds a group in no path, such as a/P0_0.png .--group-pattern"):
        pack(folder, tmp_path / "set", replace(ONE, group_pattern=r"patient(\d+)"))
    pack(folder, tmp_path / "set", replace(ONE, group_pattern=r"([Pp]\d+)_", split="50/25/25"))
    said = capsys.readouterr().err
    assert "1 of 26 images have no group, first a/other.png" in said
    assert "'P1' and 'p1' are 2 patients or slides though their names look alike" in said


def test_numbers_are_classes_in_their_order() -> None:
    def order(*names: str) -> list[str]:
        return class_names(Items.of(Item(Path(name), name, name, "") for name in names))

    assert order("10", "9", "0", "-1") == ["-1", "0", "9", "10"]
    assert order("10", "9", "x") == ["10", "9", "x"]
    assert order("01", "1", "0") == ["0", "01", "1"]


def test_an_archive_without_images_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", train_images=np.zeros((0, 4, 4), np.uint8), train_labels=np.zeros((0, 1), np.uint8))
    with pytest.raises(BadInput, match=r"the archive holds no images \(.*x.npz"):
        pack(tmp_path / "x.npz", tmp_path / "set", replace(ONE, merge_splits=True))


def packing(source: Path, target: Path) -> None:
    pack(source, target, ONE)


def drawing(_: Path, target: Path) -> None:
    synthesise(target, SynthOptions(images=24))


def scanning(source: Path, target: Path) -> None:
    scan(source, target, ScanOptions(workers=1))


@pytest.mark.parametrize("verb", [packing, scanning, drawing])
@pytest.mark.parametrize("target", [".", "/", "/proc/set", "plain/set", "n" * 250])
def test_where_nothing_can_be_made_is_told_before_any_work(
    tmp_path: Path, verb: Callable[[Path, Path], None], target: str
) -> None:
    (tmp_path / "plain").touch()
    place = Path(target) if target == "." or target.startswith("/") else tmp_path / target
    with pytest.raises(BadInput, match=r"no name for a new folder|nothing can be written|exists"):
        verb(tmp_path / "no images", place)
    assert os.listdir(tmp_path) == ["plain"]


def test_a_scan_of_what_never_decodes_is_one_line(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", {"a/x.png": b"x", "b/y.png": noise(1)[:60]})
    with pytest.raises(BadInput, match=r"none of the 2 images can be decoded, first a/x.png: 1 bytes that no decoder"):
        scan(folder, tmp_path / "scan", ScanOptions(workers=1))
    assert os.listdir(tmp_path) == ["in"]


def test_a_set_of_thumbnails_is_not_tiny_throughout(tmp_path: Path) -> None:
    files = {f"{name}/{i}.png": noise(100 * k + i, width=24) for k, name in enumerate("ab") for i in range(6)}
    folder = fill(tmp_path / "in", files | {"a/tiny.png": noise(999, width=6, height=6)})
    assert scan(folder, tmp_path / "scan", ScanOptions(workers=1))["flags"].get("tiny") == 1


INTERRUPTED = """
import os, signal, time
from shards.parallel import map_ordered, warm_up
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warm_up("shards.write")
    try:
        os.killpg(0, signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        print(*map_ordered(abs, [-1, -2], 2))
"""


def test_an_interrupt_while_workers_begin_is_heard_by_the_command_alone(tmp_path: Path) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env=environment,
        start_new_session=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["1", "2"], "")
