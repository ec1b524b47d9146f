"""Is an exported file the run? Both judge the same images, and the largest difference decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bloodcell.data.openset import OpenSet
from bloodcell.export.formats import use
from bloodcell.predict import Classifier
from bloodcell.predict.certainty import softmax
from bloodcell.runfolder import RunFolder
from shards.errors import BadInput

BOUND = 1e-4
"""Largest difference of a probability that counts as none, where both see the same pixels."""

IMAGES = 200


@dataclass(frozen=True)
class Check:
    """What the comparison found.

    Attributes:
        images: how many were judged.
        of: where they came from.
        difference: largest difference of a probability between the file and the run shown the file's pixels.
        whole: the same between the file and the run as it is, whose readers scale images by another program.
        other: images whose most likely class differs between those two.
    """

    images: int
    of: str
    difference: float
    whole: float
    other: int
    bound: float = BOUND

    @property
    def passed(self) -> bool:
        """Whether the file is the run."""
        return self.difference <= self.bound


def check(classifier: Classifier, run: Path, kind: str, file: Path, bound: float = BOUND) -> Check:
    """Compare an exported file with its run on images of the run's test split, or on drawn ones where that is gone."""
    pictures, of = _pictures(classifier, run)
    calibrated = kind != "safetensors"  # a weights file knows no temperature
    with use(kind, file) as apply:
        theirs = np.concatenate([apply(picture[None]) for picture in pictures])
    same = _shown(classifier, pictures, calibrated)
    answers = classifier.predict(pictures)
    logits = np.stack([answer.logits for answer in answers])
    ours = classifier.certainty.probabilities(logits) if calibrated else softmax(logits, 1.0)
    other = int((theirs.argmax(1) != ours.argmax(1)).sum())
    difference, whole = (float(np.abs(theirs - mine).max()) for mine in (same, ours))
    return Check(len(pictures), of, difference, whole, other, bound)


def _shown(classifier: Classifier, pictures: Sequence[np.ndarray], calibrated: bool) -> np.ndarray:
    """Return the run's probabilities for the pixels that the file's graph makes, float64 [images, classes]."""
    import torch

    from bloodcell.export.graph import Graph

    graph = Graph(classifier)
    with torch.inference_mode():
        logits = np.concatenate([graph(torch.from_numpy(picture[None]))[0].numpy() for picture in pictures])
    return classifier.certainty.probabilities(logits) if calibrated else softmax(logits, 1.0)


def _pictures(classifier: Classifier, run: Path) -> tuple[list[np.ndarray], str]:
    if run.is_dir():
        config = RunFolder(run).config()
        try:
            opened = OpenSet(Path(config.data.set))
            ids = opened.ids(opened.shards.split_name("test", config.data.fold))
            chosen = ids[np.linspace(0, len(ids) - 1, min(IMAGES, len(ids))).astype(np.int64)] if len(ids) else ids
            if len(chosen):
                return [
                    opened.image(int(sample)).copy() for sample in chosen
                ], f"test split of {opened.shards.folder.name}"
        except BadInput:
            pass
    generator = np.random.default_rng(0)
    sizes = generator.integers(classifier.config.data.size // 2, 2 * classifier.config.data.size, (IMAGES, 2))
    return [_smooth(generator, height, width) for height, width in sizes], "drawn patterns"


def _smooth(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a picture of soft stripes, uint8 [height, width, 3]."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows * a + columns * b + c) for a, b, c in generator.uniform(0.02, 0.4, (3, 3))]
    return ((np.stack(waves, axis=2) + 1) * 127.5).astype(np.uint8)
