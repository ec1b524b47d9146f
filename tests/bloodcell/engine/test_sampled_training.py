"""Training with a sampling plan: its own epochs, proven lineage, exact resume, any number of ranks."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from bloodcell.data.order import BatchOrder, planned_digest
from bloodcell.data.sampling import sampling_plan
from bloodcell.data.shardset import ShardSet
from bloodcell.evaluation.predictions import read_predictions
from shards.pack import PackOptions, pack
from tests.bloodcell.engine.runs import kill, start
from tests.conftest import bloodcell

FAST = (
    *("--data.size", 32, "--data.micro_batch", 8, "--train.micro_batches", 4, "--train.epochs", 2),
    *("--train.save_every", 2, "--tracking.log_every", 1, "--tracking.wandb", "off", "--optim.lr", 0.002),
)


def status(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "status.json").read_text()))


@pytest.fixture(scope="module")
def uneven(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set in which one class has a third of the images of the others."""
    folder = tmp_path_factory.mktemp("uneven")
    for number, place in enumerate(sorted(path for path in drawn.iterdir() if path.is_dir())):
        (folder / "in" / place.name).mkdir(parents=True)
        for image in sorted(place.iterdir())[:: 3 if number == 1 else 1]:
            shutil.copy(image, folder / "in" / place.name)
    pack(folder / "in", folder / "set", PackOptions(split="70/15/15", workers=1))
    return folder / "set"


@pytest.fixture(scope="module")
def whole(uneven: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on two ranks with balanced classes."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    done = bloodcell("train", "cnn5", "--data", uneven, "--run", run, "--data.sampling", "balanced", *FAST, ranks=2)
    assert done.code == 0, done.err
    assert done.err.count("an epoch deals") == 1
    return run


def test_the_epochs_are_the_plans_and_the_lineage_is_proven(whole: Path, uneven: Path) -> None:
    shards = ShardSet.open(uneven)
    plan = sampling_plan("balanced", shards.ranges("train"), shards.index["label"], shards.info.classes)
    order = BatchOrder(plan, 0, 8, 4)
    said = status(whole)
    assert said["lineage_proven"] is True
    assert said["steps"] == said["step"] == 2 * order.steps_per_epoch
    assert said["lineage"] == planned_digest(order, 0, said["steps"])
    natural = sampling_plan("natural", shards.ranges("train"), shards.index["label"], shards.info.classes)
    assert said["lineage"] != planned_digest(BatchOrder(natural, 0, 8, 4), 0, said["steps"])
    # What is judged is the split as it is.
    ids = read_predictions(whole / "predictions" / "test.parquet").ids
    assert sorted(ids.tolist()) == [i for first, last in shards.ranges("test") for i in range(first, last)]


def test_killed_and_resumed_with_repeats_ends_bit_identical(whole: Path, uneven: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ("train", "cnn5", "--data", uneven, "--run", run, "--data.sampling", "balanced", *FAST)
    process = start(*arguments, ranks=2)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") >= 3:
            break
        time.sleep(0.005)
    kill(process)
    done = bloodcell(*arguments, ranks=2)
    assert done.code == 0, done.err
    assert status(run)["lineage_proven"] is True
    assert status(run)["lineage"] == status(whole)["lineage"]
    ours, theirs = load_file(run / "model.safetensors"), load_file(whole / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    other = bloodcell(*arguments[:-2], "--data.sampling", "natural", ranks=0)
    assert other.code == 2
    assert "sampling" in other.err


def test_one_rank_consumes_the_same_samples(whole: Path, uneven: Path, tmp_path: Path) -> None:
    arguments = ("train", "cnn5", "--data", uneven, "--run", tmp_path / "run", "--data.sampling", "balanced", *FAST)
    done = bloodcell(*arguments)
    assert done.code == 0, done.err
    assert status(tmp_path / "run")["lineage"] == status(whole)["lineage"]


@pytest.mark.parametrize(
    ("sampling", "message"),
    [("balnced", "did you mean 'balanced'"), ("erly=2", "did you mean 'early'"), ("5", "20 training samples do not")],
)
def test_a_sampling_that_will_not_do_is_found_before_anything_is_made(
    uneven: Path, tmp_path: Path, sampling: str, message: str
) -> None:
    run = tmp_path / "run"
    done = bloodcell("train", "cnn5", "--data", uneven, "--run", run, "--data.sampling", sampling, *FAST)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not run.exists()
