"""Hand-made networks: the plain five-block CNN that students start from, and a residual network of two blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

CNN5_WIDTHS = (32, 64, 128, 128, 256)
"""Output channels of the five blocks of `CNN5`."""

CNN5_GRID = 4
"""Side of the feature map that `CNN5` flattens; other sizes are averaged to it."""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
"""Nonlinearities that `HandcraftedResNet` can be made with."""


class CNN5(nn.Module):
    """Five blocks of 3x3 convolution, ReLU, 2x2 max-pooling and dropout; then flatten, dense 128, dense classes.

    The form is the classic one (Krizhevsky et al. 2012, doi:10.1145/3065386, made small; no batch normalisation).
    The features are averaged to 4x4 before they are flattened, so that every image of at least 32 px fits.
    The weights start as in He et al. 2015 (arXiv:1502.01852): without normalisation layers the signal keeps its
    variance through the ReLUs only so.

    Args:
        classes: number of outputs.
        dropout: rate of the dropout after each block and before the last layer, 0..1.
    """

    def __init__(self, classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        widths = (3, *CNN5_WIDTHS)
        self.features = nn.Sequential(
            *(_block(widths[i], widths[i + 1], dropout) for i in range(len(CNN5_WIDTHS))),
        )
        self.dense = nn.Sequential(
            nn.AdaptiveAvgPool2d(CNN5_GRID),
            nn.Flatten(),
            nn.Linear(CNN5_WIDTHS[-1] * CNN5_GRID**2, 128),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(128, classes)
        self.apply(_start)
        # The logits start near zero: the first loss is log(classes), whatever the features are.
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float images [N, 3, H, W], H and W at least 32, to logits [N, classes]."""
        return self.head(self.dense(self.features(images)))


class HandcraftedResNet(nn.Module):
    """A small residual network made by hand: BatchNorm on the input, a 7x7 stem, two bottlenecks, global max-pooling.

    The stem is a 7x7 convolution of stride 2 to 64 channels, BatchNorm, activation, 3x3 max-pooling of stride 2; each
    bottleneck (He et al. 2016, doi:10.1109/CVPR.2016.90) squeezes, convolves 3x3 with stride 2, expands, and adds a
    strided 1x1 projection of its input.

    Args:
        classes: number of outputs.
        dropout: rate of the dropout before the last layer, 0..1.
        activation: one of `ACTIVATIONS`.
    """

    def __init__(self, classes: int, dropout: float = 0.0, activation: str = "relu") -> None:
        super().__init__()
        act = ACTIVATIONS[activation]
        self.stem = nn.Sequential(
            nn.BatchNorm2d(3),
            nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            act(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.blocks = nn.Sequential(Bottleneck(64, 64, 256, act), Bottleneck(256, 128, 512, act))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(512, classes)
        self.apply(_start if activation == "relu" else _start_saturating)
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float images [N, 3, H, W], H and W at least 32, to logits [N, classes]."""
        return self.head(self.dropout(self.pool(self.blocks(self.stem(images))).flatten(1)))


class Bottleneck(nn.Module):
    """Squeeze to `middle` channels, convolve 3x3 with stride 2, expand to `outputs`; add the projected input.

    Args:
        inputs: channels that come in.
        middle: channels of the 3x3 convolution.
        outputs: channels that go out.
        activation: makes the nonlinearity.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inputs, middle, kernel_size=1, bias=False),
            nn.BatchNorm2d(middle),
            activation(),
            nn.Conv2d(middle, middle, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(middle),
            activation(),
            nn.Conv2d(middle, outputs, kernel_size=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=1, stride=2, bias=False), nn.BatchNorm2d(outputs)
        )
        self.activation = activation()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H/2, W/2], rounded up."""
        return self.activation(self.path(features) + self.shortcut(features))


def _block(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(dropout),
    )


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _start_saturating(module: nn.Module) -> None:
    """Glorot and Bengio 2010, for activations that saturate."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
