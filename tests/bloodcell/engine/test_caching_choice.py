"""Which cache a run takes: decoded, bytes of files on network file systems, or none; said with what would fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bloodcell.config import Config, DataConfig, EngineConfig, TrainConfig
from bloodcell.data.layout import EncodedLayout, Layout
from bloodcell.data.resident import EncodedCache, HostCache, SharedCache
from bloodcell.data.shardset import ShardSet
from bloodcell.engine import cache_room
from bloodcell.engine.batches import check_side, describe_decoding
from bloodcell.engine.caching import choose_cache, for_evaluation
from bloodcell.runfolder import RunFolder
from shards.errors import BadInput
from tests.conftest import bloodcell

RUN = (
    *("--data.size", 24, "--data.micro_batch", 8, "--train.micro_batches", 2, "--train.epochs", 2),
    *("--tracking.wandb", "off", "--engine.threads", 1),
)


def config_of(folder: Path, **data: object) -> Config:
    return Config(
        data=DataConfig(set=str(folder), size=24, **data),  # type: ignore[arg-type]
        engine=EngineConfig(device="cpu"),
        train=TrainConfig(epochs=2),
    )


def limited(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """Leave so many bytes for images."""
    monkeypatch.setattr(cache_room, "available_memory", lambda: int(2 * size))


def mounted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    """Let everything lie on such a file system."""
    table = tmp_path / "mountinfo"
    table.write_text(f"22 1 0:20 / / rw - {kind} server:/ rw\n", encoding="utf-8")
    for function in (choose_cache.__globals__["file_system"], choose_cache.__globals__["network_file_system"]):
        monkeypatch.setattr(function, "__defaults__", (table,))


def test_auto_keeps_bytes_only_of_sets_on_a_network(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, config = ShardSet.open(small_set), config_of(small_set)
    decoded = cache_room.needs(config, shards, "host")
    encoded = cache_room.needs(config, shards, "encoded")
    assert encoded < decoded
    limited(monkeypatch, (encoded + decoded) / 2)
    mounted(monkeypatch, tmp_path, "nfs4")
    found = choose_cache(config, shards)
    assert found.place == "encoded"
    assert "read from nfs4 in every epoch; decoded they would take 1.4 MiB of the" in found.why
    mounted(monkeypatch, tmp_path, "ext4")
    found = choose_cache(config, shards)
    assert found.place == "off"
    assert "ext4 is a file system of this node" in found.why
    assert choose_cache(config_of(small_set, cache="encoded"), shards).place == "encoded"
    mounted(monkeypatch, tmp_path, "lustre")
    limited(monkeypatch, encoded - 100)
    assert "encoded they would take" in choose_cache(config, shards).why
    with pytest.raises(BadInput, match=r"encoded images would take .* \(encoded\)"):
        choose_cache(config_of(small_set, cache="encoded"), shards)
    limited(monkeypatch, decoded + 1)
    assert choose_cache(config, shards).place == "host"
    once = replace(config, train=TrainConfig(epochs=1))
    assert choose_cache(once, shards).place == "off"


def test_a_side_that_fits_is_named_and_fits(small_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is never chosen: its pixels are others."""
    shards, config = ShardSet.open(small_set), config_of(small_set)
    whole = cache_room.needs(config, shards, "host")
    smaller = cache_room.needs(config_of(small_set, cache_side=32), shards, "host")
    val = SharedCache.size(Layout(shards, cache_room.kept_ids(config, shards, ("val",))))
    train = len(cache_room.kept_ids(config, shards, ("train",)))
    assert smaller == train * (32 * 32 * 3 + 1) + val
    limited(monkeypatch, smaller + 100)
    found = choose_cache(config, shards)
    assert found.place == "off"
    assert "with data.cache_side 32 about" in found.why
    with pytest.raises(BadInput, match=r"with data\.cache_side 32 about"):
        choose_cache(config_of(small_set, cache="host"), shards)
    assert choose_cache(config_of(small_set, cache_side=32), shards).place == "host"
    assert cache_room.fitting_side(config, shards, "host", whole)[0] == 32  # type: ignore[index]
    assert cache_room.fitting_side(config, shards, "host", smaller // 4) is None
    assert cache_room.fitting_side(config_of(small_set, fold=-1), shards, "device", whole) is not None


def test_what_an_evaluation_may_take_from_memory(small_set: Path) -> None:
    """On a GPU decoded images of the host are not those of a later evaluation; bytes always are."""
    shards, ids = ShardSet.open(small_set), np.arange(4)
    pixels = HostCache(Layout(shards, ids), HostCache.create())
    encoded = EncodedCache(EncodedLayout(shards, ids), EncodedCache.create())
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert for_evaluation(pixels, cpu) is pixels
    assert for_evaluation(pixels, cuda) is None
    assert for_evaluation(encoded, cuda) is encoded
    assert for_evaluation(None, cpu) is None


def test_senseless_settings_are_refused_or_named(small_set: Path) -> None:
    with pytest.raises(BadInput, match="16 pixels would be enlarged again for an input of 24"):
        check_side(config_of(small_set, cache_side=16))
    check_side(config_of(small_set, cache_side=24))
    grown = replace(config_of(small_set, cache_side=32), train=TrainConfig(sizes="24x0.5,48"))
    with pytest.raises(BadInput, match="input of 48"):
        check_side(grown)
    shards = ShardSet.open(small_set)
    kept = HostCache(Layout(shards, np.arange(4)), HostCache.create())
    for told, why in (
        ({"backend": "cpu"}, "the CPU backend"),
        ({"backend": "dali", "cache_side": 32}, "data.cache_side"),
        ({"backend": "dali", "policy": "flip"}, "no crop"),
    ):
        assert why in describe_decoding(config_of(small_set, roi_decode=True, **told), None)
    dali = config_of(small_set, roi_decode=True, backend="dali")
    assert "decoded images stay" in describe_decoding(dali, kept)
    assert describe_decoding(dali, None) == describe_decoding(config_of(small_set), None) == ""


def trained(small_set: Path, run: Path, *flags: object) -> tuple[dict[str, torch.Tensor], str]:
    """Train on two ranks; return the weights and what was said."""
    done = bloodcell("train", "resnet10t", "--data", small_set, "--run", run, *RUN, *flags, ranks=2)
    assert done.code == 0, done.err
    return load_file(run / "model.safetensors"), done.err


def test_two_ranks_with_bytes_in_memory_end_with_the_same_weights(small_set: Path, tmp_path: Path) -> None:
    """Bit by bit; memory that became too small is seen before training goes on, which it does without."""
    plain, _ = trained(small_set, tmp_path / "off", "--data.cache", "off")
    kept, said = trained(small_set, tmp_path / "encoded", "--data.cache", "encoded")
    assert "encoded images stay in memory (encoded): " in said
    assert all(torch.equal(value, kept[name]) for name, value in plain.items())
    assert RunFolder(tmp_path / "encoded").config().data.cache == "encoded"
    _, said = trained(small_set, tmp_path / "encoded", "--train.epochs", 3, "--data.cache_share", 1e-7)
    assert "this run goes on without keeping them" in said


def test_smaller_images_give_the_same_weights_kept_or_not(small_set: Path, tmp_path: Path) -> None:
    """Validation included, which sees them as they are; another side is another run."""
    side = ("--data.cache_side", 32)
    plain, _ = trained(small_set, tmp_path / "off", *side, "--data.cache", "off")
    kept, said = trained(small_set, tmp_path / "kept", *side)
    assert "decoded images stay in memory (host)" in said
    assert all(torch.equal(value, kept[name]) for name, value in plain.items())
    texts = [(tmp_path / name / "evaluation.json").read_text(encoding="utf-8") for name in ("off", "kept")]
    assert texts[0].replace('"off"', '"kept"') == texts[1]  # the run's name is in it
    again = ("--run", tmp_path / "kept", *RUN, "--data.cache_side", 0)
    done = bloodcell("train", "resnet10t", "--data", small_set, *again)
    assert done.code == 2
    assert "data.cache_side" in done.err
