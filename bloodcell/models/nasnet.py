"""NASNet-A Mobile (4 @ 1056): the cells of Zoph et al. 2018 (arXiv:1707.07012, figure 4) in the mobile arrangement.

Twelve normal cells in three stages of four, a reduction cell between the stages, two reduction cells as the stem;
44 filters, 1,056 features. Paddings are TensorFlow's "same", in which the network was designed; the tensors are named
as in the public weights (pretrained-models.pytorch, `nasnetamobile`). The auxiliary classifier and scheduled drop-path
of the paper, which serve training on ImageNet alone, are left out.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

FILTERS = 44
"""Filters of the first stage; each later stage has twice as many."""

STEM = 32
"""Channels of the first convolution."""


class NASNetMobile(nn.Module):
    """NASNet-A Mobile, 5,289,978 parameters with 1,000 classes.

    Args:
        classes: number of outputs.
        dropout: rate of the dropout before the classifier, 0..1; 0.5 in the paper's training.
    """

    def __init__(self, classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.conv0 = nn.Sequential()
        self.conv0.add_module("conv", nn.Conv2d(3, STEM, 3, stride=2, bias=False))
        self.conv0.add_module("bn", _norm(STEM))
        self.cell_stem_0 = ReductionCell(STEM, None, FILTERS // 4)
        self.cell_stem_1 = ReductionCell(FILTERS, STEM, FILTERS // 2, halve=True)
        before, now = FILTERS, 2 * FILTERS  # channels of the cell before the last one, and of the last one
        for stage in range(3):
            filters = FILTERS * 2**stage
            if stage:
                # The cell before the reduction, not the one before that, is what the next cell sees beside its output.
                self.add_module(f"reduction_cell_{stage - 1}", ReductionCell(now, before, filters))
                before, now = now, 4 * filters
            for i in range(4):
                # Numbered as in the large network, which has six cells in a stage.
                self.add_module(f"cell_{6 * stage + i}", NormalCell(now, before, filters, halve=i == 0))
                before, now = now, 6 * filters
        self.dropout = nn.Dropout(dropout)
        self.last_linear = nn.Linear(now, classes)
        self.apply(_start)
        nn.init.normal_(self.last_linear.weight, std=0.01)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Map float images [N, 3, H, W] to feature maps [N, 1056, H/32, W/32] (rounded up, less the first border)."""
        first = self.conv0(images)
        before = self.cell_stem_0(first, first)
        now = self.cell_stem_1(before, first)
        for stage in range(3):
            if stage:
                before, now = now, self.get_submodule(f"reduction_cell_{stage - 1}")(now, before)
            for i in range(4):
                before, now = now, self.get_submodule(f"cell_{6 * stage + i}")(now, before)
        return functional.relu(now)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float images [N, 3, H, W], H and W at least 32, to logits [N, classes]."""
        features = self.forward_features(images).mean((2, 3))
        return self.last_linear(self.dropout(features))

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.last_linear


class Cell(nn.Module):
    """What the two kinds of cell share: both inputs brought to `filters` channels and one size.

    Args:
        inputs: channels of the cell before.
        skipped: channels of the cell before that one; None: there is none, the same input is used as it is.
        filters: channels of every branch.
        halve: whether the skipped input is twice as large as the other one.
    """

    def __init__(self, inputs: int, skipped: int | None, filters: int, halve: bool = False) -> None:
        super().__init__()
        self.conv_1x1 = _pointwise(inputs, filters)
        self.adjusts, self.halves = skipped is not None, halve
        if skipped is not None and halve:
            self.path_1, self.path_2 = nn.Sequential(), nn.Sequential()
            self.path_1.add_module("conv", nn.Conv2d(skipped, filters // 2, 1, bias=False))
            self.path_2.add_module("conv", nn.Conv2d(skipped, filters // 2, 1, bias=False))
            self.final_path_bn = _norm(filters)
        elif skipped is not None:
            self.conv_prev_1x1 = _pointwise(skipped, filters)

    def both(self, now: torch.Tensor, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both inputs, adjusted."""
        if self.adjusts and self.halves:
            before = functional.relu(before)
            # Two strided looks, one of them a pixel further down and right, so that no pixel is lost.
            moved = functional.pad(before[:, :, 1:, 1:], (0, 1, 0, 1))
            halved = [self.path_1(before[:, :, ::2, ::2]), self.path_2(moved[:, :, ::2, ::2])]
            before = self.final_path_bn(torch.cat(halved, 1))
        elif self.adjusts:
            before = self.conv_prev_1x1(before)
        return self.conv_1x1(now), before


