"""A run behind the page: its answers, which are those of `predict`, and its maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bloodcell.explain.gradcam import GradCAM, Mapper
from bloodcell.explain.rollout import Rollout, has_attention
from bloodcell.predict.classifier import Answer, Classifier, Device, Picture, open_classifier
from bloodcell.predict.seen import seen_by
from bloodcell.report.card import card_of
from shards.errors import BadInput

BLANK = (64, 64, 3)


class Model:
    """A run that is ready to answer. Not for several threads at once.

    Args:
        path: a run folder, or a lone model.safetensors.
        name: what it is called on the page.
        device: where to compute.
        keep: share of the validation images that shall not be called uncertain, in (0, 1].

    Raises:
        BadInput: no run, not finished, damaged.
    """

    def __init__(self, path: Path, name: str, device: Device, keep: float) -> None:
        self.classifier: Classifier = open_classifier(path, device, keep=keep)
        self.name = name
        self.architecture = self.classifier.config.model.name
        self.card = card_of(path)
        self._seen = seen_by(path)[0]
        self.mapped, self._mapper = self._find_mapper()

    def answers(self, pictures: Sequence[Picture]) -> list[Answer]:
        """Return one answer for each picture, in order."""
        return list(self.classifier.stream(pictures, lambda picture: picture))

    def parts(self, answers: Sequence[Answer]) -> list[str]:
        """Return for each answer which split of the run's own set holds these very bytes, "" if none."""
        return self._seen([answer.sha256 for answer in answers])

    def maps(self, pictures: Sequence[np.ndarray], answers: Sequence[Answer]) -> list[np.ndarray]:
        """Return where the network looked for its answer, float32 [size, size] in 0..1 each; nothing without a way.

        Args:
            pictures: uint8 [height, width, 3] each.
            answers: of these pictures.
        """
        if self._mapper is None:
            return []
        found: list[np.ndarray] = []
        batch = self.classifier.batch
        for first in range(0, len(pictures), batch):
            some = pictures[first : first + batch]
            labels = [self.classifier.classes.index(answer.label) for answer in answers[first : first + batch]]
            shown = self.classifier.shown(some)[: len(some)]
            found += list(self._mapper(shown, torch.tensor(labels, device=shown.device)).float().cpu().numpy())
        return found

    def _find_mapper(self) -> tuple[str, Mapper | None]:
        """Return the name of the kind of map and what makes it; no name and None for a network without any."""
        network = self.classifier.model
        try:
            if has_attention(network):
                return "attention rollout", Rollout(network)
            blank = self.classifier.shown([np.zeros(BLANK, np.uint8)])[:1]
            return "Grad-CAM", GradCAM(network, blank)
        except BadInput:
            return "", None
