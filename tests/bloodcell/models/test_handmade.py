"""The hand-made residual network has the form that is described, in each of its variants."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bloodcell.models import zoo


def test_the_form_of_the_handcrafted_resnet() -> None:
    model = zoo.build("handcrafted_resnet", 4).eval()
    stem = list(model.get_submodule("stem"))  # type: ignore[call-overload]
    assert [type(layer).__name__ for layer in stem] == ["BatchNorm2d", "Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    first = stem[1]
    assert (first.out_channels, first.kernel_size, first.stride) == (64, (7, 7), (2, 2))
    shapes = []
    for name in ("stem", "blocks.0", "blocks.1", "pool"):
        model.get_submodule(name).register_forward_hook(lambda *got: shapes.append(tuple(got[2].shape[1:])))
    assert model(torch.rand(2, 3, 192, 256)).shape == (2, 4)
    assert shapes == [(64, 48, 64), (256, 24, 32), (512, 12, 16), (512, 1, 1)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("handcrafted_resnet", nn.ReLU),
        ("handcrafted_resnet_tanh", nn.Tanh),
        ("handcrafted_resnet_sigmoid", nn.Sigmoid),
    ],
)
def test_each_activation_is_the_one_of_its_name(name: str, kind: type[nn.Module]) -> None:
    model = zoo.build(name, 4, dropout=0.2)
    used = [type(layer) for layer in model.modules() if isinstance(layer, nn.ReLU | nn.Tanh | nn.Sigmoid)]
    assert used == [kind] * 7
    assert [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)] == [0.2]


@pytest.mark.parametrize("name", ["handcrafted_resnet", "handcrafted_resnet_tanh", "handcrafted_resnet_sigmoid"])
def test_the_signal_neither_dies_nor_explodes_at_the_start(name: str) -> None:
    torch.manual_seed(0)
    model = zoo.build(name, 4)
    logits = model(torch.rand(8, 3, 64, 64))
    loss = nn.functional.cross_entropy(logits, torch.arange(8) % 4)
    assert loss.item() == pytest.approx(torch.tensor(4.0).log().item(), abs=0.3)
    torch.autograd.backward(loss)
    gradient = model.get_parameter("stem.1.weight").grad
    assert gradient is not None
    assert 1e-6 < gradient.norm().item() < 1e2
