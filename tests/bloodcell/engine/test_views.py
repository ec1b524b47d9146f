"""Training on three views of each image: the loss that compares them, a sample that counts once, exact resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax

from bloodcell.config import Config, override
from bloodcell.data.order import BatchOrder, NaturalPlan, planned_digest
from bloodcell.data.shardset import ShardSet
from bloodcell.engine.losses import Loss, divergence
from bloodcell.engine.setup import check_views
from shards.errors import BadInput
from tests.conftest import bloodcell

FAST = (
    *("--data.size", 32, "--data.micro_batch", 8, "--train.micro_batches", 2, "--train.epochs", 1),
    *("--data.policy", "augmix", "--loss.jsd", 12, "--train.save_every", 3, "--tracking.wandb", "off"),
    *("--engine.threads", 1),
)


def test_divergence_of_two_is_that_of_scipy() -> None:
    """And zero for views that agree; the gradient is finite where a view is certain."""
    first, second = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1)) * 3
    expected = jensenshannon(softmax(first.numpy(), 1), softmax(second.numpy(), 1), axis=1) ** 2
    assert float(divergence([first, second])) == pytest.approx(expected.mean(), rel=1e-5)
    assert float(divergence([first, first, first])) == pytest.approx(0, abs=1e-6)
    certain = torch.tensor([[200.0, 0.0], [0.0, 200.0], [200.0, 0.0]], requires_grad=True)
    divergence(certain.chunk(3)).backward()
    assert certain.grad is not None
    assert torch.isfinite(certain.grad).all()


def test_labels_are_compared_with_the_clean_view() -> None:
    """The formula of the authors' text: mean of the Kullback-Leibler divergences to the mean of three."""
    logits = torch.randn(12, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 1])
    views = softmax(logits.numpy().reshape(3, 4, 3), axis=2)
    middle = views.mean(axis=0)
    apart = (views * np.log(views / middle)).sum(axis=2).mean()
    expected = -np.log(views[0][np.arange(4), labels]).mean() + 7 * apart
    assert float(Loss(jsd=7.0)(logits, labels)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"data.policy": "light"}, "all alike under the policy 'light'"),
        ({"data.policy": "augmix", "data.mixup": 0.2}, "before images are mixed"),
    ],
)
def test_what_cannot_be_compared_is_refused(flat: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_views(override(Config(), {"loss.jsd": 12.0, **flat}))


def test_a_sample_counts_once_and_a_restart_changes_nothing(small_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ("train", "cnn5", "--data", small_set, "--run", run, *FAST)
    done = bloodcell(*arguments)
    assert done.code == 0, done.err
    status = json.loads((run / "status.json").read_text())
    shards = ShardSet.open(small_set)
    order = BatchOrder(NaturalPlan(shards.ranges("train")), 0, 8, 2)
    assert status["lineage_proven"] is True
    assert status["lineage"] == planned_digest(order, 0, order.steps_per_epoch)
    weights = load_file(run / "model.safetensors")

    shutil.rmtree((run / "checkpoints" / "last").resolve())
    for link in ("last", "best"):
        (run / "checkpoints" / link).unlink(missing_ok=True)
    left = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert left
    again = bloodcell(*arguments)
    assert again.code == 0, again.err
    assert "resuming" in again.err
    same = load_file(run / "model.safetensors")
    assert all(np.array_equal(weights[name], same[name]) for name in weights)
