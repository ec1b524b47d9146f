"""Leave one source out, a fixed test set kept apart, and what is said of a split."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bloodcell.data.shardset import ShardSet
from shards.bysource import leave_source_out, source_of
from shards.errors import BadInput
from shards.format import read_dataset, read_samples
from shards.pack import PackOptions, pack
from shards.split import split
from shards.verify import verify
from shards.ways import deviations, split_lines
from tests.conftest import bloodcell

ONE = PackOptions(workers=1)


def noise(number: int) -> Image.Image:
    """Return a picture of noise, another for each number: no two of them are near-duplicates."""
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (24, 24, 3), dtype=np.uint8))


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def fill(root: Path, counts: dict[str, int], first: int = 0) -> Path:
    """Write so many pictures of noise into each folder below `root`."""
    for number, (folder, i) in enumerate((folder, i) for folder, n in counts.items() for i in range(n)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / f"{i:03d}.png").write_bytes(png(noise(first + number)))
    return root


def by_split(folder: Path) -> dict[str, set[str]]:
    """Return split -> sources of its images."""
    info, sources = read_dataset(folder), read_samples(folder)["source"].to_pylist()
    return {name: {sources[i] for first, last in info.ranges(name) for i in range(first, last)} for name in info.splits}


def rejects(folder: Path) -> dict[str, tuple[str, str]]:
    with open(folder / "rejected.csv", newline="", encoding="utf-8") as file:
        return {row["source"]: (row["reason"], row["detail"]) for row in csv.DictReader(file)}


@pytest.fixture
def hospitals(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Three folders of two classes."""
    return (
        fill(tmp_path / "aachen", {"a": 12, "b": 12}),
        fill(tmp_path / "berlin", {"a": 10, "b": 20}, 1000),
        fill(tmp_path / "celle", {"a": 9, "b": 9}, 2000),
    )


