"""Hand-made networks: the plain five-block CNN that students start from."""

from __future__ import annotations

import torch
from torch import nn

CNN5_WIDTHS = (32, 64, 128, 128, 256)
"""Output channels of the five blocks of `CNN5`."""

CNN5_GRID = 4
"""Side of the feature map that `CNN5` flattens; other sizes are averaged to it."""


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
