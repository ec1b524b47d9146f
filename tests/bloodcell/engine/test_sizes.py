"""Progressive resizing: a pure function of the step, seen by the network, resumed to the bit, refused if senseless."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from bloodcell.config import Config, DataConfig, ModelConfig, TrainConfig
from bloodcell.engine.setup import check_model
from bloodcell.engine.sizes import Sizes, parse_sizes
from shards.errors import BadInput
from tests.conftest import bloodcell


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 192, 1001])
def test_every_step_has_one_size_and_the_spans_agree(steps: int) -> None:
    sizes = Sizes(parse_sizes("64x0.3,96x1/3,128", 160), steps)
    seen = [sizes.at(step) for step in range(steps)]
    assert seen == sorted(seen)
    for first in range(steps):
        spans = sizes.spans(first)
        assert [size for size, begin, end in spans for _ in range(begin, end)] == seen[first:]
    for size, share in ((64, 0.3), (96, 1 / 3), (128, 1 - 0.3 - 1 / 3)):
        assert abs(seen.count(size) - share * steps) <= 1


def test_without_sizes_there_is_one() -> None:
    sizes = Sizes(parse_sizes("", 160), 12)
    assert sizes.spans(5) == [(160, 5, 12)]
    assert sizes.describe() == ""
    assert sizes.cost == 1.0
    assert Sizes(parse_sizes("64x0.5,128", 0), 12).cost == pytest.approx(0.625)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("96x0.4", "has a share"),
        ("96,128", "'96' is no size with a share"),
        ("96x0.6,128x0.4,160", "nothing to the last"),
        ("96x1.5,128", "between 0 and 1"),
        ("96xhalf,128", "no size with a share"),
        ("4x0.5,128", "8 to 4096"),
        ("96x0.5,", "8 to 4096"),
    ],
)
def test_senseless_sizes_are_refused(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        parse_sizes(text, 128)


@pytest.mark.parametrize(
    ("name", "sizes", "size", "said"),
    [
        ("cnn5", "16x0.5,64", 64, "16 px is too small"),
        ("dinobloom_s", "64x0.5,112", 112, "multiple of 14"),
        ("timm:vit_tiny_patch16_224", "112x0.5,224", 224, "cannot take 112 px"),
    ],
)
def test_a_size_that_the_model_cannot_take_is_refused_before_anything_starts(
    name: str, sizes: str, size: int, said: str
) -> None:
    config = Config(model=ModelConfig(name=name), data=DataConfig(size=size), train=TrainConfig(sizes=sizes))
    with pytest.raises(BadInput, match=said):
        check_model(config)


def test_networks_that_pool_take_every_size() -> None:
    for name in ("mobilenet_v2", "handcrafted_resnet", "dinobloom_s"):
        config = Config(model=ModelConfig(name=name), data=DataConfig(size=112), train=TrainConfig(sizes="56x0.5,112"))
        check_model(config)


SEES_SIZES = """
import os
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, classes)

    def forward(self, images):
        if os.environ.get("SEEN") and images.device.type != "meta":
            with open(os.environ["SEEN"], "a") as file:
                file.write(f"{'train' if self.training else 'eval'} {images.shape[-1]}\\n")
        return self.head(self.body(images).mean(dim=(2, 3)))

def build(classes):
    return Net(classes)
"""


def test_the_network_sees_the_sizes_and_a_stopped_run_goes_on_to_the_bit(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training images grow in the middle of the plan, evaluation has its own size; an early checkpoint is enough."""
    (tmp_path / "sees_sizes.py").write_text(SEES_SIZES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    flags = (
        "--model.name",
        "sees_sizes:build",
        "--data.size",
        48,
        "--train.sizes",
        "24x0.5,40",
        "--data.micro_batch",
        8,
    )
    flags = (
        *flags,
        "--train.micro_batches",
        2,
        "--train.epochs",
        2,
        "--train.save_every",
        3,
        "--tracking.wandb",
        "off",
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.txt"))
    done = bloodcell("train", "cnn5", "--data", small_set, "--run", whole, *flags)
    assert done.code == 0, done.err
    assert "24 px from step 0, 40 px from step 10" in done.err
    monkeypatch.delenv("SEEN")
    seen = (tmp_path / "seen.txt").read_text().split("\n")
    trained = [line for line in seen if line.startswith("train") and line != "train 48"]  # the warm-up is at 48
    assert trained == ["train 24"] * 20 + ["train 40"] * 20
    assert {line for line in seen if line.startswith("eval")} == {"eval 48"}
    # A second folder that lost everything after a checkpoint in the middle of the first size.
    done = bloodcell("train", "cnn5", "--data", small_set, "--run", cut, *flags, "--train.keep", 50)
    assert done.code == 0, done.err
    for place in (cut / "checkpoints").iterdir():
        if place.name.isdigit() and int(place.name) > 6:
            for file in place.iterdir():
                file.unlink()
            place.rmdir()
    (cut / "checkpoints" / "best").unlink()
    (cut / "model.safetensors").unlink()
    done = bloodcell("train", "cnn5", "--data", small_set, "--run", cut, *flags, "--train.keep", 50)
    assert done.code == 0, done.err
    assert "resuming" in done.err
    ours, theirs = load_file(cut / "model.safetensors"), load_file(whole / "model.safetensors")
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert "Side of the training images" in (cut / "report.html").read_text()
    assert torch.tensor(ours["head.bias"]).isfinite().all()
