"""Leaking sets are refused, and real sets come out clean, the same with any number of workers."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from shards.format import read_dataset
from shards.pack import PackOptions, pack
from shards.synth import SynthOptions, synthesise
from shards.verify import verify
from tests.conftest import bloodcell
from tests.shards.packing import ONE, hashes, rejects, rows


def test_a_set_that_leaks_is_refused_unless_allowed(tmp_path: Path) -> None:
    synthesise(tmp_path / "in", SynthOptions(images=80, size=64, patients=8, near_duplicates=40, seed=2))
    refused = bloodcell("pack", tmp_path / "in", tmp_path / "set", "--no-near", "--split", "50/25/25", "--workers", 1)
    assert refused.code == 2, refused.err
    said = [line for line in refused.err.splitlines() if line.startswith("bloodcell: ")]
    assert len(said) == 1
    assert "the split leaks" in said[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    options = replace(ONE, near=False, split="50/25/25", allow_leaks=True)
    result = pack(tmp_path / "in", tmp_path / "set", options)
    assert result["leaks"]
    assert read_dataset(tmp_path / "set").leaks
    assert verify(tmp_path / "set")["ok"]
    sound = pack(tmp_path / "in", tmp_path / "sound", replace(options, near=True, allow_leaks=False))
    assert not sound["leaks"]
    assert not read_dataset(tmp_path / "sound").leaks


@pytest.mark.realdata
def test_all4_is_the_same_with_one_and_two_workers_and_a_flipped_byte_is_found(real_data: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        done = bloodcell("pack", real_data / "all4", tmp_path / str(workers), "--workers", workers, "--json")
        assert done.code == 0, done.err
        assert done.json["packed"] + done.json["rejected"] == done.json["images"] == 2604
        assert done.json["leaks"] == 0
    assert hashes(tmp_path / "1") == hashes(tmp_path / "2")
    assert bloodcell("verify", tmp_path / "1", "--workers", 2).code == 0
    row = rows(tmp_path / "1")[1234]
    path = tmp_path / "1" / read_dataset(tmp_path / "1").shards[row["shard"]].file
    with open(path, "r+b") as file:
        file.seek(row["offset"] + row["size"] // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    found = bloodcell("verify", tmp_path / "1", "--workers", 2)
    assert found.code == 1
    assert row["key"] in found.out


@pytest.mark.realdata
def test_pbc8_is_cleaned(real_data: Path, tmp_path: Path) -> None:
    result = pack(real_data / "pbc8", tmp_path / "set", PackOptions())
    left = rejects(tmp_path / "set")
    assert left["neutrophil/.DS_169665.jpg"][0] == "not an image"
    reasons = Counter(reason for reason, _ in left.values())
    assert reasons == {"not an image": 1, "contradicting label": 2, "exact duplicate": 16}
    pair = {name for name, (reason, _) in left.items() if reason == "contradicting label"}
    assert pair == {"neutrophil/BNE_191112.jpg", "eosinophil/EO_225902.jpg"}
    kept = {row["source"] for row in rows(tmp_path / "set")}
    for name, (reason, detail) in left.items():
        assert name not in kept
        assert reason != "exact duplicate" or detail.removeprefix("same bytes as ") in kept
    assert result["images"] == 3200 == len(kept) + len(left)
