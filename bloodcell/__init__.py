"""What a training process does: config, data, models, engine, evaluation, tracking, export.

From Python a finished run is `bloodcell.load(RUN).predict(images)`, a shard set is `bloodcell.open_set(SET)`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from bloodcell.data.openset import OpenSet
    from bloodcell.predict.classifier import Classifier


def load(
    run: str | os.PathLike[str],
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    orientations: int = 1,
    keep: float = 0.95,
) -> Classifier:
    """Return the trained network of a run folder, or of its model.safetensors, ready for use.

    `load(run).predict(images)` takes paths, bytes of image files, RGB pixels (uint8 [height, width, 3]) or PIL images,
    and gives a list of predict.classifier.Answer, one for each, in order.

    Args:
        run: the folder or the file.
        device: where to compute.
        orientations: 1, 2, 4 or 8 views of each image, whose probabilities are averaged.
        keep: share of the validation images that shall not be called uncertain, in (0, 1].

    Raises:
        BadInput: no run, not finished, damaged, or numbers that make no sense.
    """
    from bloodcell.predict.classifier import open_classifier

    return open_classifier(Path(run), device, orientations, keep)


def open_set(folder: str | os.PathLike[str]) -> OpenSet:
    """Return a shard set as tables and pixels; raises BadInput if there is none, or it is damaged."""
    from bloodcell.data.openset import OpenSet

    return OpenSet(Path(folder))
