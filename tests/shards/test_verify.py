"""Verifying a set: a sound one passes, and whatever is changed in any of its files is found and named."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shards.errors import BadInput
from shards.format import (
    SAMPLES_SCHEMA,
    DatasetInfo,
    ShardInfo,
    fingerprint,
    read_dataset,
    read_samples,
    write_dataset,
    write_samples,
)
from shards.tar import BLOCK, ShardWriter
from shards.verify import verify

CLASSES = ["blast", "lymphocyte"]
PLAN = [("train", 7), ("train", 6), ("val", 4), ("test", 5)]
"""Part and number of samples of each shard."""


def draw(number: int, kind: str) -> bytes:
    """Return a small image, another for each number."""
    file = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 255, (6, 6 + number, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


def write_shard(path: Path, position: int, part: str, first: int, count: int) -> tuple[ShardInfo, list[dict[str, Any]]]:
    """Write one shard as the packer does and return its entry and its rows of the sample table."""
    rows = []
    with ShardWriter(path) as writer:
        for number in range(first, first + count):
            kind, extension = [("JPEG", "jpg"), ("PNG", "png")][number % 2]
            image, label = draw(number, kind), number % 2
            row: dict[str, Any] = {"key": f"cell_{number:03d}", "split": part, "label": label, "class": CLASSES[label]}
            row |= {"group": "" if number % 3 else f"patient_{part}", "source": f"é/{number}.{extension}"}
            row |= {"sha256": hashlib.sha256(image).hexdigest(), "width": 6 + number, "height": 6}
            row |= {"mode": "RGB", "format": kind}
            text = json.dumps(row, ensure_ascii=False).encode()
            placed = writer.add(row["key"], [(extension, image), ("cls", b"%d" % label), ("json", text)])
            place = {"shard": position, "offset": placed[0].offset, "size": len(image), "crc32": zlib.crc32(image)}
            rows.append(row | place)
    summary = writer.close()
    return ShardInfo(path.name, part, count, summary.bytes, summary.sha256, first), rows


def write_set(folder: Path) -> DatasetInfo:
    """Write a sound set of four shards in three parts."""
    folder.mkdir()
    shards: list[ShardInfo] = []
    rows: list[dict[str, Any]] = []
    for position, (part, count) in enumerate(PLAN):
        path = folder / f"{part}-{position:06d}.tar"
        shard, more = write_shard(path, position, part, len(rows), count)
        shards.append(shard)
        rows += more
    write_samples(folder, [pa.RecordBatch.from_pylist(rows, schema=SAMPLES_SCHEMA)], len(rows))
    info = describe(shards, rows)
    rejected = ["source,class,reason,detail", "blast/a.jpg,blast,empty,0 bytes", "blast/b.jpg,blast,empty,0 bytes"]
    (folder / "rejected.csv").write_text("\n".join(rejected) + "\n")
    write_dataset(folder, info)
    return info


def describe(shards: list[ShardInfo], rows: list[dict[str, Any]]) -> DatasetInfo:
    """Return the dataset.json of these shards and rows."""
    parts = list(dict.fromkeys(part for part, _ in PLAN))
    counts = {
        part: {name: sum(r["split"] == part and r["class"] == name for r in rows) for name in CLASSES} for part in parts
    }
    return DatasetInfo(
        classes=CLASSES,
        shards=shards,
        splits={part: [shard.file for shard in shards if shard.part == part] for part in parts},
        samples=counts,
        split={},
        audit={"leaks": 0},
        options={},
        images_in=len(rows) + 2,
        rejected=2,
        fingerprint=fingerprint(CLASSES, [(row["split"], row["label"], row["sha256"]) for row in rows]),
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound set that no test may change."""
    folder = tmp_path_factory.mktemp("sound") / "set"
    write_set(folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of the sound set."""
    return Path(shutil.copytree(sound, tmp_path / "set"))


def owner(folder: Path, file: str, position: int) -> str:
    """Return the key of the sample in whose range a byte lies, empty behind the last one."""
    shard = next(s for s in read_dataset(folder).shards if s.file == file)
    rows = read_samples(folder).slice(shard.first, shard.samples).to_pylist()
    padded = [sum(BLOCK + -(-size // BLOCK) * BLOCK for size in sizes(folder, row)) for row in rows]
    for row, length in zip(rows, padded, strict=True):
        if row["offset"] - BLOCK <= position < row["offset"] - BLOCK + length:
            return str(row["key"])
    return ""


def sizes(folder: Path, row: dict[str, Any]) -> list[int]:
    """Return the sizes of the members of a sample, from the index beside its tar."""
    lines = [line for path in sorted(folder.glob("*.idx")) for line in path.read_text().splitlines()[1:]]
    words = next(line.split() for line in lines if line.split()[3].startswith(f"{row['key']}."))
    return [int(size) for size in words[2::4]]


def flip(path: Path, position: int, mask: int) -> None:
    """Change one byte of a file in place."""
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(data)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sound_set_passes(sound: Path, workers: int) -> None:
    size = sum(path.stat().st_size for path in sound.glob("*.tar"))
    assert verify(sound, workers) == {
        "ok": True,
        "samples": 22,
        "shards": 4,
        "bytes": size,
        "bad_shards": [],
        "problems": [],
    }


def test_a_flipped_byte_is_found_anywhere_and_named(folder: Path) -> None:
    file = "train-000001.tar"
    path, noise = folder / file, random.Random(1)
    whole = path.read_bytes()
    first = read_samples(folder).slice(7, 1).to_pylist()[0]["offset"] - BLOCK
    spots = [*range(first, first + 600, 11), *noise.sample(range(len(whole)), 100), len(whole) - 1]
    owners = {spot: owner(folder, file, spot) for spot in spots}
    assert "" in owners.values()
    assert len(set(owners.values())) == 7
    for spot in spots:
        flip(path, spot, noise.randint(1, 255))
        result = verify(folder)
        assert not result["ok"]
        assert [(bad["file"], bad["key"]) for bad in result["bad_shards"]] == [(file, owners[spot])], spot
        assert any(file in line and owners[spot] in line for line in result["problems"])
        path.write_bytes(whole)


@pytest.mark.parametrize("first", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_every_byte_of_label_and_json_counts(folder: Path, first: int) -> None:
    file = "val-000002.tar"
    path = folder / file
    whole = path.read_bytes()
    row = read_samples(folder).slice(13, 1).to_pylist()[0]
    image, _, text = sizes(folder, row)
    label_at = row["offset"] + -(-image // BLOCK) * BLOCK + BLOCK
    text_at = label_at + 2 * BLOCK
    assert whole[text_at] == ord("{")
    assert whole[text_at + text - 1] == ord("}")
    for spot in [label_at, *range(text_at + first, text_at + text, 3)]:
        flip(path, spot, 0x29 if whole[spot] == 0x20 else 0x20)  # a space becomes a tab, a letter its other case
        bad = verify(folder)["bad_shards"]
        assert [(b["file"], b["key"]) for b in bad] == [(file, row["key"])], spot
        path.write_bytes(whole)


@pytest.mark.parametrize("workers", [1, 2])
def test_all_bad_shards_are_named_in_one_go(folder: Path, workers: int) -> None:
    table = read_samples(folder).to_pylist()
    flip(folder / "train-000000.tar", table[3]["offset"] + 5, 1)
    flip(folder / "train-000000.tar", table[5]["offset"] + 5, 1)
    (folder / "val-000002.tar").unlink()
    test = folder / "test-000003.tar"
    test.write_bytes(test.read_bytes()[: table[19]["offset"] + 10])
    result = verify(folder, workers)
    named = {bad["file"]: bad["key"] for bad in result["bad_shards"]}
    assert named == {"train-000000.tar": "cell_003", "val-000002.tar": "cell_013", "test-000003.tar": "cell_019"}
    assert any("cell_005" in line for line in result["problems"])
    assert any("val-000002.tar" in line and "missing" in line for line in result["problems"])
    assert all("pack the set again" in line for line in result["problems"] if "more problems" not in line)


@pytest.mark.parametrize("cut", ["nothing left", "inside a header", "at a sample", "in the end"])
def test_truncation_is_found_wherever_the_file_ends(folder: Path, cut: str) -> None:
    path = folder / "train-000000.tar"
    rows = read_samples(folder).to_pylist()
    start = rows[4]["offset"] - BLOCK
    keep = {"nothing left": 0, "inside a header": start + 9, "at a sample": start, "in the end": -1}[cut]
    key = {"nothing left": "cell_000", "in the end": ""}.get(cut, "cell_004")
    path.write_bytes(path.read_bytes()[:keep])
    assert [(b["file"], b["key"]) for b in verify(folder)["bad_shards"]] == [("train-000000.tar", key)]


def test_bytes_behind_the_end_are_found(folder: Path) -> None:
    with open(folder / "train-000000.tar", "ab") as file:
        file.write(bytes(BLOCK))
    assert [bad["file"] for bad in verify(folder)["bad_shards"]] == ["train-000000.tar"]


def test_a_shard_swapped_for_another_is_found(folder: Path) -> None:
    shutil.copy(folder / "train-000000.tar", folder / "train-000001.tar")
    assert [(b["file"], b["key"]) for b in verify(folder)["bad_shards"]] == [("train-000001.tar", "cell_007")]


def test_a_damaged_index_is_named_with_the_line(folder: Path) -> None:
    index = folder / "test-000003.idx"
    index.write_text(index.read_text().replace("cls", "csl", 2).replace("csl", "cls", 1))
    bad = verify(folder)["bad_shards"]
    assert [(b["file"], b["key"]) for b in bad] == [("test-000003.tar", "cell_017")]
    assert "line 2" in bad[0]["problem"]
    shutil.copy(folder / "val-000002.idx", index)
    assert [b["file"] for b in verify(folder)["bad_shards"]] == ["test-000003.tar"]
    index.unlink()
    assert "cannot be read" in verify(folder)["bad_shards"][0]["problem"]


def test_stray_files_are_named(folder: Path) -> None:
    (folder / "train-000009.tar").touch()
    (folder / "train-000010.tar.partial").touch()
    problems = verify(folder)["problems"]
    assert [line.split()[0] for line in problems] == ["train-000009.tar", "train-000010.tar.partial"]


Rows = list[dict[str, Any]]


def change(row: int, name: str, value: object) -> Callable[[Rows], None]:
    """Return a change of one cell of the table."""
    return lambda rows: rows[row].update({name: value})


TABLE_CHANGES = {
    "label": (change(2, "label", 1), "cell_002"),
    "label out of range": (change(2, "label", 7), "cell_002"),
    "class": (change(2, "class", "lymphocyte"), "cell_002"),
    "unknown class": (change(2, "class", "monocyte"), "cell_002"),
    "part": (change(2, "split", "val"), "cell_002"),
    "shard": (change(2, "shard", 1), "cell_002"),
    "offset": (change(2, "offset", 512 * 9), "cell_002"),
    "offset near by": (change(2, "offset", 512 * 16), "cell_002"),
    "negative offset": (change(2, "offset", -BLOCK), "cell_002"),
    "far offset": (change(2, "offset", 1 << 50), "cell_002"),
    "size": (change(2, "size", 11), "cell_002"),
    "crc32": (change(2, "crc32", 11), "cell_002"),
    "sha256": (change(2, "sha256", "0" * 64), "cell_002"),
    "width": (change(2, "width", 11), "cell_002"),
    "source": (change(2, "source", "x"), "cell_002"),
    "group": (change(2, "group", "x"), "cell_002"),
    "key": (change(2, "key", "cell_x"), "cell_x"),
    "key twice": (change(2, "key", "cell_001"), "cell_001"),
    "key of other letters": (change(2, "key", "Cell"), "Cell"),
    "empty cell": (change(2, "label", None), "label"),
    "order": (lambda rows: rows.insert(2, rows.pop(3)), "cell_003"),
}


@pytest.mark.parametrize("name", TABLE_CHANGES)
def test_a_changed_table_is_found(folder: Path, name: str) -> None:
    changed, said = TABLE_CHANGES[name]
    index = (folder / "samples.npy").read_bytes()
    rows = read_samples(folder).to_pylist()
    changed(rows)
    table = pa.Table.from_pylist(rows, schema=SAMPLES_SCHEMA)
    if name != "empty cell":
        write_samples(folder, table.to_batches(), table.num_rows)  # the index agrees with the changed table
    else:
        pq.write_table(table, folder / "samples.parquet")
    result = verify(folder)
    assert not result["ok"]
    assert any(said in line for line in result["problems"]), result["problems"]
    assert all(said == bad["key"] for bad in result["bad_shards"] if name != "empty cell")
    (folder / "samples.npy").write_bytes(index)
    assert not verify(folder)["ok"]


@pytest.mark.parametrize("damage", ["missing", "truncated", "a row less", "other columns", "garbage inside"])
def test_without_a_usable_table_the_tars_are_still_checked(folder: Path, damage: str) -> None:
    path, table = folder / "samples.parquet", read_samples(folder)
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "garbage inside":
        data = path.read_bytes()
        path.write_bytes(data[:4] + bytes(255 - byte for byte in data[4:400]) + data[400:])
    else:
        pq.write_table(table.slice(1) if damage == "a row less" else table.drop(["mode"]), path)
    flip(folder / "val-000002.tar", table["offset"][14].as_py() + 3, 1)
    result = verify(folder)
    assert any("samples.parquet" in line for line in result["problems"])
    assert [bad["file"] for bad in result["bad_shards"]] == ["val-000002.tar"]


def test_a_changed_index_of_samples_is_found(folder: Path) -> None:
    flip(folder / "samples.npy", (folder / "samples.npy").stat().st_size - 1, 1)
    assert any("samples.npy" in line and "cell_021" in line for line in verify(folder)["problems"])
    (folder / "samples.npy").write_bytes(b"")
    assert any("samples.npy" in line for line in verify(folder)["problems"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"fingerprint": "0" * 64}, "fingerprint"),
        ({"images_in": 23}, "23 images came in"),
        ({"classes": ["lymphocyte", "blast"]}, "label and class"),
        ({"samples": {"train": {"blast": 7, "lymphocyte": 6}, "val": {"blast": 2, "lymphocyte": 2}}}, "part test"),
        ({"splits": {"train": ["train-000007.tar"]}}, "train-000007.tar"),
        (
            {"splits": {"train": ["test-000003.tar"], "val": ["val-000002.tar"], "test": ["test-000003.tar"]}},
            "split train",
        ),
        ({"splits": {"train": ["train-000000.tar", "train-000001.tar"], "val": ["val-000002.tar"]}}, "split test"),
    ],
)
def test_a_dataset_json_that_does_not_fit_is_found(folder: Path, changed: dict[str, Any], said: str) -> None:
    write_dataset(folder, replace(read_dataset(folder), **changed))
    result = verify(folder)
    assert not result["ok"]
    assert any(said in line for line in result["problems"]), result["problems"]


@pytest.mark.parametrize("changed", [{"sha256": "0" * 64}, {"bytes": 512}, {"bytes": 1 << 30}, {"part": "val"}])
def test_a_shard_entry_that_does_not_fit_is_found(folder: Path, changed: dict[str, Any]) -> None:
    info = read_dataset(folder)
    write_dataset(folder, replace(info, shards=[replace(info.shards[0], **changed), *info.shards[1:]]))
    assert any("train-000000.tar" in line or "cell_000" in line for line in verify(folder)["problems"])


@pytest.mark.parametrize(
    "changed", [{"file": "../x.tar"}, {"samples": -1}, {"bytes": "12"}, {"file": "val-000002.tar"}]
)
def test_an_impossible_dataset_json_is_refused(folder: Path, changed: dict[str, Any]) -> None:
    info = read_dataset(folder)
    write_dataset(folder, replace(info, shards=[replace(info.shards[0], **changed), *info.shards[1:]]))
    with pytest.raises(BadInput):
        verify(folder)


@pytest.mark.parametrize("rows", ["", "source,class,reason,detail\na,b,empty,0 bytes\n", "junk\n1\n2\n", None])
def test_a_list_of_rejected_images_that_does_not_fit_is_found(folder: Path, rows: str | None) -> None:
    (folder / "rejected.csv").unlink()
    if rows is not None:
        (folder / "rejected.csv").write_text(rows)
    assert any("rejected.csv" in line for line in verify(folder)["problems"])


def leak(folder: Path, leaks: int) -> None:
    """Rewrite the set so that a patient of train has samples in test, everything else being consistent."""
    rows = read_samples(folder).to_pylist()
    for row in rows:
        if row["group"]:
            row["group"] = "patient_x"
    shards = []
    for shard in read_dataset(folder).shards:
        with ShardWriter(folder / shard.file) as writer:
            for row in rows[shard.first : shard.first + shard.samples]:
                number = int(row["key"][-3:])
                extension = {"JPEG": "jpg", "PNG": "png"}[row["format"]]
                text = json.dumps({name: row[name] for name in ("key", "label", "class", "group")}).encode()
                members = [(extension, draw(number, row["format"])), ("cls", b"%d" % row["label"]), ("json", text)]
                row["offset"] = writer.add(row["key"], members)[0].offset
        summary = writer.close()
        shards.append(replace(shard, bytes=summary.bytes, sha256=summary.sha256))
    write_samples(folder, [pa.RecordBatch.from_pylist(rows, schema=SAMPLES_SCHEMA)], len(rows))
    write_dataset(folder, replace(describe(shards, rows), audit={"leaks": leaks}))


def test_a_group_in_two_parts_is_found(folder: Path) -> None:
    leak(folder, 0)
    assert [line.split(":")[0] for line in verify(folder)["problems"]] == [
        "group patient_x lies in more than one part (test, train, val)"
    ]


def test_a_set_that_admits_its_leaks_is_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leak(folder, 1)
    assert verify(folder)["ok"]


def test_an_image_in_two_parts_is_found(folder: Path) -> None:
    rows = read_samples(folder).to_pylist()
    rows[20]["sha256"] = rows[0]["sha256"]
    write_samples(folder, [pa.RecordBatch.from_pylist(rows, schema=SAMPLES_SCHEMA)], len(rows))
    assert any("the image with sha256" in line and "(test, train)" in line for line in verify(folder)["problems"])


def test_no_set_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no shard set"):
        verify(tmp_path)
