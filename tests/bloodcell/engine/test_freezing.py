"""Frozen parts keep their weights to the bit, thawed ones are trained, and a run resumes exactly across the switch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import nn

from bloodcell.config import ModelConfig
from bloodcell.engine.batchnorm import mean_over_ranks
from bloodcell.engine.freezing import Freezing, blocks_before_head
from bloodcell.engine.inference import evaluating
from bloodcell.models import zoo
from shards.errors import BadInput
from tests.conftest import bloodcell

SMALL_NET = """
from torch import nn

def build(classes, dropout=0.2):
    first = [nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    second = [nn.Conv2d(8, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    last = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(dropout), nn.Linear(64, classes)]
    return nn.Sequential(*first, *second, *last)

def stiff(classes):
    return build(classes).requires_grad_(False)
"""
FAST = (
    *("--data.size", 32, "--data.micro_batch", 8, "--train.micro_batches", 4, "--train.epochs", 3, "--optim.lr", 0.01),
    *("--train.save_every", 2, "--train.keep", 20, "--tracking.log_every", 1, "--tracking.wandb", "off"),
    *("--train.average", "ema", "--train.ema_decay", 0.5),
)
GRADUAL = ("--model.freeze", "backbone", "--model.unfreeze_after", 1)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with BatchNorm and dropout, small_frozen:build, and weights for it."""
    folder = tmp_path_factory.mktemp("frozen")
    (folder / "small_frozen.py").write_text(SMALL_NET)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    space: dict[str, object] = {}
    exec(SMALL_NET, space)
    torch.manual_seed(3)
    model = space["build"](4)  # type: ignore[operator]
    for _ in range(5):
        model(torch.randn(16, 3, 32, 32) * 2 + 1)
    save_file(model.state_dict(), folder / "start.safetensors")
    return folder / "start.safetensors"


def train(data: Path, net: Path, run: Path, *more: object, ranks: int = 2) -> dict[str, np.ndarray]:
    start = ("--model.name", "small_frozen:build", "--model.weights", net)
    done = bloodcell("train", "cnn5", "--data", data, "--run", run, *start, *FAST, *more, ranks=ranks)
    assert done.code == 0, done.err
    return dict(load_file(run / "checkpoints" / "last" / "model.safetensors"))


def test_blocks_are_those_of_the_learning_rates() -> None:
    model = zoo.build("mobilenet_v2", 4)
    blocks = blocks_before_head(model)
    assert len(blocks) == 19
    assert sum(p.numel() for block in blocks for p in block.parameters) == 2_223_872
    assert sum(len(block.norms) for block in blocks) == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_blocks_thaw_from_the_top() -> None:
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(8)))
    freezing = Freezing(model, ModelConfig(freeze="backbone", unfreeze_after=2))
    assert [freezing.frozen(epoch) for epoch in range(10)] == [7, 7, 5, 5, 3, 3, 1, 1, 0, 0]
    assert freezing.apply(5)
    assert not freezing.apply(5)
    assert [layer.weight.requires_grad for layer in model] == [False] * 5 + [True] * 3
    fixed = Freezing(nn.Sequential(*(nn.Linear(3, 3) for _ in range(8))), ModelConfig(freeze=2))
    assert {fixed.frozen(epoch) for epoch in range(10)} == {2}
    two = Freezing(nn.Sequential(*(nn.Linear(3, 3) for _ in range(3))), ModelConfig(freeze=2, unfreeze_after=1))
    assert [two.frozen(epoch) for epoch in range(4)] == [2, 1, 0, 0]


@pytest.mark.parametrize(
    ("norms", "still"), [("frozen", [True, False]), ("always", [True, True]), ("never", [False] * 2)]
)
def test_which_norms_keep_their_statistics(norms: str, still: list[bool]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    model = nn.Sequential(*model, nn.Flatten(), nn.Linear(4, 2))
    freezing = Freezing(model, ModelConfig(freeze=1, freeze_norm=norms))  # type: ignore[arg-type]
    freezing.apply(1)
    assert [not model[1].training, not model[3].training] == still
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [not model[1].training, not model[3].training] == still
    assert model.training


def test_a_network_without_a_linear_head_needs_one_only_to_be_frozen() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3), nn.Flatten())
    assert not Freezing(model, ModelConfig()).apply(0)
    for asked in (ModelConfig(freeze="backbone"), ModelConfig(freeze_norm="always")):
        with pytest.raises(BadInput, match="no classifier"):
            Freezing(model, asked)


def test_every_registered_model_has_blocks_before_its_head() -> None:
    for name in zoo.names():
        model = zoo.outline(name)
        blocks = blocks_before_head(model)
        whole = sum(p.numel() for p in model.parameters())
        before = sum(p.numel() for block in blocks for p in block.parameters)
        assert 0.25 * whole < before < whole, name
        assert len(blocks) >= 3, name
        norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
        assert sum(len(block.norms) for block in blocks) == norms, name


