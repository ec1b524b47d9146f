"""Items, images and samples in columns, and records in a file, are what they were made of, whole or in part."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import format as layout
from shards.duplicates import exact_groups
from shards.errors import EnvironmentFault
from shards.examine import Image, Packed
from shards.samples import Sample, Samples
from shards.seen import Images
from shards.sources import Item, Items, as_text
from shards.spooled import Spooled, behind, blocks, chosen, spooled, whole

NAMES = [
    "a/1.png",
    "b/new\nline.png",
    "ü/ß .JPG",
    os.fsdecode(b"a/latin\xe9.png"),
    "b/2.png",
    "a/\N{DNA DOUBLE HELIX}.png",
]
RECORD = np.dtype([("number", "<i8"), ("grid", "u1", (3, 2))])


def items(count: int = 3000) -> list[Item]:
    """Return more items than are made at a time; every sixth name is awkward in its own way."""
    paths = [Path("/data") / str(i) / NAMES[i % len(NAMES)] for i in range(count)]
    return [Item(path, as_text(path), f"c{i % 3}", f"p{i // 7}" if i % 2 else "") for i, path in enumerate(paths)]


def images(count: int = 3000) -> list[Image]:
    """Return images whose digests end in zeros and of several kinds."""
    found = []
    for i, item in enumerate(items(count)):
        digest = f"{i:048x}" + 16 * "0"
        found.append(
            Image(item, digest, digest[::-1], i, 10 + i, 3, 4, "RGB", "PNG", ("EXIF Artist",) if i % 5 else ())
        )
    return found


def samples(count: int = 3000) -> list[Sample]:
    """Return samples of two parts."""
    return [
        Sample(image, f"k{i}", i % 3, image.item.group, "train" if i % 4 else "val")
        for i, image in enumerate(images(count))
    ]


def test_items_images_and_samples_come_back_whole_and_in_part() -> None:
    for columns, objects in (
        (Items.of(item for item in items()), items()),
        (Images.of(images()), images()),
        (Samples.of(samples()), samples()),
    ):
        assert list(columns) == objects
        assert (columns[7], columns[-1], len(columns)) == (objects[7], objects[-1], 3000)
        assert list(columns[1000:2100]) == objects[1000:2100]
        assert list(columns[1000:2100][5:9]) == objects[1005:1009]
        with pytest.raises(IndexError):
            columns[3000]
    assert list(Items.of(items())[5::700]) == items()[5::700]
    assert list(Items.of([])) == list(Images.of([])) == list(Samples.of([])) == []


def test_only_a_window_is_sent_to_another_process() -> None:
    for columns in (Items.of(items()), Images.of(images()), Samples.of(samples())):
        part = columns[2000:2010]
        sent = pickle.dumps(part)
        assert list(pickle.loads(sent)) == list(part)
        assert len(sent) < len(pickle.dumps(columns)) / 20


def test_items_of_a_set_keep_their_place_in_the_tar() -> None:
    packed = [
        Packed(Path("/set/train-0.tar"), "a/1.png", "a", "", "train", key=f"k{i}", offset=i, size=9) for i in range(5)
    ]
    assert list(Items.of(packed)[1:3]) == packed[1:3]


def test_columns_say_what_their_rows_say() -> None:
    order = np.random.default_rng(0).permutation(3000)
    made = images()
    columns, objects = Images.of(made).taken(order), [made[i] for i in order]
    assert list(columns) == objects
    assert columns.texts("group") == [image.item.group for image in objects]
    assert columns.column("size").tolist() == [image.size for image in objects]
    assert list(columns.hexadecimal("sha256")) == [image.sha256 for image in objects]
    assert list(columns.sources()) == [image.item.source for image in objects]
    listed = Items.of(items())
    assert listed.distinct("label") == ["c0", "c1", "c2"]
    assert [item.source for item in listed.by_source()] == sorted(item.source for item in items())


def test_digests_that_end_in_zeros_are_told_apart() -> None:
    digests = ["00" * 32, "01" + "00" * 31, "00" * 31 + "01", "01" + "00" * 31, "00" * 32]
    found = Images.of([Image(item, d, d, 0, 1, 1, 1, "L", "PNG") for item, d in zip(items(5), digests, strict=True)])
    assert exact_groups(found.digests("sha256")) == exact_groups(digests) == [[0, 4], [1, 3]]


def test_an_item_in_columns_takes_little_memory() -> None:
    before = pa.total_allocated_bytes()
    listed = Items.of(items(20_000))
    assert (pa.total_allocated_bytes() - before) / len(listed) < 150


def test_records_in_a_file_read_like_an_array(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    records = np.zeros(10_000, RECORD)
    records["number"], records["grid"] = np.arange(10_000), rng.integers(0, 255, (10_000, 3, 2))
    filed = spooled(np.split(records, [10, 10, 5000]), RECORD, tmp_path / "records.bin")
    assert isinstance(filed, Spooled)
    (tmp_path / "records.bin").unlink()
    rows = rng.integers(0, 10_000, 700)
    few = chosen(filed, rows)
    for found, real in ((filed, records), (few, records[rows])):
        assert len(found) == len(real)
        assert found["grid"].shape == real["grid"].shape
        for part in (slice(0, 0), slice(3, 900), slice(None, None, 7), np.array([5, 2, 5]), np.zeros(0, np.int64)):
            assert np.array_equal(found[part], real[part])
            assert np.array_equal(found["grid"][part], real["grid"][part])
        assert np.array_equal(whole(found["number"]), real["number"])
        assert np.array_equal(np.concatenate(list(blocks(found))), real)
    both = behind(filed, few, "both.bin")
    assert np.array_equal(whole(both), np.concatenate([records, records[rows]]))
    assert np.array_equal(behind(records, few, "none"), np.concatenate([records, records[rows]]))


def test_a_file_of_records_that_was_cut_short_is_told(tmp_path: Path) -> None:
    filed = spooled([np.zeros(100, RECORD)], RECORD, tmp_path / "records.bin")
    os.truncate(tmp_path / "records.bin", 50 * RECORD.itemsize)
    assert len(filed[:50]) == 50
    with pytest.raises(EnvironmentFault, match="cut short"):
        filed[45:55]


def test_the_sample_table_does_not_depend_on_how_its_rows_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are written group by group: the files are those of all rows at once, and single rows can be read again."""
    monkeypatch.setattr(layout, "ROW_GROUP", 16)
    texts = {leaf.name: f"{leaf.name} {{}}" for leaf in layout.SAMPLES_SCHEMA if pa.types.is_string(leaf.type)}
    rows = [
        {leaf.name: texts[leaf.name].format(i) if leaf.name in texts else i for leaf in layout.SAMPLES_SCHEMA}
        for i in range(50)
    ]
    batch = pa.RecordBatch.from_pylist(rows, layout.SAMPLES_SCHEMA)
    written = []
    for size in (50, 7, 16):
        folder = tmp_path / str(size)
        folder.mkdir()
        layout.write_samples(folder, (batch.slice(start, size) for start in range(0, 50, size)), 50)
        written.append([(folder / name).read_bytes() for name in ("samples.parquet", "samples.npy")])
    assert written[0] == written[1] == written[2]
    assert pq.ParquetFile(folder / "samples.parquet").num_row_groups == 4
    assert np.load(folder / "samples.npy")["offset"].tolist() == list(range(50))
    found = layout.read_rows(folder, [49, 3, 17, 3], ["source", "size"]).to_pylist()
    assert found == [{"source": f"source {i}", "size": i} for i in (49, 3, 17, 3)]
    assert layout.read_rows(folder, [], ["key"]).num_rows == 0
