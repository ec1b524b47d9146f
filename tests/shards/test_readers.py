"""What others read from a packed set: webdataset, timm, DALI, tar and our own reader agree, sample by sample."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bloodcell.data.shardset import Reader, ShardSet
from shards.format import read_dataset, read_samples
from shards.images import EXTENSIONS, decode
from shards.pack import PackOptions, pack
from shards.synth import SynthOptions, synthesise

Seen = dict[str, tuple[bytes, int]]
"""Key -> image bytes, label."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn images as JPEG, PNG and BMP, grey, CMYK, 16-bit, with palettes and EXIF rotation."""
    folder = tmp_path_factory.mktemp("readers") / "images"
    synthesise(folder, SynthOptions(images=70, size=48, patients=12, odd_formats=21, seed=8))
    return folder


@pytest.fixture(scope="module")
def packed(images: Path) -> Path:
    """These images packed in several shards for each part."""
    target = images.with_name("set")
    pack(images, target, PackOptions(split="60/20/20", shard_samples=12, workers=1))
    return target


@pytest.fixture(scope="module")
def table(packed: Path) -> dict[str, dict[str, Any]]:
    """The sample table by key."""
    return {row["key"]: row for row in read_samples(packed).to_pylist()}


@pytest.fixture(scope="module")
def originals(images: Path, packed: Path, table: dict[str, dict[str, Any]]) -> Seen:
    """What each sample must be: the bytes of its file and the place of its folder's name among the classes."""
    classes = read_dataset(packed).classes
    return {
        key: ((images / row["source"]).read_bytes(), classes.index(row["source"].split("/")[0]))
        for key, row in table.items()
    }


def tars(packed: Path, split: str) -> list[str]:
    """Return the paths of a split's shards."""
    return [str(packed / shard.file) for shard in read_dataset(packed).shards_of(split)]


def part(originals: Seen, table: dict[str, dict[str, Any]], split: str) -> Seen:
    """Return the samples of one split."""
    return {key: value for key, value in originals.items() if table[key]["split"] == split}


def test_the_set_has_what_readers_stumble_over(packed: Path, table: dict[str, dict[str, Any]]) -> None:
    kinds = {(row["format"], row["mode"]) for row in table.values()}
    assert {("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "RGB"), ("BMP", "RGB")} <= kinds
    assert len(tars(packed, "train")) > 2


def test_our_reader(packed: Path, originals: Seen) -> None:
    shards = ShardSet.open(packed)
    reader = Reader(shards)
    seen = {key: (reader.read(i).tobytes(), int(shards.index["label"][i])) for i, key in enumerate(shards.keys)}
    reader.close()
    assert seen == originals


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_webdataset_with_its_ordinary_decoders(
    packed: Path, originals: Seen, table: dict[str, dict[str, Any]], split: str
) -> None:
    import webdataset as wds

    expected = part(originals, table, split)
    raw = {s["__key__"]: s for s in wds.WebDataset(tars(packed, split), shardshuffle=False)}
    keys = list(raw)
    assert {k: (next(s[e] for e in EXTENSIONS.values() if e in s), int(s["cls"])) for k, s in raw.items()} == expected
    classes = read_dataset(packed).classes
    for key, sample in raw.items():
        said = json.loads(sample["json"])
        assert (said["key"], said["label"], said["class"]) == (key, expected[key][1], classes[expected[key][1]])
        assert all(table[key][name] == value for name, value in said.items())
    pairs = list(wds.WebDataset(tars(packed, split), shardshuffle=False).decode("pil").to_tuple("jpg;png;bmp", "cls"))
    assert len(pairs) == len(expected)
    for key, (image, label) in zip(keys, pairs, strict=True):
        assert label == expected[key][1]
        plain = Image.open(io.BytesIO(expected[key][0])).convert("RGB")
        assert (np.asarray(image) == np.asarray(plain)).all()


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_timm(packed: Path, originals: Seen, table: dict[str, dict[str, Any]], split: str) -> None:
    from timm.data.readers import create_reader

    expected = part(originals, table, split)
    last = len(tars(packed, split)) - 1
    shards = f"{split}-{{000000..{last:06d}}}.tar|{len(expected)}"
    options = {"root": str(packed), "split": shards, "input_key": "jpg;png;bmp"}
    reader = create_reader("wds/set", **options)
    names = [name.removesuffix(".JPEG") for name in reader.filenames()]
    found = list(create_reader("wds/set", **options))
    assert len(reader) == len(found) == len(expected)
    assert sorted(names) == sorted(expected)
    for key, (image, label) in zip(names, found, strict=True):
        assert label == expected[key][1]
        plain = Image.open(io.BytesIO(expected[key][0])).convert("RGB")
        assert (np.asarray(image) == np.asarray(plain)).all()


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_dali_with_our_index(packed: Path, originals: Seen, table: dict[str, dict[str, Any]], split: str) -> None:
    from nvidia.dali import fn, pipeline_def, types

    expected = part(originals, table, split)
    paths = tars(packed, split)

    @pipeline_def(batch_size=len(expected), num_threads=1, device_id=None)  # type: ignore[untyped-decorator]
    def graph() -> Any:
        image, label, row = fn.readers.webdataset(  # type: ignore[misc]
            paths=paths,
            index_paths=[path.replace(".tar", ".idx") for path in paths],
            ext=["jpg;png;bmp", "cls", "json"],
            missing_component_behavior="error",
        )
        return image, label, row, fn.decoders.image(image, output_type=types.RGB)

    pipeline = graph()
    pipeline.build()
    encoded, labels, described, pixels = pipeline.run()
    seen: Seen = {}
    for i in range(len(expected)):
        key = json.loads(np.asarray(described[i]).tobytes())["key"]
        seen[key] = (np.asarray(encoded[i]).tobytes(), int(np.asarray(labels[i]).tobytes()))
        ours = decode(seen[key][0])[0].astype(int)
        assert np.asarray(pixels[i]).shape == ours.shape == (table[key]["height"], table[key]["width"], 3)
        assert np.abs(np.asarray(pixels[i]) - ours).max() <= 1
    assert seen == expected


def test_the_index_is_that_of_dalis_own_tool(packed: Path, tmp_path: Path) -> None:
    import wds2idx  # type: ignore[import-untyped]

    for path in sorted(packed.glob("*.tar")):
        with wds2idx.IndexCreator(str(path), str(tmp_path / "theirs.idx"), verbose=False) as creator:
            creator.create_index()
        assert path.with_suffix(".idx").read_bytes() == (tmp_path / "theirs.idx").read_bytes()


def test_tar_lists_and_unpacks(packed: Path, originals: Seen, table: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    names: list[str] = []
    for path in sorted(packed.glob("*.tar")):
        listed = subprocess.run(["tar", "tf", path], capture_output=True, text=True, check=True)
        assert listed.stderr == ""
        names += listed.stdout.split()
        subprocess.run(["tar", "xf", path, "-C", tmp_path], check=True)
    extensions = {key: EXTENSIONS[row["format"]] for key, row in table.items()}
    assert sorted(names) == sorted(f"{key}.{end}" for key in table for end in (extensions[key], "cls", "json"))
    for key, (data, label) in originals.items():
        assert (tmp_path / f"{key}.{extensions[key]}").read_bytes() == data
        assert (tmp_path / f"{key}.cls").read_text() == str(label)
