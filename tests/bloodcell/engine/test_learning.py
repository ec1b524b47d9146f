"""Losses, optimizers, averages of weights: against torch and scikit-learn, and through a real resumed training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional

from bloodcell.config import Config, LossConfig, OptimConfig, TrainConfig, override
from bloodcell.engine.average import make_average
from bloodcell.engine.losses import Loss, build_loss, class_weights
from bloodcell.engine.optim import add_l1, build_optimizer, check_optimizer, set_learning_rate
from bloodcell.engine.resolve import Machine, resolve
from bloodcell.engine.train import Progress
from bloodcell.models import zoo
from bloodcell.ranks import Ranks
from shards.errors import BadInput

CLASSES, COUNTS = ["Benign", "Early", "Pro"], [10, 30, 60]


def _batch(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(n, 3) * 2, torch.randint(0, 3, (n,))


def test_the_plain_loss_is_that_of_torch() -> None:
    logits, labels = _batch()
    loss = build_loss(LossConfig(label_smoothing=0.1), CLASSES, COUNTS)
    assert torch.equal(loss(logits, labels), functional.cross_entropy(logits, labels, label_smoothing=0.1))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_long_form_agrees_with_torch_where_torch_has_it(smoothing: float) -> None:
    """Class weights of 1 take the general path; labels and the same labels as probabilities are one thing."""
    logits, labels = _batch()
    loss = Loss(smoothing, weights=torch.ones(3))
    expected = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(loss(logits, labels), expected)
    torch.testing.assert_close(loss(logits, functional.one_hot(labels, 3).float()), expected)


def test_the_focal_loss_is_its_formula() -> None:
    logits, labels = _batch()
    p = logits.softmax(1)[torch.arange(40), labels]
    loss = build_loss(LossConfig(name="focal", gamma=1.5), CLASSES, COUNTS)
    torch.testing.assert_close(loss(logits, labels), -((1 - p) ** 1.5 * p.log()).mean())


def test_a_weighted_loss_does_not_depend_on_how_a_batch_is_cut() -> None:
    logits, labels = _batch()
    loss = build_loss(LossConfig(class_weights="Benign=5,Early=1,Pro=0.5"), CLASSES, COUNTS)
    halves = (loss(logits[:20], labels[:20]) + loss(logits[20:], labels[20:])) / 2
    torch.testing.assert_close(loss(logits, labels), halves)


def test_logit_adjustment_repairs_a_prior() -> None:
    """With tau 1 the minimum over unbounded logits is the balanced posterior: the class shares are taken out."""
    loss = build_loss(LossConfig(logit_adjustment=1.0), CLASSES, COUNTS)
    bias = torch.zeros(3, requires_grad=True)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    optimizer = torch.optim.LBFGS([bias], max_iter=50)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(bias.expand(100, 3), labels)
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(bias.detach().softmax(0), torch.full((3,), 1 / 3), atol=1e-3, rtol=0)


def test_balanced_weights_are_those_of_sklearn() -> None:
    labels = np.repeat(np.arange(3), COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert class_weights("balanced", CLASSES, COUNTS) == pytest.approx(list(expected))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Benign=1,Early=2", "add Pro"),
        ("Benign=1,Early=2,Prae=3", "Pro"),
        ("Benign=1,Early=0,Pro=1", "Early=0"),
        ("1,2,3", "not a class weight"),
        ("Benign=nan,Early=2,Pro=1", "Benign=nan"),
    ],
)
def test_class_weights_that_do_not_fit_are_refused(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        class_weights(text, CLASSES, COUNTS)


def test_an_empty_class_has_no_balanced_weight() -> None:
    with pytest.raises(BadInput, match="'Pro' has no training sample"):
        class_weights("balanced", CLASSES, [3, 4, 0])


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop", "timm:lamb", "timm:lion"])
def test_every_optimizer_learns(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = build_optimizer(model, OptimConfig(name=name, lr=0.01, weight_decay=0.01), torch.device("cpu"))
    images, labels = torch.randn(64, 3), torch.randint(0, 3, (64,))
    losses = []
    for _ in range(60):
        set_learning_rate(optimizer, 0.01)
        loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_one_kernel_takes_the_same_steps(name: str) -> None:
    steps = {}
    for fused in ("off", "on"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(37, 53), nn.Linear(53, 3))
        optimizer = build_optimizer(model, OptimConfig(name=name, fused=fused), torch.device("cpu"))
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.ones(4, 37)).square().sum().backward()
            optimizer.step()
        assert all(bool(group.get("fused")) == (fused == "on") for group in optimizer.param_groups)
        steps[fused] = model.state_dict()
    torch.testing.assert_close(steps["on"], steps["off"])


def test_one_kernel_by_optimizer_and_device_and_refused_where_there_is_none(tmp_path: Path) -> None:
    def resolved(device: str, **optim: str) -> str:
        given = {"data.set": str(tmp_path), **{f"optim.{name}": value for name, value in optim.items()}}
        return resolve(override(Config(), given), Ranks(0, 1, 0, 1, "none"), Machine(device, 4)).optim.fused

    assert [resolved("cpu", name=name) for name in ("adamw", "rmsprop")] == ["off", "off"]
    assert [resolved("cuda", name=name) for name in ("adamw", "sgd", "rmsprop")] == ["on", "on", "off"]
    assert [resolved("cpu", fused="on"), resolved("cuda", fused="off")] == ["on", "off"]
    with pytest.raises(BadInput, match="rmsprop has no such kernel"):
        check_optimizer(OptimConfig(name="rmsprop", fused="on"))


@pytest.mark.parametrize(("name", "said"), [("adamv", "choose one of adamw"), ("timm:lyon", "lion")])
def test_an_unknown_optimizer_names_the_known_ones(name: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        build_optimizer(nn.Linear(2, 2), OptimConfig(name=name), torch.device("cpu"))


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(BadInput, match="all are frozen"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig(), torch.device("cpu"))


@pytest.mark.parametrize("name", ["mobilenet_v2", "timm:resnet10t", "cnn5"])
def test_earlier_layers_take_smaller_steps(name: str) -> None:
    model = zoo.build(name, 4)
    optimizer = build_optimizer(model, OptimConfig(layer_decay=0.5), torch.device("cpu"))
    set_learning_rate(optimizer, 1.0)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    rates = [rate[id(p)] for p in model.parameters()]
    assert len(rates) == len(list(model.parameters()))
    assert rates == sorted(rates)
    assert rates[-1] == 1.0
    assert rates[0] <= 0.5**5


def test_l1_pulls_weights_but_not_biases_towards_zero() -> None:
    model = nn.Linear(4, 2)
    optimizer = build_optimizer(model, OptimConfig(l1=0.1), torch.device("cpu"))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    add_l1(optimizer, 0.1)
    torch.testing.assert_close(model.weight.grad, 0.1 * model.weight.detach().sign())
    assert not model.bias.grad.any()


def test_a_plateau_lets_the_rate_fall_once_per_patience() -> None:
    state = Progress()
    falls = []
    for value in (0.5, 0.4, 0.45, 0.3, 0.49, 0.6, 0.2):
        state.validated(value, smaller=False, patience=2)
        falls.append(state.falls)
    assert falls == [0, 0, 1, 1, 2, 2, 2]
    assert state.best == 0.6


def test_averages_are_what_their_names_say() -> None:
    values = [1.0, 4.0, 2.0, 8.0]
    for kind, expected in (("swa", np.mean(values[1:])), ("ema", None)):
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 5.0)
        average = make_average(model, TrainConfig(average=kind, ema_decay=0.9, swa_from=0.5), 4)
        shadow = 5.0
        for step, value in enumerate(values, 1):
            nn.init.constant_(model.weight, value)
            average.update(step)
            shadow += (1 - min(0.9, (1 + step) / (10 + step))) * (value - shadow)
        held = float(average._shadow[0])
        assert held == pytest.approx(expected if expected is not None else shadow)
