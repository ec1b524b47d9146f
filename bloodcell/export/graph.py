"""A run as one network: pictures of any size in, logits and calibrated probabilities out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bloodcell.data.scaling import Window
from bloodcell.engine.setup import make_view
from bloodcell.predict import Classifier


class Graph(nn.Module):
    """Everything between decoded pixels and the answer.

    Args:
        classifier: a run, on the CPU.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        view = make_view(classifier.config)
        self.window = Window(view.size, view.backend)
        self.model = classifier.model
        self.register_buffer("mean", torch.tensor(view.mean).reshape(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(view.std).reshape(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("temperature", torch.tensor(classifier.certainty.temperature), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.temperature: Tensor
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and probabilities, float32 [n, classes] each, of RGB images uint8 [n, height, width, 3].

        Each image is shown as its largest central square; probabilities are those of `predict`.
        """
        logits = self.model((self.window(images) - self.mean) / self.std)
        return logits, torch.softmax(logits / self.temperature, dim=1)
