"""Appending: old samples stay as they are, new ones go where they may, and until the end the set reads as it was."""

from __future__ import annotations

import io
import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bloodcell.data.shardset import Reader, ShardSet
from shards.append import append
from shards.errors import BadInput, EnvironmentFault
from shards.format import open_index, read_dataset
from shards.pack import PackOptions, pack
from shards.report import command
from shards.synth import SynthOptions, synthesise
from shards.verify import verify
from shards.work import alone
from tests.conftest import bloodcell
from tests.shards.packing import ONE, fill, hashes, noise, plain, rejects, rows
from tests.shards.test_pack_resume import kill, left_of, started, wait

OPTIONS = replace(ONE, shard_samples=20)
PATIENT = "_(p[0-9]+)"


def turned(number: int) -> bytes:
    """Return the picture `noise(number)` on its side."""
    file = io.BytesIO()
    Image.open(io.BytesIO(noise(number))).transpose(Image.Transpose.ROTATE_90).save(file, "PNG")
    return file.getvalue()


def fresh(count: int, classes: str = "ab", first: int = 7000) -> dict[str, bytes]:
    """Return `count` pictures for each class that no other test has."""
    return {f"{c}/new{i}.png": noise(first + 1000 * p + i) for p, c in enumerate(classes) for i in range(count)}