def test_what_the_maker_froze_stays_frozen() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    freezing = Freezing(model, ModelConfig(freeze="backbone", unfreeze_after=1))
    freezing.apply(0)
    assert [layer.weight.requires_grad for layer in model] == [False, True, True]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"freeze": "head"}, "choose none, backbone or a number"),
        ({"freeze": 4}, "has 2 blocks before its head: freeze 2 or fewer"),
        ({"unfreeze_after": 2}, "nothing is frozen that could be trained later"),
    ],
)
def test_a_freezing_that_makes_no_sense(asked: dict[str, object], message: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    with pytest.raises(BadInput, match=message):
        Freezing(model, ModelConfig(**asked))  # type: ignore[arg-type]


def test_the_mean_of_equal_statistics_is_exact() -> None:
    row = torch.rand(1000) * 7
    for world in (2, 3, 5, 7):
        assert torch.equal(mean_over_ranks(row.expand(world, -1)), row)


@pytest.mark.parametrize(
    "asked",
    [
        ("--model.freeze", 99),
        pytest.param(("--model.freeze", 5), marks=pytest.mark.slow),
        pytest.param(("--model.freeze", "none", "--model.name", "small_frozen:stiff"), marks=pytest.mark.slow),
    ],
)
def test_everything_frozen_is_told_before_the_run(
    small_set: Path, net: Path, tmp_path: Path, asked: tuple[object, ...]
) -> None:
    name = ("--model.name", "small_frozen:build")
    done = bloodcell("train", "cnn5", "--data", small_set, "--run", tmp_path / "run", *name, *FAST, *asked)
    assert done.code == 2
    assert "no weight can be trained" in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_frozen_backbone_keeps_weights_and_statistics_to_the_bit(small_set: Path, net: Path, tmp_path: Path) -> None:
    start, run = load_file(net), tmp_path / "run"
    train(small_set, net, run, "--model.freeze", "backbone")
    for path in (run / "model.safetensors", run / "checkpoints" / "last" / "model.safetensors"):
        after = load_file(path)
        assert after.keys() == start.keys()
        for name in start:
            assert np.array_equal(after[name], start[name]) == (not name.startswith("9.")), name


def test_first_blocks_frozen_and_norms_that_move(small_set: Path, net: Path, tmp_path: Path) -> None:
    start = load_file(net)
    after = train(small_set, net, tmp_path / "run", "--model.freeze", 2, "--model.freeze_norm", "never", ranks=0)
    same = {name for name in start if np.array_equal(after[name], start[name])}
    assert same == {"0.weight", "1.weight", "1.bias"}


@pytest.fixture(scope="module")
def gradual(small_set: Path, net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on two ranks in which two of four blocks were thawed, one at a time."""
    run = tmp_path_factory.mktemp("gradual") / "whole"
    train(small_set, net, run, *GRADUAL)
    return run


def test_thawed_blocks_are_trained_and_the_others_are_not(gradual: Path, net: Path) -> None:
    start = load_file(net)
    after = load_file(gradual / "checkpoints" / "last" / "model.safetensors")
    same = {name.split(".")[0] for name in start if np.array_equal(after[name], start[name])}
    assert same == {"0", "1"}
    averaged = load_file(gradual / "checkpoints" / "last" / "state.safetensors")["/average/shadow/3.weight"]
    assert not np.array_equal(averaged, start["3.weight"])
    assert not np.array_equal(averaged, after["3.weight"])


@pytest.mark.parametrize("which", ["before", pytest.param("after", marks=pytest.mark.slow)])
def test_a_run_resumes_exactly_across_the_switch(
    small_set: Path, net: Path, gradual: Path, tmp_path: Path, which: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(gradual, run, symlinks=True)
    kept = sorted(path for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    place = 1 if which == "before" else len(kept) - 2
    for checkpoint in kept[place + 1 :]:
        shutil.rmtree(checkpoint)
    for link in ("last", "best"):
        (run / "checkpoints" / link).unlink()
    (run / "checkpoints" / "last").symlink_to(kept[place].name)
    train(small_set, net, run, *GRADUAL)
    for name in ("last/model.safetensors", "last/state.safetensors"):
        ours, theirs = load_file(run / "checkpoints" / name), load_file(gradual / "checkpoints" / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert np.array_equal(ours[key], theirs[key]), key


def test_one_rank_thaws_like_two(small_set: Path, net: Path, gradual: Path, tmp_path: Path) -> None:
    """Bound: sums of float32 gradients in another order over 15 steps of AdamW."""
    ours = train(small_set, net, tmp_path / "run", *GRADUAL, ranks=0)
    theirs = load_file(gradual / "checkpoints" / "last" / "model.safetensors")
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-2, atol=2e-3, err_msg=name)
