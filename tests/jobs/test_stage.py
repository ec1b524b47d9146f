"""Copies of shards on a node's own disk: whole, of the right set, and only where there is room."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bloodcell.config import Config
from jobs.stage import STAGED, stage, staged
from shards.format import read_dataset
from shards.verify import verify


def test_a_copy_is_a_whole_set_and_is_found(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = stage(small_set, tmp_path / "near", Config())
    copy = tmp_path / "near" / STAGED
    assert result["target"] == str(copy)
    assert result["shards"] == result["of"] == len(list(small_set.glob("*.tar")))
    assert all(not file.is_symlink() for file in copy.glob("*.tar"))
    assert verify(copy)["ok"]
    monkeypatch.setenv("BLOODCELL_SCRATCH", str(tmp_path / "near"))
    assert staged(read_dataset(small_set)) == copy


def test_a_copy_of_another_set_is_not_taken(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(small_set, tmp_path, Config())
    monkeypatch.setenv("BLOODCELL_SCRATCH", str(tmp_path))
    file = tmp_path / STAGED / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "fingerprint": "0" * 64}))
    assert staged(read_dataset(small_set)) is None


def test_a_disk_that_is_too_small_is_left_alone(small_set: Path, tmpfs: Path) -> None:
    (tmpfs / "ballast").write_bytes(bytes(2**21 - 2**17))
    result = stage(small_set, tmpfs, Config())
    assert (result["target"], "bytes free" in result["why"]) == ("", True)
    assert not (tmpfs / STAGED).exists()
