"""A run whose images stay in memory ends with the weights of one that decodes; what is too large is seen before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bloodcell.config import Config, DataConfig, EngineConfig, TrainConfig
from bloodcell.data.shardset import ShardSet
from bloodcell.engine.cache_room import kept_ids
from bloodcell.engine.caching import choose_cache
from bloodcell.runfolder import RunFolder
from shards.errors import BadInput
from tests.conftest import bloodcell

RUN = (
    *("--data.size", 32, "--data.micro_batch", 8, "--train.micro_batches", 2, "--train.epochs", 2),
    *("--tracking.wandb", "off", "--engine.threads", 1),
)


def trained(small_set: Path, run: Path, *flags: object, ranks: int = 0) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    done = bloodcell("train", "resnet10t", "--data", small_set, "--run", run, *RUN, *flags, ranks=ranks)
    assert done.code == 0, done.err
    assert ("decoded images stay in memory (host)" in done.err) == ("off" not in flags)
    return load_file(run / "model.safetensors")


def test_two_ranks_share_the_images_and_the_weights_are_the_same(small_set: Path, tmp_path: Path) -> None:
    """Bit by bit; and where the images stay may change when a run goes on."""
    plain = trained(small_set, tmp_path / "off", "--data.cache", "off", ranks=2)
    kept = trained(small_set, tmp_path / "kept", ranks=2)
    config = RunFolder(tmp_path / "kept").config()
    assert (config.data.cache, config.data.backend) == ("host", "cpu")
    assert all(torch.equal(value, kept[name]) for name, value in plain.items())
    trained(small_set, tmp_path / "kept", "--train.epochs", 3, "--data.cache", "off", ranks=2)


def test_images_that_do_not_fit_are_refused_before_anything_starts(small_set: Path, tmp_path: Path) -> None:
    flags = (*RUN, "--data.cache", "host", "--data.cache_share", 1e-7)
    done = bloodcell("train", "resnet10t", "--data", small_set, "--run", tmp_path / "run", *flags)
    assert done.code == 2
    assert "(data.cache): set data.cache to off or auto" in done.err
    assert not (tmp_path / "run").exists()


def test_the_choice(small_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = ShardSet.open(small_set)
    config = Config(data=DataConfig(set=str(small_set)), engine=EngineConfig(device="cpu"), train=TrainConfig(epochs=2))
    assert choose_cache(config, shards).place == "host"
    small = replace(config, data=replace(config.data, cache_share=1e-7))
    assert choose_cache(small, shards).place == "off"
    assert "they would take more than" in choose_cache(small, shards).why
    monkeypatch.setattr("bloodcell.engine.cache_room.LEAST", {"host": 10**9})
    assert "they would take 1.4 MiB of the" in choose_cache(small, shards).why
    assert choose_cache(replace(config, train=TrainConfig(epochs=1)), shards).place == "off"
    with pytest.raises(BadInput, match="would take"):
        choose_cache(replace(small, data=replace(small.data, cache="host")), shards)
    with pytest.raises(BadInput, match="no GPU"):
        choose_cache(replace(config, data=replace(config.data, cache="device")), shards)
    tests = shards.ranges("test")
    assert len(kept_ids(config, shards)) == len(shards.index) - int((tests[:, 1] - tests[:, 0]).sum())


def test_a_run_of_the_time_before_backends_stays_with_dali(small_set: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write("config.json", {"config": {"data": {"set": str(small_set)}}})
    assert run.config().data.backend == "dali"
