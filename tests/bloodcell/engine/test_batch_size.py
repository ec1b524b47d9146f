"""`data.micro_batch 0`: what fits by the estimate, found once and kept; on a CPU within a stated memory only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bloodcell.config import Config, override
from bloodcell.engine.batch_size import (
    Estimate,
    Needs,
    choose_micro_batch,
    kept_for_backward,
    proven,
    training_needs,
)
from bloodcell.engine.trying import peak
from bloodcell.runfolder import RunFolder
from shards.errors import BadInput, EnvironmentFault
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
    count = choose_micro_batch(small, 10**6).images
    assert training_needs(small).fits(2**30) == count > 1
    assert choose_micro_batch(small, 10**6, taken=2**29).images < count
    held = choose_micro_batch(large, 2560)
    assert (held.images, held.most) == (64, 64)  # two micro-batches a step
    assert "an epoch shall have 20 steps" in held.why
    with pytest.raises(BadInput, match="not one image fits"):
        choose_micro_batch(override(CPU, {"engine.memory": 1e-3}), 10**6)


@pytest.mark.parametrize(
    ("first", "most", "fixed", "each", "found", "tried"),
    [
        (8, 64, 10, 5, 8, [8]),  # 50 of 90: more than half
        (8, 64, 0, 1, 64, [8, 16, 32, 64]),  # as far as an epoch's steps allow
        (8, 512, 0, 1, 64, [8, 16, 32, 64]),  # 64 of 90 leave no room for 128
        (8, 64, 40, 1, 8, [8]),
        (32, 64, 40, 5, 8, [32, 16, 8]),  # and then not up again
        (4, 64, 0, 11, 8, [4, 8]),  # 44 is below half, 88 fits
    ],
)
def test_by_trial_it_is_halved_or_doubled(
    first: int, most: int, fixed: float, each: float, found: int, tried: list[int]
) -> None:
    asked: list[int] = []

    def peak(images: int) -> int | None:
        asked.append(images)
        return int(fixed + each * images)

    assert proven(Estimate(first, most, 90, ""), peak)[0] == found
    assert asked == tried


def test_by_trial_nothing_may_fit() -> None:
    with pytest.raises(BadInput, match="not one image fits"):
        proven(Estimate(4, 8, 90, ""), lambda images: None)


@pytest.mark.slow
def test_a_trial_takes_the_steps_of_the_run_and_says_what_they_took() -> None:
    """In a process of its own; more images take more, by about what they keep for the backward pass."""
    config = override(CPU, {"model.name": "resnet10t", "engine.threads": 1, "train.average": "ema"})
    few, many = (peak(override(config, {"data.micro_batch": count}), 4, 200) for count in (2, 66))
    assert few is not None
    assert many is not None
    needs = training_needs(override(config, {"data.micro_batch": 66}))
    assert 0.3 < (many - few) / (64 * needs.image) < 2
    with pytest.raises(EnvironmentFault, match="ended with"):
        peak(override(config, {"model.name": "no-such-model"}), 4, 200)


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
    record = RunFolder(tmp_path / "run").stored()["micro_batch"]
    assert record["images"] == 8
    assert 50 < record["peak_mib"] == record["tried"]["8"] <= record["allowed_mib"] == 819
    assert f"micro-batches of 8 images: {record['peak_mib']} MiB at the peak of the 819 MiB" in done.err
    again = bloodcell(*words, "--train.epochs", 2, "--engine.memory", 64, "--engine.compile", "auto")
    assert again.code == 0, again.err
    assert "trying micro-batches" not in again.err
    assert RunFolder(tmp_path / "run").stored()["micro_batch"] == record
    assert RunFolder(tmp_path / "run").config().data.micro_batch == 8


def test_what_was_submitted_is_tried_by_the_first_start_of_two_ranks(small_set: Path, tmp_path: Path) -> None:
    """The submitter knows no device: config.json holds 0 until ranks meet; the first one tries for both."""
    run = RunFolder(tmp_path / "run")
    flags = ("--data", small_set, "--run", run.path, "--data.size", 32, "--train.micro_batches", 2)
    flags += ("--data.micro_batch", 0, "--engine.memory", 1, "--train.epochs", 1, "--tracking.wandb", "off")
    done = bloodcell("submit", "cnn5", *flags, "--cluster", "local", "--wait", cwd=tmp_path)
    assert done.code == 0, done.err
    assert run.stored()["micro_batch"]["tried"].keys() == {"4"}
    base = run.stored()
    shown = {**base, "config": {**base["config"], "data": {**base["config"]["data"], "micro_batch": 0}}}
    del shown["micro_batch"]
    other = RunFolder(tmp_path / "other")
    other.create(shown)
    done = bloodcell("train", "--run", other.path, ranks=2)
    assert done.code == 0, done.err
    assert done.err.count("trying micro-batches of 4 images") == 1
    assert (other.config().data.micro_batch, other.stored()["micro_batch"]["images"]) == (4, 4)
