"""`data.micro_batch 0`: what fits by the estimate, found once and kept; on a CPU within a stated memory only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bloodcell.config import Config, override
from bloodcell.engine.batch_size import Needs, choose_micro_batch, kept_for_backward, training_needs
from bloodcell.runfolder import RunFolder
from shards.errors import BadInput
from tests.conftest import bloodcell

CPU = override(Config(), {"engine.device": "cpu", "engine.precision": "fp32", "data.micro_batch": 0, "data.size": 64})


def test_what_a_network_keeps_is_counted_once() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8192, 2))
    # The input, and the rectified map, which both the rectifier and the layer after it keep.
    assert kept_for_backward(network, 32) == (4 * (3 + 8) * 32 * 32, 4 * 8 * 32 * 32)


def test_the_largest_that_fits() -> None:
    needs = Needs(fixed=2**20, image=2**20)
    assert needs.fits(10 * 2**20) == 4  # 8 MiB may be filled
    assert needs.fits(2**20) == 0
    assert needs.fits(2**50) == 4096
    at64, at128 = (training_needs(override(CPU, {"data.size": size})) for size in (64, 128))
    assert at64.fixed == at128.fixed
    assert 3.5 < at128.image / at64.image < 4.5


def test_the_choice() -> None:
    with pytest.raises(BadInput, match="stated"):
        choose_micro_batch(CPU, 10**6)
    small, large = (override(CPU, {"engine.memory": memory}) for memory in (1.0, 64.0))
    count, _ = choose_micro_batch(small, 10**6)
    assert training_needs(small).fits(2**30) == count > 1
    held, why = choose_micro_batch(large, 2560)
    assert (held, "an epoch shall have 20 steps" in why) == (64, True)  # two micro-batches a step
    with pytest.raises(BadInput, match="not one image fits"):
        choose_micro_batch(override(CPU, {"engine.memory": 1e-3}), 10**6)


def test_it_is_found_once(small_set: Path, tmp_path: Path) -> None:
    flags = ("--data.size", 32, "--train.micro_batches", 1, "--tracking.wandb", "off", "--data.micro_batch", 0)
    words = ("train", "cnn5", "--data", small_set, "--run", tmp_path / "run", *flags)
    done = bloodcell(*words, "--train.epochs", 1)
    assert done.code == 2
    assert "add --engine.memory GIB" in done.err
    assert not (tmp_path / "run").exists()
    done = bloodcell(*words, "--train.epochs", 1, "--engine.memory", 1, "--engine.compile", "auto")
    assert done.code == 0, done.err
    assert "an epoch shall have 20 steps" in done.err
    assert "training steps are not compiled: on a CPU" in done.err
    used = RunFolder(tmp_path / "run").read("status.json")["efficiency"]
    assert used["gb_per_s"] > 0
    assert (used["mfu"], used["ceiling"]) == (None, None)
    config = RunFolder(tmp_path / "run").config()
    assert (config.data.micro_batch, config.engine.compile) == (8, "off")
    again = bloodcell(*words, "--train.epochs", 2, "--engine.memory", 64, "--engine.compile", "auto")
    assert again.code == 0, again.err
    assert RunFolder(tmp_path / "run").config().data.micro_batch == 8
