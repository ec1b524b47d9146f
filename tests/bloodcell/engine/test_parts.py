"""The engine's small parts: schedule, BatchNorm slots, optimizer groups, checkpoints, guard arithmetic."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from bloodcell.config import OptimConfig
from bloodcell.engine.batchnorm import BatchNormStatistics
from bloodcell.engine.optim import build_optimizer
from bloodcell.engine.schedule import Schedule


def test_the_learning_rate_rises_then_falls() -> None:
    rates = [Schedule("cosine", 1.0, 10, 100).rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.5)
    assert rates[-1] < 0.001
    assert [Schedule("constant", 0.3, 0, 9).rate(step) for step in (0, 8)] == [0.3, 0.3]


def test_the_learning_rate_falls_in_steps_and_on_plateaus() -> None:
    steps = Schedule("step", 1.0, 2, 40, fall=0.5, fall_every=10)
    assert [steps.rate(step) for step in (0, 1, 9, 10, 25, 39)] == [0.5, 1.0, 1.0, 0.5, 0.25, 0.125]
    plateau = Schedule("plateau", 1.0, 0, 40, fall=0.1)
    assert [plateau.rate(5, falls) for falls in (0, 1, 2)] == pytest.approx([1.0, 0.1, 0.01])


def test_one_cycle_is_that_of_torch() -> None:
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.4, total_steps=101, pct_start=0.3, cycle_momentum=False, div_factor=25, final_div_factor=1e4
    )
    ours = Schedule("onecycle", 0.4, 29, 100)  # theirs reaches the peak one step before pct_start
    expected = []
    for _ in range(100):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert [ours.rate(step) for step in range(100)] == pytest.approx(expected, rel=2e-2, abs=1e-5)


@pytest.mark.parametrize("slots", [1, 2, 3, 6])
def test_slots_move_batchnorm_once_towards_their_mean(slots: int) -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(4, momentum=0.1)
    layer.running_mean.normal_()
    before = layer.running_mean.clone()
    micro_batches = [torch.randn(8, 4, 3, 3) * 2 + k for k in range(slots)]
    statistics = BatchNormStatistics(nn.Sequential(layer))
    for slot, images in enumerate(micro_batches):
        statistics.enter_slot(slot, slots)
        layer(images)
    statistics.leave_slots()
    mean = torch.stack([images.mean((0, 2, 3)) for images in micro_batches]).mean(0)
    torch.testing.assert_close(layer.running_mean, 0.9 * before + 0.1 * mean)
    assert layer.momentum == 0.1


def test_biases_and_norms_are_not_decayed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    groups = build_optimizer(model, OptimConfig(weight_decay=0.3), torch.device("cpu")).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(2, 0.3), (4, 0.0)]