def test_each_source_is_tested_once_and_never_trained_on_meanwhile(
    hospitals: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    first, *others = hospitals
    also = [word for other in others for word in ("--also", other)]
    done = bloodcell("pack", first, tmp_path / "set", *also, "--leave-source-out", "--split", "75/25/0", "--workers", 1)
    assert done.code == 0, done.err
    assert "sources left out: fold0 aachen, fold1 berlin, fold2 celle" in done.out
    info, found = read_dataset(tmp_path / "set"), by_split(tmp_path / "set")
    assert info.split["sources"] == {"fold0": "aachen", "fold1": "berlin", "fold2": "celle"}
    assert sorted(found) == sorted(f"fold{k}/{part}" for k in range(3) for part in ("train", "val", "test"))
    everything = set().union(*found.values())
    assert len(everything) == 72
    for k, name in enumerate(("aachen", "berlin", "celle")):
        train, val, test = (found[f"fold{k}/{part}"] for part in ("train", "val", "test"))
        assert test == {source for source in everything if source.startswith(f"{name}/")}
        assert len(train) + len(val) + len(test) == 72
        assert train | val | test == everything
        assert {source.split("/")[0] for source in val} == {"aachen", "berlin", "celle"} - {name}
    assert len(found["fold2/val"]) == 6 + 7
    assert max(abs(v) for row in info.split["deviations"].values() for v in row.values()) == info.split["deviation"]
    assert verify(tmp_path / "set")["ok"]
    opened = ShardSet.open(tmp_path / "set")
    assert opened.split_name("test", 2) == "fold2/test"
    with pytest.raises(BadInput, match="3 folds"):
        opened.split_name("test", 3)
    page = (tmp_path / "set" / "report.html").read_text()
    assert "sources left out" in page
    assert "--leave-source-out" in page


def test_sources_from_a_pattern_a_column_and_a_definition(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", {"a": 20, "b": 20})
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        path.rename(path.with_name(f"dev{number % 2}_{path.name}"))
    leave = replace(ONE, leave_source_out=True)
    by_pattern = pack(root, tmp_path / "pattern", replace(leave, source_pattern=r"(dev\d)_"))
    assert by_pattern["split"]["sources"] == {"fold0": "dev0", "fold1": "dev1"}
    table = tmp_path / "table.csv"
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    rows = [f"{path},{path[0]},{'north' if 'dev1' in path else 'south'}" for path in paths]
    table.write_text("\n".join(["path,label,clinic", *rows]))
    by_column = pack(root, tmp_path / "column", replace(leave, table=str(table), source_column="clinic"))
    assert by_column["split"]["sources"] == {"fold0": "north", "fold1": "south"}
    (tmp_path / "own.toml").write_text("title = 'own'\nsource = '(?P<source>dev[0-9])_'\n")
    by_definition = pack(root, tmp_path / "defined", replace(leave, dataset=str(tmp_path / "own.toml")))
    assert by_definition["splits"] == by_pattern["splits"]
    assert by_split(tmp_path / "defined") == by_split(tmp_path / "pattern")
    (tmp_path / "bad.toml").write_text("title = 'own'\nsource = '(?P<device>dev[0-9])_'\n")
    with pytest.raises(BadInput, match="no part named source"):
        pack(root, tmp_path / "set", replace(leave, dataset=str(tmp_path / "bad.toml")))
    with pytest.raises(BadInput, match="did you mean 'clinic'"):
        pack(root, tmp_path / "set", replace(leave, table=str(table), source_column="klinic"))


def test_a_class_of_one_source_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = fill(tmp_path / "x", {"a": 8, "b": 8, "c": 8})
    second = fill(tmp_path / "y", {"a": 8, "b": 8}, 500)
    pack(first, tmp_path / "set", replace(ONE, also=(str(second),), leave_source_out=True))
    said = "class 'c' is in the source 'x' alone: fold 0 is tested on it and cannot train on it"
    assert said in capsys.readouterr().err
    assert said in read_dataset(tmp_path / "set").split["warnings"]


def test_a_group_that_spans_sources_is_refused_and_named(hospitals: tuple[Path, Path, Path], tmp_path: Path) -> None:
    first, second, _ = hospitals
    picture = Image.open(first / "a" / "000.png")
    picture.rotate(90).save(second / "a" / "turned.png")
    options = replace(ONE, also=(str(second),), leave_source_out=True)
    with pytest.raises(BadInput, match=r"1 groups .*span sources.*aachen.*berlin.*--decisions"):
        pack(first, tmp_path / "set", options)
    assert not (tmp_path / "set").exists()
    # A byte-identical copy is left out as anywhere; what remains belongs to one source.
    (second / "a" / "turned.png").write_bytes((first / "a" / "000.png").read_bytes())
    pack(first, tmp_path / "set", options)
    assert set(rejects(tmp_path / "set")) == {"berlin/a/turned.png"}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(1, 4)), min_size=6, max_size=40),
    st.integers(0, 9),
)
def test_sources_and_groups_are_never_cut(units: list[tuple[int, int, int]], seed: int) -> None:
    rows = [(label, f"g{n}", f"s{source}") for n, (label, source, size) in enumerate(units) for _ in range(size)]
    labels, groups, origins = ([row[i] for row in rows] for i in range(3))
    keys = [f"k{i}" for i in range(len(rows))]
    if len(set(origins)) < 2:
        with pytest.raises(BadInput, match="only one source"):
            leave_source_out(labels, groups, keys, origins, {"train": 0.8, "val": 0.2}, seed, ["a", "b", "c"])
        return
    made = leave_source_out(labels, groups, keys, origins, {"train": 0.8, "val": 0.2}, seed, ["a", "b", "c"])
    parts = [made.parts[place] for place in made.assignment]
    for group in set(groups):
        assert len({part for part, other in zip(parts, groups, strict=True) if other == group}) == 1
    names = sorted(set(origins))
    for part, origin in zip(parts, origins, strict=True):
        assert source_of(part) == f"source{names.index(origin)}"
    # What is validated on in a source can be trained on in it.
    seen = {(part.split("-")[0], part.split("-")[1], label) for part, label in zip(parts, labels, strict=True)}
    assert all((source, "train", label) in seen for source, part, label in seen if part == "val")


