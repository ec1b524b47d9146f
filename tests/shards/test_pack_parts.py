"""A packing that several processes share: the same set as from one, and one clear line where they do not fit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.errors import BadInput, EnvironmentFault
from shards.pack import pack
from shards.parts import merge, pack_part, parse_part
from shards.verify import verify
from shards.work import alone, together
from tests.conftest import bloodcell
from tests.shards.packing import ONE, fill, hashes, noise, plain, rejects
from tests.shards.test_pack_resume import kill, left_of, started, wait

OPTIONS = replace(ONE, shard_samples=30)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes in four chunks, and some that cannot be used."""
    return fill(tmp_path / "in", plain(110) | {"a/bad.png": b"", "b/text.jpg": b"text", "b/same.png": noise(1003)})


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_parts_and_merge_make_the_set_that_one_process_makes(images: Path, tmp_path: Path, parts: int) -> None:
    pack(images, tmp_path / "alone", OPTIONS)
    target = tmp_path / "set"
    for part in reversed(range(1, parts + 1)):
        result = pack_part(images, target, OPTIONS, part, parts)
        assert result["missing"] == [number for number in range(1, min(parts, 4) + 1) if number < part]
    merged = merge(target, 1)
    assert (merged["images"], merged["packed"], merged["rejected"]) == (223, 220, 3)
    assert hashes(target) == hashes(tmp_path / "alone")
    assert left_of(target) == []
    assert set(rejects(target)) == {"a/bad.png", "b/text.jpg", "b/same.png"}


def test_parts_at_the_same_time_from_the_command_line(drawn: Path, tmp_path: Path) -> None:
    target = tmp_path / "set"
    words = ["pack", drawn, target, "--shard-samples", 30, "--encode", "webp-lossless", "--workers", 1]
    with (
        started(*words, "--part", "1/2", log=tmp_path / "log1") as one,
        started(*words, "--part", "2/2", log=tmp_path / "log2") as two,
    ):
        assert one.wait() == 0, (tmp_path / "log1").read_text()
        assert two.wait() == 0, (tmp_path / "log2").read_text()
    assert "next: bloodcell merge" in (tmp_path / "log1").read_text() + (tmp_path / "log2").read_text()
    done = bloodcell("merge", target, "--workers", 2)
    assert done.code == 0, done.err
    assert "240 images in = 240 packed + 0 rejected" in done.out
    pack(drawn, tmp_path / "alone", replace(OPTIONS, encode="webp-lossless"))
    assert hashes(target) == hashes(tmp_path / "alone")
    assert verify(target)["ok"]


def test_a_part_that_was_killed_goes_on_and_merge_waits_for_it(drawn: Path, tmp_path: Path) -> None:
    target = tmp_path / "set"
    pack_part(drawn, target, OPTIONS, 2, 2)
    words = ["pack", drawn, target, "--shard-samples", 30, "--part", "1/2", "--workers", 1]
    with started(*words, log=tmp_path / "log") as process:
        wait(lambda: (tmp_path / "set.partial/work/chunk-000000.arrow").exists() or process.poll() is not None)
        kill(process)
    (tmp_path / "set.partial/work/chunk-000002.arrow").unlink(missing_ok=True)  # as if it had been faster
    done = bloodcell("merge", target, "--workers", 1)
    assert done.code == 2
    assert "parts are missing or not finished: 1/2" in done.err
    pack_part(drawn, target, OPTIONS, 1, 2)
    merge(target, 1)
    pack(drawn, tmp_path / "alone", OPTIONS)
    assert hashes(target) == hashes(tmp_path / "alone")


