"""NASNet-A Mobile has the published counts, the cells of timm's large network, and the mobile wiring between them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models import nasnet as timm_nasnet
from torch import nn
from torch.nn import functional

from bloodcell.models.nasnet import NASNetMobile


class AverageInside(nn.Module):
    """TensorFlow's "same" average of 3x3 windows with stride 2: sums and counts of the pixels that are there."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        height, width = features.shape[2:]
        pad = (width % 2, 1, height % 2, 1)
        total, count = (functional.pad(x, pad) for x in (features, torch.ones_like(features)))
        return functional.avg_pool2d(total, 3, 2) / functional.avg_pool2d(count, 3, 2)


class TimmCells(nn.Module):
    """The mobile network put together from timm's cells; `skip` wires it as the large network is wired."""

    def __init__(self, skip: bool = False) -> None:
        super().__init__()
        self.skip = skip
        options: dict[str, Any] = {"pad_type": "same"}
        self.conv0 = nn.Sequential()
        self.conv0.add_module("conv", nn.Conv2d(3, 32, 3, 2, bias=False))
        self.conv0.add_module("bn", nn.BatchNorm2d(32, eps=0.001))
        self.cell_stem_0 = timm_nasnet.CellStem0(32, num_channels=11, **options)
        self.cell_stem_1 = timm_nasnet.CellStem1(32, num_channels=22, **options)
        first, normal = timm_nasnet.FirstCell, timm_nasnet.NormalCell
        self.cell_0 = first(44, 22, 88, 44, **options)
        self.cell_1 = normal(88, 44, 264, 44, **options)
        self.cell_2 = normal(264, 44, 264, 44, **options)
        self.cell_3 = normal(264, 44, 264, 44, **options)
        self.reduction_cell_0 = timm_nasnet.ReductionCell0(264, 88, 264, 88, **options)
        self.cell_6 = first(264, 44, 352, 88, **options)
        self.cell_7 = normal(352, 88, 528, 88, **options)
        self.cell_8 = normal(528, 88, 528, 88, **options)
        self.cell_9 = normal(528, 88, 528, 88, **options)
        self.reduction_cell_1 = timm_nasnet.ReductionCell1(528, 176, 528, 176, **options)
        self.cell_12 = first(528, 88, 704, 176, **options)
        self.cell_13 = normal(704, 176, 1056, 176, **options)
        self.cell_14 = normal(1056, 176, 1056, 176, **options)
        self.cell_15 = normal(1056, 176, 1056, 176, **options)
        for module in list(self.modules()):
            for name, child in module.named_children():
                if type(child).__name__ == "AvgPool2dSame":  # it counts the padding where the stride is 2
                    setattr(module, name, AverageInside())
        self.last_linear = nn.Linear(1056, 1000)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x0 = self.conv0(images)
        s0 = self.cell_stem_0(x0)
        s1 = self.cell_stem_1(x0, s0)
        c0 = self.cell_0(s1, s0)
        c1 = self.cell_1(c0, s1)
        c2 = self.cell_2(c1, c0)
        c3 = self.cell_3(c2, c1)
        r0 = self.reduction_cell_0(c3, c2)
        c6 = self.cell_6(r0, c2 if self.skip else c3)
        c7 = self.cell_7(c6, r0)
        c8 = self.cell_8(c7, c6)
        c9 = self.cell_9(c8, c7)
        r1 = self.reduction_cell_1(c9, c8)
        c12 = self.cell_12(r1, c8 if self.skip else c9)
        c13 = self.cell_13(c12, r1)
        c14 = self.cell_14(c13, c12)
        return self.last_linear(self.cell_15(c14, c13).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> NASNetMobile:
    torch.manual_seed(0)
    model = NASNetMobile(1000)
    with torch.no_grad():  # statistics of real features: with those of a fresh network values grow without bound
        model.train()(torch.rand(8, 3, 64, 64))
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None
                layer.reset_running_stats()
        model(torch.rand(8, 3, 64, 64))
    return model.eval()


def test_the_counts_are_the_published_ones(network: NASNetMobile) -> None:
    parameters = {name: p.numel() for name, p in network.named_parameters()}
    head = sum(count for name, count in parameters.items() if name.startswith("last_linear"))
    statistics = sum(b.numel() for name, b in network.named_buffers() if "running" in name)
    assert sum(parameters.values()) == 5_289_978
    assert sum(parameters.values()) - head == 4_232_978
    assert statistics == 36_738
    assert network.forward_features(torch.rand(1, 3, 224, 224)).shape == (1, 1056, 7, 7)


@pytest.mark.parametrize("size", [96, 97, 99, 113])
def test_the_cells_are_those_of_the_large_network(network: NASNetMobile, size: int) -> None:
    theirs = TimmCells()
    theirs.load_state_dict(network.state_dict())
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        ours, expected = network(images), theirs.eval()(images)
        assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        theirs.skip = True
        assert not torch.allclose(ours, theirs(images), rtol=1e-2), "the wiring makes no difference to this test"
