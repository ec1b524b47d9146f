"""`bloodcell bench pack` and `bench near`: rows that are complete and true, and writers that write the same samples."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from jobs.bench import near
from jobs.bench.watched import watched
from jobs.bench.writers import sources, write_gnu_tar, write_ours, write_webdataset
from shards.errors import BadInput, Fault
from tests.conftest import bloodcell

FIELDS = {"name", "value", "unit", "low", "high", "baseline", "ratio"}


def contents(path: Path) -> dict[str, bytes]:
    """Return the members of a tar."""
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def test_writers_write_the_same_samples(drawn: Path, tmp_path: Path) -> None:
    samples = sources(drawn)[::20]
    assert len(samples) == 12
    ours, theirs, gnu = (contents(w(samples, tmp_path)) for w in (write_ours, write_webdataset, write_gnu_tar))
    assert list(ours) == [f"{sample.key}.{kind}" for sample in samples for kind in ("jpg", "cls", "json")]
    assert ours.keys() == theirs.keys()
    for sample in samples:
        image = sample.path.read_bytes()
        assert ours[f"{sample.key}.jpg"] == theirs[f"{sample.key}.jpg"] == image
        assert gnu[sample.path.relative_to(drawn).as_posix()] == image
        assert int(ours[f"{sample.key}.cls"]) == int(theirs[f"{sample.key}.cls"]) == sample.label
        assert json.loads(ours[f"{sample.key}.json"]) == json.loads(theirs[f"{sample.key}.json"]) == sample.row
    assert len(gnu) == len(samples)
    assert {path.name for path in tmp_path.iterdir()} == {"ours.tar", "ours.idx", "webdataset-000000.tar", "gnu.tar"}


def test_a_file_that_changes_during_the_benchmark_is_noticed(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    copy = tmp_path / "images" / "a" / "x.jpg"
    copy.write_bytes(next(drawn.glob("*/*.jpg")).read_bytes())
    samples = sources(tmp_path / "images")
    copy.write_bytes(copy.read_bytes() + b"more")
    with pytest.raises(Fault, match="changed"):
        write_ours(samples, tmp_path)


def test_a_quick_run_of_pack_has_every_row() -> None:
    done = bloodcell("bench", "pack", "--quick", "--json")
    assert done.code == 0, done.err
    assert done.json["command"] == "bloodcell bench pack --quick"
    assert all(set(row) == FIELDS for row in done.json["rows"])
    rows = {row["name"]: row for row in done.json["rows"]}
    compared = {
        "webdataset ShardWriter, then fsync": [
            "bloodcell ShardWriter",
            "webdataset ShardWriter, then fsync",
            "GNU tar, image files alone, then fsync",
        ],
        "bloodcell pack, 1 worker on 1 core": [
            "bloodcell pack, 1 worker on 1 core",
            "bloodcell pack, 2 workers on as many cores",
        ],
    }
    for how, unit in (("wall", "images/s"), ("cpu", "images/CPU-s")):
        for baseline, names in compared.items():
            for name in names:
                row = rows[f"{name}, {how}"]
                assert (row["unit"], row["baseline"]) == (unit, f"{baseline}, {how}")
                assert row["ratio"] > 0
                assert 0 < row["low"] <= row["value"] <= row["high"]
        alone = "decode, hashes and near-duplicate features"
        beside = rows[f"{alone}, 2 processes, {how}"]
        assert beside["baseline"] == f"{alone}, {how}"
        assert beside["ratio"] == pytest.approx(beside["value"] / rows[f"{alone}, {how}"]["value"])
    for memory in ("memory", "memory without mapped files"):
        few, more = (rows[f"peak {memory} of packing {count} tiny images, 1 worker"] for count in (64, 128))
        assert few["unit"] == more["unit"] == "MiB"
        assert few["value"] > 20  # of the command itself, not of a process that waits for it
        assert more["baseline"] == few["name"]
        assert more["ratio"] == pytest.approx(more["value"] / few["value"])
        grown = rows[f"{memory} for each further image"]
        assert grown["value"] == pytest.approx((more["value"] - few["value"]) * 2**20 / 64)
    assert sum("load average" in name for name in rows) == 2


def test_a_quick_run_of_near_finds_what_was_planted() -> None:
    done = bloodcell("bench", "near", "--quick", "--json")
    assert done.code == 0, done.err
    assert all(set(row) == FIELDS for row in done.json["rows"])
    rows = {row["name"]: row["value"] for row in done.json["rows"]}
    assert (rows["images"], rows["planted pairs"]) == (2000, 20)
    assert rows["planted pairs found"] >= 0.95
    assert rows["pairs found that were planted, after the pixel check"] == 1
    assert rows["largest cluster"] == 2
    assert rows["audit: of them found"] > 0.5
    assert rows["peak memory, drawing and the features included"] > rows["features"] > 2
    assert {"search, wall", "search, cpu", "audit, wall", "audit, cpu"} <= rows.keys()


@pytest.mark.parametrize("flags", [["--images", "10"], ["--repeats", "0"]])
def test_pack_refuses_numbers_that_cannot_be(flags: list[str]) -> None:
    done = bloodcell("bench", "pack", *flags)
    assert done.code == 2
    assert "Traceback" not in done.err


@pytest.mark.parametrize(("images", "copies", "repeats"), [(10, 6, 1), (0, 0, 1), (10, 1, 0)])
def test_near_refuses_numbers_that_cannot_be(images: int, copies: int, repeats: int) -> None:
    with pytest.raises(BadInput):
        near.run(images, copies, repeats, False, "")


def test_a_command_that_fails_is_not_a_measurement(tmp_path: Path) -> None:
    with pytest.raises(Fault, match=r"`bloodcell pack` failed: .*nothing-here"):
        watched("pack", str(tmp_path / "nothing-here"), str(tmp_path / "set"))