def test_archives_are_unpacked_again_by_each_part(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    content = {}
    for part, count in (("train", 150), ("val", 30), ("test", 30)):
        content[f"{part}_images"] = rng.integers(0, 255, (count, 28, 28, 3), dtype=np.uint8)
        content[f"{part}_labels"] = np.arange(count).reshape(-1, 1) % 3
    np.savez(tmp_path / "set.npz", **content)
    options = replace(OPTIONS, keep_splits=True)
    for part in (1, 2):
        pack_part(tmp_path / "set.npz", tmp_path / "set", options, part, 2)
    merge(tmp_path / "set", 1)
    pack(tmp_path / "set.npz", tmp_path / "alone", options)
    assert hashes(tmp_path / "set") == hashes(tmp_path / "alone")


@pytest.mark.parametrize(
    ("other", "part", "parts", "said"),
    [
        ({"seed": 3}, 2, 2, "--seed: 0 and 3"),
        ({"encode": "png"}, 2, 2, "treatment: "),
        ({"near": False}, 2, 2, "--near: True and False"),
        ({}, 2, 3, "parts: 2 and 3"),
    ],
)
def test_a_part_of_another_packing_is_refused(
    images: Path, tmp_path: Path, other: dict[str, object], part: int, parts: int, said: str
) -> None:
    pack_part(images, tmp_path / "set", OPTIONS, 1, 2)
    before = hashes(tmp_path / "set.partial/work")
    with pytest.raises(BadInput, match=rf"part {part}/{parts} is of another packing than the one begun \({said}"):
        pack_part(images, tmp_path / "set", replace(OPTIONS, **other), part, parts)
    after = hashes(tmp_path / "set.partial/work")
    assert {name: after[name] for name in before} == before


def test_changed_images_are_told_to_parts_and_to_merge(images: Path, tmp_path: Path) -> None:
    pack_part(images, tmp_path / "set", OPTIONS, 1, 2)
    (images / "b/more.png").write_bytes(noise(9000))
    with pytest.raises(BadInput, match=r"of another packing than the one begun \(the images: 223 and 224\)"):
        pack_part(images, tmp_path / "set", OPTIONS, 2, 2)
    with pytest.raises(BadInput, match=r"of other images than there are now.*the images: 223 and 224"):
        merge(tmp_path / "set")
    assert (tmp_path / "set.partial").exists()


def test_merge_without_parts_is_one_line(images: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there are no parts to merge"):
        merge(tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    for text in ("", "0/2", "3/2", "2", "1/0", "a/b", "1/2/3", "-1/2"):
        with pytest.raises(BadInput, match="not a part"):
            parse_part(text)


def test_a_set_that_merge_refuses_can_be_packed_otherwise_without_looking_again(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = replace(OPTIONS, group_pattern="^(.)/")  # a patient for each class: no split can be made
    for part in (1, 2):
        pack_part(images, tmp_path / "set", options, part, 2)
    with pytest.raises(BadInput, match="too few for 3 parts"):
        merge(tmp_path / "set")
    pack(images, tmp_path / "set", replace(options, split="100/0/0"))
    assert "223 of 223 images were examined before" in capsys.readouterr().err
    pack(images, tmp_path / "fresh", replace(options, split="100/0/0"))
    assert hashes(tmp_path / "set") == hashes(tmp_path / "fresh")


def test_parts_of_another_treatment_are_never_cleared_away_by_a_packing(images: Path, tmp_path: Path) -> None:
    pack_part(images, tmp_path / "set", OPTIONS, 1, 2)
    with pytest.raises(BadInput, match="parts of another packing were examined here"):
        pack(images, tmp_path / "set", replace(OPTIONS, encode="png"))
    assert len(list((tmp_path / "set.partial/work").glob("chunk-*.arrow"))) == 2


def test_who_may_work_at_the_same_time(images: Path, tmp_path: Path) -> None:
    target = tmp_path / "set"
    with together(target, 1):
        with together(target, 2):
            pass
        with pytest.raises(EnvironmentFault, match="another process is packing part 1"), together(target, 1):
            pass
        with pytest.raises(EnvironmentFault, match="another process is packing this set"), alone(target):
            pass
    with alone(target), pytest.raises(EnvironmentFault, match="packing or merging this set"), together(target, 1):
        pass
    shutil.rmtree(tmp_path / "set.partial")
    assert left_of(target) == []


def test_part_and_append_are_not_for_one_command(tmp_path: Path) -> None:
    done = bloodcell("pack", tmp_path, tmp_path / "set", "--part", "1/2", "--append")
    assert done.code == 2
    assert "images are appended by one process (--part, --append): choose one" in done.err