@pytest.fixture
def grown(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Pack 80 pictures of two classes and append others; give the set and what append said."""

    def make(files: dict[str, bytes], old: PackOptions = OPTIONS, **options: Any) -> tuple[Path, dict[str, Any]]:
        target = tmp_path / "set"
        pack(fill(tmp_path / "old", plain(40)), target, old)
        return target, append(fill(tmp_path / "new", files), target, replace(ONE, **options))

    return make


@pytest.mark.parametrize("old", [{"split": "80/10/10"}, {"folds": 5}, {"split": "50/25/25"}], ids=str)
def test_old_samples_stay_and_the_whole_has_the_shares_it_was_to_have(tmp_path: Path, old: dict[str, Any]) -> None:
    target = tmp_path / "set"
    pack(fill(tmp_path / "old", plain(40)), target, replace(OPTIONS, **old))
    before, table, info = hashes(target), rows(target), read_dataset(target)
    result = append(fill(tmp_path / "new", fresh(30)), target, ONE)
    assert result["appended"].items() >= {"images_in": 60, "packed": 60, "rejected": 0, "first": 80}.items()
    assert (result["images"], result["packed"], result["rejected"]) == (140, 140, 0)
    after = hashes(target)
    assert {name: after[name] for name in before if name.endswith((".tar", ".idx"))}.items() <= before.items()
    assert rows(target)[:80] == table
    now = read_dataset(target)
    assert now.shards[: len(info.shards)] == info.shards
    assert all(shard.first >= 80 for shard in now.shards[len(info.shards) :])
    for part, share in info.split["fractions"].items():
        for name in "ab":
            assert now.samples[part][name] == pytest.approx(70 * share, abs=1)
    assert now.split["deviation"] < 0.02
    assert now.extra["appended"][0]["before"] == info.fingerprint != now.fingerprint
    assert verify(target)["ok"]
    assert left_of(target) == []
    assert command(now).endswith(" && bloodcell pack new SET --append")
    shards = ShardSet.open(target)
    assert shards.info.count("train" if "folds" not in old else "fold0/train") > 0
    reader = Reader(shards)
    assert len([reader.read(sample) for sample in range(140)]) == 140
    assert sorted({int(i) for split in now.splits for a, b in now.ranges(split) for i in range(a, b)}) == [*range(140)]


def test_what_the_set_has_already_is_rejected_with_its_name(grown: Callable[..., tuple[Path, dict[str, Any]]]) -> None:
    bmp = io.BytesIO()
    Image.open(io.BytesIO(noise(5))).save(bmp, "BMP")
    files = fresh(3) | {
        "a/again.png": noise(3),
        "a/other.bmp": bmp.getvalue(),
        "b/wrong.png": noise(4),
        "a/000.png": noise(7500),  # the name of another picture of the set
        "a/twin1.png": noise(7501),
        "a/twin2.png": noise(7501),
        "a/two.png": noise(7502),
        "b/two.png": noise(7502),
        "b/empty.png": b"",
    }
    target, result = grown(files)
    left = rejects(target)
    assert left == {
        "a/again.png": ("exact duplicate", "same bytes as a/003.png of the set"),
        "a/other.bmp": ("exact duplicate", "same pixels as a/005.png of the set"),
        "b/wrong.png": ("contradicting label", "one picture: a/004.png of the set, which is a"),
        "a/twin2.png": ("exact duplicate", "same bytes as a/twin1.png"),
        "a/two.png": ("contradicting label", "one picture: a/two.png, b/two.png"),
        "b/two.png": ("contradicting label", "one picture: a/two.png, b/two.png"),
        "b/empty.png": ("empty", "0 bytes"),
    }
    assert result["appended"]["rejected"] == 7
    assert result["appended"]["packed"] == len(files) - 7
    keys = [row["key"] for row in rows(target)]
    assert len(set(keys)) == len(keys) == 80 + len(files) - 7
    assert result["duplicates"]["exact_duplicates"] == 3
    assert result["duplicates"]["contradictions"] == 3
    assert verify(target)["ok"]


def test_near_duplicates_of_old_images_go_to_their_part(grown: Callable[..., tuple[Path, dict[str, Any]]]) -> None:
    target, result = grown(fresh(2) | {f"a/side{i:02d}.png": turned(i) for i in range(40)})
    table = {row["source"]: row for row in rows(target)}
    assert result["appended"]["packed"] == 44
    for i in range(40):
        twin, row = table[f"a/{i:03d}.png"], table[f"a/side{i:02d}.png"]
        assert row["split"] == twin["split"]
        assert row["group"] == f"near:a/{i:03d}.png"
    assert result["leaks"] == 0
    assert result["duplicates"]["near_clusters"] == 40


def test_patients_of_the_set_stay_in_their_part_and_nothing_links_two(tmp_path: Path) -> None:
    def files(first: int, patients: list[str]) -> dict[str, bytes]:
        return {f"{'ab'[i % 2]}/{first + i}_{name}.png": noise(first + i) for i, name in enumerate(patients)}

    old = files(100, [f"p{i // 2}" for i in range(80)])
    target = tmp_path / "set"
    pack(fill(tmp_path / "old", old), target, replace(OPTIONS, group_pattern=PATIENT))
    part = {row["group"]: row["split"] for row in rows(target)}
    one = next(name for name in part if part[name] == "val")
    two = next(name for name in part if part[name] == "test")
    number = next(100 + i for i in range(80) if f"p{i // 2}" == two)
    new = files(500, [one, "p900", one, "p900", "p901", "p902"])
    new |= {"a/linking_p901.png": turned(number), f"a/bridge_{one}.png": turned(number + 1)}
    new |= {"a/same_p903.png": noise(number), "a/follows_p903.png": noise(600)}
    result = append(fill(tmp_path / "new", new), target, replace(ONE, group_pattern=PATIENT))
    table = {row["source"]: row for row in rows(target)[80:]}
    left = rejects(target)
    # The bridge binds its patient, whose other images come with it, to the part of the picture that it shows.
    assert {name for name, (reason, _) in left.items() if reason == "links two parts"} == {
        f"a/bridge_{one}.png",
        f"a/500_{one}.png",
        f"a/502_{one}.png",
    }
    assert "(test)" in left[f"a/bridge_{one}.png"][1]
    assert "(val)" in left[f"a/bridge_{one}.png"][1]
    assert left["a/same_p903.png"][0] == "exact duplicate"
    linked = ("a/linking_p901.png", "a/504_p901.png", "a/follows_p903.png")
    assert {table[name]["split"] for name in linked} == {"test"}
    assert {table[name]["group"] for name in linked[:2]} == {"+".join(sorted([two, "p901"]))}
    assert table["b/501_p900.png"]["split"] == table["b/503_p900.png"]["split"]
    assert result["appended"]["images_in"] == len(new) == result["appended"]["packed"] + result["appended"]["rejected"]
    assert result["leaks"] == 0
    assert verify(target)["ok"]


def test_the_patients_of_the_set_are_found_in_new_images_too(tmp_path: Path) -> None:
    def files(first: int) -> dict[str, bytes]:
        return {f"{'ab'[k % 2]}/{first}_p{k}.png": noise(first + k) for k in range(20)}

    target = tmp_path / "set"
    pack(fill(tmp_path / "old", files(100)), target, replace(ONE, group_pattern=PATIENT))
    append(fill(tmp_path / "new", files(300)), target, ONE)
    parts = {(row["group"], row["split"]) for row in rows(target)}
    assert len(rows(target)) == 40
    assert len(parts) == 20
    with pytest.raises(BadInput, match=r"finds a group in no path, such as a/new0.png"):
        append(fill(tmp_path / "nameless", fresh(1)), target, ONE)
    lines = ["path,label,patient", *(f"{name},{name[0]},{name.split('_')[1]}" for name in files(100))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    pack(tmp_path / "old", tmp_path / "other", replace(ONE, table=str(tmp_path / "t.csv")))
    with pytest.raises(BadInput, match=r"has patients or slides \(such as .*none of the new images names one"):
        append(tmp_path / "nameless", tmp_path / "other", ONE)
    assert append(tmp_path / "nameless", tmp_path / "other", replace(ONE, group_pattern=".+"))["packed"] == 22


@pytest.mark.parametrize("beside", [{}, {"folds": 4}], ids=str)
def test_nothing_joins_a_fixed_test_set(tmp_path: Path, beside: dict[str, Any]) -> None:
    target, fixed = (
        tmp_path / "set",
        fill(tmp_path / "fixed", {f"{c}/t{i}_p7.png": noise(4000 + i) for i, c in enumerate("ab")}),
    )
    options = replace(OPTIONS, also=(str(fixed),), test_from="fixed", group_pattern=PATIENT, **beside)
    pack(fill(tmp_path / "old", plain(20)), target, options)
    new = fresh(2) | {"a/side.png": turned(4000), "b/same.png": noise(4001), "a/more_p7.png": noise(4100)}
    result = append(fill(tmp_path / "new", new), target, replace(ONE, group_pattern=PATIENT))
    assert {name: reason for name, (reason, _) in rejects(target).items()} == {
        "a/side.png": "shared with the fixed test set",
        "a/more_p7.png": "shared with the fixed test set",
        "b/same.png": "exact duplicate",
    }
    assert result["appended"]["packed"] == 4
    assert sum(row["source"].startswith("fixed/") for row in rows(target)) == 2
    assert sum(row["split"] == ("fixed_test" if beside else "test") for row in rows(target)) == 2
    assert verify(target)["ok"]


def test_nothing_joins_the_test_part_of_an_official_split(tmp_path: Path) -> None:
    target = tmp_path / "set"
    tested = {f"test/{c}/{i}.png": noise(500 + 50 * p + i) for p, c in enumerate("ab") for i in range(9)}
    old = {f"train/{name}": data for name, data in plain(20).items()} | tested
    pack(fill(tmp_path / "old", old), target, replace(OPTIONS, keep_splits=True))
    before = read_dataset(target).samples["test"]
    for count in range(2):
        new = fresh(8, first=7000 + 100 * count) | {"a/side.png": turned(500)}
        result = append(fill(tmp_path / f"new{count}", new), target, ONE)
        assert result["appended"]["packed"] == 16
        assert result["splits"]["test"] == before
        assert rejects(target)["a/side.png"][0] == "shared with the fixed test set"
    assert sum(read_dataset(target).split["fractions"].values()) == pytest.approx(1)
    assert verify(target)["ok"]


def test_a_set_may_grow_several_times(tmp_path: Path) -> None:
    target = tmp_path / "set"
    pack(fill(tmp_path / "old", plain(40)), target, OPTIONS)
    for count in range(3):
        new = {f"a/{i:03d}.png": noise(8000 + 100 * count + i) for i in range(10)}  # the same names each time
        result = append(fill(tmp_path / f"new{count}", new), target, ONE)
        assert result["appended"]["packed"] == 10
        assert result["appended"]["first"] == 80 + 10 * count
    info = read_dataset(target)
    assert [entry["source"] for entry in info.extra["appended"]] == ["new0", "new1", "new2"]
    assert len({row["key"] for row in rows(target)}) == 110
    assert info.images_in == 110
    assert verify(target)["ok"]


def test_new_images_are_treated_like_those_of_the_set(tmp_path: Path) -> None:
    target = tmp_path / "set"
    pack(fill(tmp_path / "old", plain(20)), target, replace(OPTIONS, encode="webp-lossless", max_side=12))
    append(fill(tmp_path / "new", fresh(5)), target, ONE)
    table = rows(target)
    assert len(table) == 50
    assert {row["format"] for row in table} == {"WEBP"}
    assert {max(row["width"], row["height"]) for row in table} == {12}
    assert verify(target)["ok"]


@pytest.mark.parametrize(
    ("files", "options", "said"),
    [
        ({"c/1.png": noise(1)}, {}, "the set has no class 'c'"),
        ({"A/1.png": noise(7000)}, {}, r"the set has no class 'A' .*did you mean 'a'|its classes are a, b"),
        ({"a/1.png": noise(1), "a/2.png": b""}, {}, r"nothing to append: 2 images in, all rejected \(1 empty, 1 exact"),
        ({"a/1.png": noise(7000)}, {"split": "50/25/25"}, r"the set was packed otherwise \(--split\).*'80/10/10'"),
        ({"a/1.png": noise(7000)}, {"encode": "png"}, r"packed otherwise \(--encode\).*'keep'"),
        ({"a/1.png": noise(7000)}, {"folds": 4}, r"packed otherwise \(--folds\)"),
        ({"a/1.png": noise(7000)}, {"keep_splits": True}, "what is appended is divided like the set"),
    ],
)
def test_what_cannot_be_appended_leaves_the_set_as_it_was(
    tmp_path: Path, files: dict[str, bytes], options: dict[str, Any], said: str
) -> None:
    target = tmp_path / "set"
    pack(fill(tmp_path / "old", plain(40)), target, OPTIONS)
    before = hashes(target)
    with pytest.raises(BadInput, match=said):
        append(fill(tmp_path / "new", files), target, replace(ONE, **options))
    assert hashes(target) == before
    assert left_of(target) == []


def test_without_a_set_nothing_is_made(tmp_path: Path) -> None:
    fill(tmp_path / "new", fresh(2))
    with pytest.raises(BadInput, match="no shard set here"):
        append(tmp_path / "new", tmp_path / "deep" / "set", ONE)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_damaged_image_of_the_set_is_named(tmp_path: Path) -> None:
    target = tmp_path / "set"
    pack(fill(tmp_path / "old", plain(40)), target, OPTIONS)
    row = rows(target)[33]
    tar = target / read_dataset(target).shards[row["shard"]].file
    data = bytearray(tar.read_bytes())
    data[row["offset"] + 99] ^= 1
    tar.write_bytes(data)
    before = hashes(target)
    with pytest.raises(BadInput, match=f"sample {row['key']} is not as it was packed .*bloodcell verify"):
        append(fill(tmp_path / "new", fresh(3)), target, ONE)
    assert hashes(target) == before
    assert left_of(target) == []


def test_a_leak_is_refused_unless_allowed(tmp_path: Path) -> None:
    target = tmp_path / "set"
    pack(fill(tmp_path / "old", plain(40)), target, replace(OPTIONS, near=False))
    before = hashes(target)
    new = fill(tmp_path / "new", {f"a/side{i:02d}.png": turned(i) for i in range(40)})
    with pytest.raises(BadInput, match=r"the split leaks: \d+ times, first a/.*, near"):
        append(new, target, ONE)
    assert hashes(target) == before
    result = append(new, target, replace(ONE, allow_leaks=True))
    assert result["leaks"] > 5
    assert read_dataset(target).leaks


def appended(images: Path, old: Path, new: Path, target: Path, **options: Any) -> None:
    """Make `target` of a copy of the set `old` and the images `new`."""
    shutil.copytree(old, target)
    append(new, target, replace(ONE, **options))


@pytest.mark.parametrize(
    "reached", ["a shard", "all shards", "samples.parquet", "samples.npy", "rejected.csv", "report"]
)
def test_until_dataset_json_is_replaced_the_set_reads_as_it_was(
    tmp_path: Path, reached: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old, whole, target = tmp_path / "whole0", tmp_path / "whole", tmp_path / "set"
    pack(fill(tmp_path / "old", plain(40) | {"a/bad.png": b""}), old, OPTIONS)
    new = fill(tmp_path / "new", fresh(30) | {"b/bad.png": b""})
    appended(tmp_path, old, new, whole)
    shutil.copytree(old, target)
    there = {path.name for path in old.iterdir()}
    shards = sorted(path.name for path in whole.glob("*.*") if path.name not in there)
    files = [*shards, "samples.parquet", "samples.npy", "rejected.csv", "report.html"]
    last = {"a shard": 1, "all shards": len(shards)}.get(reached) or next(
        i for i, name in enumerate(files, 1) if name.startswith(reached)
    )
    for name in files[:last]:
        shutil.copy(whole / name, target / name)
    fill(tmp_path / "set.partial", {"work/work.json": b"{}"})
    info = read_dataset(target)
    assert len(ShardSet.open(target).index) == len(open_index(target, info)) == 80
    assert rows(target) == rows(old)
    assert ShardSet.open(target).table(["key"]).num_rows == 80
    (tmp_path / "set.partial/work/work.json").write_text(
        '{"format": "bloodcell-packing", "version": 1, "examination": {}, "options": {}, "images": 1, "listing": ""}'
    )
    assert verify(target)["ok"]
    assert "an append was cut short" in capsys.readouterr().err
    append(new, target, ONE)
    assert hashes(target) == hashes(whole)
    assert left_of(target) == []


@pytest.mark.parametrize(
    "seed", [1, 2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_killed_at_random_moments_the_grown_set_is_the_same(tmp_path: Path, seed: int) -> None:
    old, whole, target = tmp_path / "whole0", tmp_path / "whole", tmp_path / "set"
    pack(fill(tmp_path / "old", plain(100)), old, OPTIONS)
    new = fill(tmp_path / "new", fresh(150))
    appended(tmp_path, old, new, whole, shard_samples=5)
    shutil.copytree(old, target)
    rng = random.Random(seed)
    for last in (False, False, True):
        words = ["pack", new, target, "--append", "--shard-samples", 5, "--workers", 1 + seed % 2]
        with started(*words, log=tmp_path / "log") as process:
            wait(lambda: (tmp_path / "set.partial/work").exists() or process.poll() is not None)
            if not last:
                time.sleep(rng.uniform(0, 0.5))
                kill(process)
            if process.wait() == 0:
                break
        assert verify(target)["ok"]
        assert len(rows(target)) in (200, 500)
    assert process.returncode == 0, (tmp_path / "log").read_text()
    assert hashes(target) == hashes(whole)
    assert left_of(target) == []


def test_a_kill_after_the_last_step_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "set"
    pack(fill(tmp_path / "old", plain(40)), target, OPTIONS)
    shutil.copy(target / "dataset.json", tmp_path / "before.json")
    new = fill(tmp_path / "new", fresh(10))
    shutil.copytree(target, tmp_path / "other")
    with started("pack", new, tmp_path / "other", "--append", "--workers", 1, log=tmp_path / "log") as process:
        wait(lambda: (tmp_path / "other.partial/work/work.json").exists() or process.poll() is not None)
        kill(process)
    append(new, target, ONE)
    done = hashes(target)
    (tmp_path / "other.partial").rename(tmp_path / "set.partial")  # as if it had not been cleared away
    result = append(new, target, ONE)
    assert "these images were appended before" in capsys.readouterr().err
    assert result["appended"]["packed"] == 20
    assert hashes(target) == done
    assert left_of(target) == []


def test_other_images_after_an_append_that_was_cut_short(tmp_path: Path) -> None:
    target = tmp_path / "set"
    pack(fill(tmp_path / "old", plain(40)), target, OPTIONS)
    shutil.copytree(target, tmp_path / "clean")
    first, second = fill(tmp_path / "first", fresh(40)), fill(tmp_path / "second", fresh(10, first=7600))
    append(first, target, replace(ONE, shard_samples=5))
    shutil.copy(tmp_path / "clean/dataset.json", target / "dataset.json")  # its last step did not come
    append(second, target, ONE)
    append(second, tmp_path / "clean", ONE)
    assert hashes(target) == hashes(tmp_path / "clean")


def test_on_a_full_disk_the_set_stays_and_the_append_goes_on(tmpfs: Path, tmp_path: Path) -> None:
    target = tmpfs / "set"
    pack(fill(tmp_path / "old", plain(20)), target, OPTIONS)
    old = rows(target)
    ballast, new = tmpfs / "ballast", fill(tmp_path / "new", fresh(20))
    faults = 0
    while len(rows(target)) == 40:
        ballast.write_bytes(b"")
        ballast.write_bytes(bytes(max(0, shutil.disk_usage(tmpfs).free - 40 * 1024 * (faults + 1))))
        try:
            append(new, target, ONE)
        except EnvironmentFault:
            faults += 1
            assert verify(target)["ok"]
            assert rows(target) == old
        assert faults < 30
    assert faults >= 3
    assert verify(target)["ok"]
    assert len(rows(target)) == 80


def test_the_command_says_what_came_of_it(tmp_path: Path) -> None:
    target = tmp_path / "set"
    pack(fill(tmp_path / "old", plain(40)), target, OPTIONS)
    new = fill(tmp_path / "new", fresh(5, "a") | {"a/bad.png": b""})  # one class will do
    with alone(target, new=False):
        assert bloodcell("pack", new, target, "--append").code == 3
    done = bloodcell("pack", new, target, "--append", "--workers", 2)
    assert done.code == 0, done.err
    assert "appended: 6 images in = 5 packed + 1 rejected\n" in done.out
    assert "the whole set: 86 images in = 85 packed + 1 rejected\n" in done.out
    assert bloodcell("verify", target).code == 0


@pytest.mark.slow
def test_a_grown_set_can_be_trained_on(drawn: Path, tmp_path: Path) -> None:
    target = tmp_path / "set"
    pack(drawn, target, OPTIONS)
    synthesise(tmp_path / "new", SynthOptions(images=60, size=48, patients=6, seed=5))
    append(tmp_path / "new", target, ONE)
    flags = ["--data.size", 32, "--train.epochs", 1, "--tracking.wandb", "off"]
    done = bloodcell("train", "cnn5", "--data", target, "--run", tmp_path / "run", *flags)
    assert done.code == 0, done.err
    evaluated = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert evaluated["splits"]["test"]["samples"] == read_dataset(target).count("test") > 24