def test_a_fixed_root_stays_untouched_and_what_it_shares_is_left_out(
    hospitals: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    first, second, _ = hospitals  # aachen comes first by name, but what it shares with the test set must give way
    original = second / "a" / "000.png"
    (first / "a" / "copy.png").write_bytes(original.read_bytes())
    (first / "b" / "other-label.png").write_bytes((second / "a" / "001.png").read_bytes())
    Image.open(second / "b" / "002.png").transpose(Image.Transpose.ROTATE_180).save(first / "b" / "turned.png")
    for folder, name in ((first, "003"), (first, "004"), (second, "003")):
        (folder / "a" / f"{name}.png").rename(folder / "a" / f"p7_{name}.png")
    words = ("--also", second, "--test-from", "berlin", "--group-pattern", r"(p\d+)_", "--split", "75/25/0")
    done = bloodcell("pack", first, tmp_path / "set", *words, "--workers", 1, "--json")
    assert done.code == 0, done.err
    found = by_split(tmp_path / "set")
    assert list(found) == ["train", "val", "test"]
    assert len(found["test"]) == 30
    assert all(source.startswith("berlin/") for source in found["test"])
    assert not any(source.startswith("berlin/") for source in found["train"] | found["val"])
    left = rejects(tmp_path / "set")
    assert {source: reason for source, (reason, _) in left.items()} == {
        "aachen/a/copy.png": "in the fixed test set",
        "aachen/b/other-label.png": "in the fixed test set",
        "aachen/b/turned.png": "shared with the fixed test set",
        "aachen/a/p7_003.png": "shared with the fixed test set",
        "aachen/a/p7_004.png": "shared with the fixed test set",
    }
    assert left["aachen/a/copy.png"][1] == "same picture as berlin/a/000.png"
    assert "p7" in left["aachen/a/p7_003.png"][1]
    assert done.json["images"] == done.json["packed"] + done.json["rejected"] == 24 + 3 + 30
    assert done.json["leaks"] == 0
    assert done.json["split"]["fixed_test"] == "berlin"
    assert done.json["split"]["method"] == "stratified, grouped, beside a fixed test set"
    assert set(done.json["split"]["deviations"]) == {"train", "val"}
    assert verify(tmp_path / "set")["ok"]


def test_a_fixed_part_and_a_fixed_list_beside_folds(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", {"TRAIN/a": 12, "TRAIN/b": 12, "TEST/a": 4, "TEST/b": 4})
    pack(root, tmp_path / "part", replace(ONE, test_from="test", split="50/50/0"))
    found = by_split(tmp_path / "part")
    assert found["test"] == {f"TEST/{name}/{i:03d}.png" for name in "ab" for i in range(4)}
    assert (len(found["train"]), len(found["val"])) == (12, 12)
    listed = tmp_path / "list.csv"
    listed.write_text("path\nTEST/a/000.png\nTRAIN/b/001.png\nTRAIN/b/002.png\n")
    with pytest.raises(BadInput, match="in a split"):
        pack(root, tmp_path / "set", replace(ONE, test_from=str(listed)))
    pack(root, tmp_path / "folds", replace(ONE, test_from=str(listed), folds=3, merge_splits=True))
    found = by_split(tmp_path / "folds")
    fixed = {"TEST/a/000.png", "TRAIN/b/001.png", "TRAIN/b/002.png"}
    assert found["fixed_test"] == fixed
    for k in range(3):
        own = [found[f"fold{k}/{part}"] for part in ("train", "val", "test")]
        assert sum(map(len, own)) == len(set().union(*own)) == 29
        assert not fixed & set().union(*own)
    opened = ShardSet.open(tmp_path / "folds")
    assert opened.split_name("fixed_test", 1) == "fixed_test"
    assert opened.split_name("test", 1) == "fold1/test"
    assert read_dataset(tmp_path / "folds").split["fixed_test"] == "list.csv"
    assert verify(tmp_path / "folds")["ok"]


def test_a_fixed_test_beside_sources(hospitals: tuple[Path, Path, Path], tmp_path: Path) -> None:
    first, second, third = hospitals
    options = replace(ONE, also=(str(second), str(third)), test_from="berlin", leave_source_out=True)
    assert pack(first, tmp_path / "set", options)["split"]["sources"] == {"fold0": "aachen", "fold1": "celle"}
    found = by_split(tmp_path / "set")
    assert len(found["fixed_test"]) == 30
    assert len(found["fold0/test"]) == 24
    assert all(source.startswith("celle/") for source in found["fold0/train"] | found["fold0/val"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_from": "bonn"}, "no root or part is called 'bonn'.*choose one of aachen, berlin"),
        ({"test_from": "brlin"}, "did you mean 'berlin'"),
        ({"test_from": "nowhere.csv"}, "cannot be read"),
        ({"test_from": "list.csv"}, "2 paths are no images here, first berlin/a/xyz.png.*did you mean 'berlin/a/"),
        ({"test_from": "other.csv"}, "no column for image paths"),
        ({"test_from": "berlin", "keep_splits": True}, "kept or --test-from divides anew"),
        ({"leave_source_out": True, "keep_splits": True}, "kept or --leave-source-out divides anew"),
        ({"leave_source_out": True, "folds": 5}, "each source is a fold already"),
        ({"leave_source_out": True, "split": "100/0/0"}, "leaves too little"),
        ({"leave_source_out": True, "source_pattern": "(berlin)"}, "24 images have no source, first aachen_a_000"),
        ({"leave_source_out": True, "source_pattern": "png"}, "only one source .'png'"),
        ({"leave_source_out": True, "source_pattern": "("}, "not a regular expression.*--source-pattern"),
        ({"leave_source_out": True, "source_column": "clinic"}, "read from a table only"),
        ({"source_pattern": "(a)"}, "named and not used"),
        ({"test_from": "berlin", "split": "0/0/100"}, "leaves too little"),
    ],
)
def test_ways_that_will_not_do(
    hospitals: tuple[Path, Path, Path],
    tmp_path: Path,
    options: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.csv").write_text("path\nberlin/a/000.png\nberlin/a/xyz.png\nberlin/b/xyz.png\n")
    Path("other.csv").write_text("name\nberlin/a/000.png\n")
    with pytest.raises(BadInput, match=message):
        pack(hospitals[0], tmp_path / "set", replace(ONE, also=(str(hospitals[1]),), **options))
    assert not (tmp_path / "set").exists()


def test_a_fixed_test_set_that_cannot_be_read_or_is_everything(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", {"a": 8, "b": 8})
    listed = tmp_path / "list.csv"
    (root / "a" / "000.png").write_bytes(b"no picture")
    listed.write_text("path\na/000.png\n")
    with pytest.raises(BadInput, match="no image of the fixed test set can be used"):
        pack(root, tmp_path / "set", replace(ONE, test_from=str(listed)))
    listed.write_text("path\n" + "".join(f"{n}/{i:03d}.png\n" for n in "ab" for i in range(8)))
    with pytest.raises(BadInput, match="every image is in the fixed test set"):
        pack(root, tmp_path / "set", replace(ONE, test_from=str(listed)))


def test_deviations_are_those_of_each_part_and_class() -> None:
    labels = [0] * 10 + [1] * 4
    parts = ["train"] * 7 + ["test"] * 3 + ["train"] * 2 + ["test"] * 2
    found = deviations(labels, parts, ["train", "test"], {"train": 0.8, "test": 0.2}, ["a", "b", "none"])
    assert found == {"train": {"a": -0.1, "b": -0.3}, "test": {"a": 0.1, "b": 0.3}}
    assert split_lines({"deviations": found}) == ["largest difference from an asked share: +30.00 points (b in test)"]
    made = split(labels, [""] * 14, [str(i) for i in range(14)], {"train": 0.8, "test": 0.2}, 0, ["a", "b"])
    own = [made.parts[place] for place in made.assignment]
    found = deviations(labels, own, made.parts, {"train": 0.8, "test": 0.2}, ["a", "b"])
    assert max(abs(v) for row in found.values() for v in row.values()) == pytest.approx(made.deviation, abs=1e-6)


def test_the_deviation_is_printed_stored_and_in_the_report(small_set: Path) -> None:
    split_ = read_dataset(small_set).split
    values = [abs(v) for row in split_["deviations"].values() for v in row.values()]
    assert max(values) == pytest.approx(split_["deviation"], abs=1e-6)
    assert set(split_["deviations"]) == {"train", "val", "test"}
    page = (small_set / "report.html").read_text()
    assert "Difference from the asked share" in page


def swapped(table: Path, folder: Path, out: Path) -> Path:
    """Write the table of a packed set with one of two near-duplicates moved from train to test."""
    rows = read_samples(folder, ["source", "class", "split", "group"]).to_pylist()
    moved = next(row for row in rows if row["group"].startswith("near:") and row["split"] == "train")
    moved["split"] = "test"
    columns = {"path": "source", "label": "class", "split": "split"}
    pa.csv.write_csv(pa.table({name: [row[key] for row in rows] for name, key in columns.items()}), out)
    return out


def check_swap(images: Path, tmp_path: Path, **options: Any) -> None:
    pack(images, tmp_path / "sound", replace(ONE, workers=2, **options))
    table = swapped(tmp_path / "sound", tmp_path / "sound", tmp_path / "swapped.csv")
    with pytest.raises(BadInput, match=r"the split leaks: \d+ times.*(near|group)"):
        pack(images, tmp_path / "set", replace(ONE, workers=2, table=str(table), keep_splits=True))
    # The audit alone, which knows nothing of the groups, sees it too.
    with pytest.raises(BadInput, match=r"the split leaks: \d+ times.*near"):
        pack(images, tmp_path / "set", replace(ONE, workers=2, table=str(table), keep_splits=True, near=False))
    assert not (tmp_path / "set").exists()


def test_one_duplicate_swapped_over_makes_packing_refuse(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", {"a": 20, "b": 20})
    for i in range(6):
        Image.open(root / "a" / f"{i:03d}.png").rotate(90).save(root / "a" / f"turned{i}.png")
    check_swap(root, tmp_path)


@pytest.mark.realdata
def test_all4_with_one_duplicate_swapped_over_is_refused(real_data: Path, tmp_path: Path) -> None:
    check_swap(real_data / "all4", tmp_path)