class NormalCell(Cell):
    """A cell that keeps the size: [N, inputs, H, W] and its predecessor to [N, 6 x filters, H, W]."""

    def __init__(self, inputs: int, skipped: int, filters: int, halve: bool = False) -> None:
        super().__init__(inputs, skipped, filters, halve)
        self.comb_iter_0_left = Separable(filters, filters, 5)
        self.comb_iter_0_right = Separable(filters, filters, 3)
        self.comb_iter_1_left = Separable(filters, filters, 5)
        self.comb_iter_1_right = Separable(filters, filters, 3)
        self.comb_iter_4_left = Separable(filters, filters, 3)

    def forward(self, now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Combine the cell before and the one before that."""
        now, before = self.both(now, before)
        average = _average(before, 1)
        parts = [
            before,
            self.comb_iter_0_left(now) + self.comb_iter_0_right(before),
            self.comb_iter_1_left(before) + self.comb_iter_1_right(before),
            _average(now, 1) + before,
            average + average,
            self.comb_iter_4_left(now) + now,
        ]
        return torch.cat(parts, 1)


class ReductionCell(Cell):
    """A cell that halves the size: [N, inputs, H, W] and its predecessor to [N, 4 x filters, H/2, W/2], rounded up."""

    def __init__(self, inputs: int, skipped: int | None, filters: int, halve: bool = False) -> None:
        super().__init__(inputs, skipped, filters, halve)
        beside = inputs if skipped is None else filters
        self.comb_iter_0_left = Separable(filters, filters, 5, stride=2)
        self.comb_iter_0_right = Separable(beside, filters, 7, stride=2)
        self.comb_iter_1_right = Separable(beside, filters, 7, stride=2)
        self.comb_iter_2_right = Separable(beside, filters, 5, stride=2)
        self.comb_iter_4_left = Separable(filters, filters, 3)

    def forward(self, now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Combine the cell before and the one before that."""
        now, before = self.both(now, before)
        largest = _largest(now, 2)
        first = self.comb_iter_0_left(now) + self.comb_iter_0_right(before)
        second = largest + self.comb_iter_1_right(before)
        third = _average(now, 2) + self.comb_iter_2_right(before)
        fourth = _average(first, 1) + second
        fifth = self.comb_iter_4_left(first) + largest
        return torch.cat([second, third, fourth, fifth], 1)


class Separable(nn.Module):
    """ReLU, depthwise and pointwise convolution and BatchNorm, twice; the stride is in the first.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        kernel: side of the depthwise kernels.
        stride: of the first depthwise convolution.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.separable_1 = _separable(inputs, outputs, kernel, stride, 0 if stride > 1 else kernel // 2)
        self.bn_sep_1 = _norm(outputs)
        self.separable_2 = _separable(outputs, outputs, kernel, 1, kernel // 2)
        self.bn_sep_2 = _norm(outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H/stride, W/stride]."""
        features = functional.relu(features)
        if self.stride > 1:
            features = functional.pad(features, _same(features, self.kernel))
        features = self.bn_sep_1(self.separable_1(features))
        return self.bn_sep_2(self.separable_2(functional.relu(features)))


def _same(features: torch.Tensor, kernel: int) -> tuple[int, int, int, int]:
    """Return left, right, top and bottom padding for stride 2: an even side gets one pixel less at its beginning."""
    side, (height, width) = kernel // 2, features.shape[2:]
    return side - 1 + width % 2, side, side - 1 + height % 2, side


def _average(features: torch.Tensor, stride: int) -> torch.Tensor:
    """Average 3x3 windows; what lies outside does not count."""
    return functional.avg_pool2d(
        features, 3, stride, _pad(features, stride), ceil_mode=stride > 1, count_include_pad=False
    )


def _largest(features: torch.Tensor, stride: int) -> torch.Tensor:
    """Take the largest value of 3x3 windows."""
    return functional.max_pool2d(features, 3, stride, _pad(features, stride), ceil_mode=stride > 1)


def _pad(features: torch.Tensor, stride: int) -> tuple[int, int]:
    if stride == 1:
        return 1, 1
    height, width = features.shape[2:]
    return height % 2, width % 2


def _separable(inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> nn.Sequential:
    layers = nn.Sequential()
    depthwise = nn.Conv2d(inputs, inputs, kernel, stride, padding, groups=inputs, bias=False)
    layers.add_module("depthwise_conv2d", depthwise)
    layers.add_module("pointwise_conv2d", nn.Conv2d(inputs, outputs, 1, bias=False))
    return layers


def _pointwise(inputs: int, outputs: int) -> nn.Sequential:
    layers = nn.Sequential()
    layers.add_module("relu", nn.ReLU())
    layers.add_module("conv", nn.Conv2d(inputs, outputs, 1, bias=False))
    layers.add_module("bn", _norm(outputs))
    return layers


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=0.001)


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
