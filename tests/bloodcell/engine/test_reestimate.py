"""BatchNorm's statistics of an equal-weight average: those of its own weights, alike on one rank and two, and kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from bloodcell.data.shardset import ShardSet
from bloodcell.engine.evaluate import load_model
from bloodcell.engine.reestimate import _drawn, _images, estimate_statistics
from bloodcell.engine.setup import make_inference, make_view
from bloodcell.ranks import discover, process_group
from bloodcell.runfolder import RunFolder
from tests.bloodcell.engine.runs import SMALL_NET
from tests.conftest import bloodcell

FLAGS = (
    *("--data.size", 32, "--data.micro_batch", 8, "--train.micro_batches", 2, "--train.epochs", 2),
    *("--train.average", "swa", "--train.swa_from", 0.3, "--train.save_every", 4, "--train.keep", 50),
    *("--optim.lr", 0.02, "--tracking.wandb", "off", "--engine.threads", 1, "--model.name", "small_swa_net:build"),
)


@pytest.fixture(scope="module", autouse=True)
def small_net(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "small_swa_net.py").write_text(SMALL_NET)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    import sys

    sys.path.append(str(folder))


@pytest.fixture(scope="module")
def averaged(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on one rank."""
    run = tmp_path_factory.mktemp("swa") / "run"
    done = bloodcell("train", "cnn5", "--data", small_set, "--run", run, *FLAGS)
    assert done.code == 0, done.err
    return run


def statistics(run: Path) -> dict[str, np.ndarray]:
    return {name: value for name, value in load_file(run / "model.safetensors").items() if "running" in name}


def test_they_are_those_of_torch_for_the_weights_that_are_kept(averaged: Path) -> None:
    run = RunFolder(averaged)
    config = run.config()
    model, _ = load_model(run, config)
    ranks, shards = discover(), ShardSet.open(Path(config.data.set))
    with process_group(ranks, torch.device("cpu"), 60):
        inference = make_inference(config, "x", shards, make_view(config), torch.device("cpu"), ranks)
        ids = np.concatenate([np.arange(*span) for span in shards.ranges("train")])
        update_bn(_images(inference, _drawn(ids, 8, config.train.seed)), model)
        expected = {name: value.numpy().copy() for name, value in model.state_dict().items() if "running" in name}
        for name, value in statistics(averaged).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6)
        layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        before = layers[0].running_mean.clone()
        layers[1].running_mean.zero_()
        model.eval()
        assert estimate_statistics(model, inference, "train", config.train.seed, layers[1:]) == len(ids) // 8
        assert torch.equal(layers[0].running_mean, before)  # a layer that is left out keeps its own
        assert layers[1].running_mean.all()
        assert not model.training  # its mode is what it was


def test_two_ranks_and_a_resumed_run_end_with_the_same_bits(averaged: Path, small_set: Path, tmp_path: Path) -> None:
    two, cut = tmp_path / "two", shutil.copytree(averaged, tmp_path / "cut", symlinks=True)
    done = bloodcell("train", "cnn5", "--data", small_set, "--run", two, *FLAGS, ranks=2)
    assert done.code == 0, done.err
    steps = sorted(int(p.name) for p in (cut / "checkpoints").iterdir() if p.name.isdigit())
    for step in steps[2:]:
        shutil.rmtree(cut / "checkpoints" / f"{step:08d}")
    for name in ("checkpoints/best", "checkpoints/last", "model.safetensors"):
        (cut / name).unlink()
    done = bloodcell("train", "cnn5", "--data", small_set, "--run", cut, *FLAGS)
    assert done.code == 0, done.err
    whole = load_file(averaged / "model.safetensors")
    for other in (two, cut):
        found = load_file(other / "model.safetensors")
        assert all(np.array_equal(found[name], whole[name]) for name in whole), other.name
    values = [json.loads((run / "evaluation.json").read_text())["splits"]["test"]["metrics"] for run in (averaged, two)]
    assert values[0] == values[1]
