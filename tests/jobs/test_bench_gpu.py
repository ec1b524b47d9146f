"""`bloodcell bench gpu` without a GPU: its parts in order, and a rehearsal on the CPU of all that one can run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bloodcell.data.shardset import ShardSet
from jobs.bench.gpu import REHEARSAL, all_parts, chosen
from jobs.bench.gpu_parts import How
from shards.errors import BadInput
from tests.conftest import Done, bloodcell


def rehearse(small_set: Path, state: Path, *parts: str) -> Done:
    words = ("bench", "gpu", small_set, "--device", "cpu", "--state", state, "--json", "--parts", *parts)
    return bloodcell(*words, timeout=900)


def test_the_parts_come_in_order_of_weight(small_set: Path) -> None:
    """As they would on a GPU: making the list touches no device."""
    parts = list(all_parts(How(ShardSet.open(small_set), 224, 64, 1, 1, 1, torch.device("cuda", 0))))
    first = [name for name in parts if name.startswith("tests")]
    assert parts[: len(first)] == first
    assert len(first) >= 1
    assert parts[len(first) :] == [
        "ceilings",
        *(f"{name}, {kind}" for name in ("resnet50", "mobilenet_v2") for kind in ("plain", "compiled")),
        "images",
        "sweep, hw_decoder_load",
        "sweep, threads",
        *(f"{n}, {kind}" for n in ("efficientnet_v2_s", "vgg16", "xception") for kind in ("plain", "compiled")),
        "folder",
        "zero",
    ]
    named = dict.fromkeys(parts, list)
    assert list(chosen(named, ["zero", "resnet50"])) == ["resnet50, plain", "resnet50, compiled", "zero"]
    with pytest.raises(BadInput, match="no part 'resnet51'"):
        chosen(named, ["resnet51"])


def test_a_rehearsal_runs_the_same_code_and_says_that_it_measures_nothing(small_set: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    done = rehearse(small_set, state, "ceilings", "resnet10t", "images", "sweep")
    assert done.code == 0, done.err
    assert done.json["notes"][0] == REHEARSAL
    names = {row["name"] for row in done.json["rows"]}
    assert all(name.startswith("REHEARSAL ") for name in names)
    for kind in ("plain", "compiled"):
        for source in ("device tensors", "images kept in memory", "images decoded each time"):
            assert f"REHEARSAL resnet10t, {kind}, {source}" in names
    assert "REHEARSAL bloodcell, decoded each time (DALI)" in names
    assert "REHEARSAL decoding threads 1" in names
    assert all(row["value"] > 0 for row in done.json["rows"])
    for left_out in ("ceilings: there is no GPU", "sweep, hw_decoder_load: there is no GPU", "decode_jpeg on the GPU"):
        assert any(left_out in note for note in done.json["notes"])
    assert set(json.loads(state.read_text())["parts"]) == {
        "resnet10t, plain",
        "resnet10t, compiled",
        "images",
        "sweep, threads",
    }
    again = rehearse(small_set, state, "resnet10t")
    assert "resnet10t, compiled: measured before" in again.err
    assert {row["name"] for row in again.json["rows"]} < names


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_whole_commands_are_rehearsed_too(small_set: Path, tmp_path: Path, deepspeed_op: None) -> None:
    done = rehearse(small_set, tmp_path / "state.json", "folder", "zero")
    assert done.code == 0, done.err
    rows = {row["name"].removeprefix("REHEARSAL "): row["value"] for row in done.json["rows"]}
    times = [rows[f"folder to result, {what}"] for what in ("packing", "training and judging", "both (asked: 60)")]
    assert times[0] + times[1] == pytest.approx(times[2])
    assert 0 <= rows["folder to result, accuracy on test (asked: 98.5)"] <= 100
    for name in ("ddp", "zero1", "zero2"):
        assert rows[f"cnn5, batch 4: {name}, wall"] > 0
