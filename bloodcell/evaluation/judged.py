"""What every part of a judgement starts from: predictions with what follows from them, computed once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bloodcell.evaluation.predictions import Predictions
from bloodcell.evaluation.resample import blocks_of, cluster_index
from bloodcell.evaluation.tuning import Tuning
from shards.errors import BadInput, Fault

NO_VALIDATION = "no validation predictions were given"


@dataclass(frozen=True, eq=False)
class Judged:
    """Predictions of one split and what follows from them.

    Attributes:
        predictions: every sample of the split.
        probabilities: float64 [samples, classes].
        losses: float64 [samples], nats.
        predicted: int32 [samples].
        cluster: int64 [samples], from resample.cluster_index.
        blocks: int64 [samples], what is drawn in the bootstrap, from resample.blocks_of.
        resamples: of the bootstrap.
        tuning: what temperatures and thresholds are chosen on, None if there is nothing.
        untuned: why there is nothing, for the reader.
    """

    predictions: Predictions
    probabilities: np.ndarray
    losses: np.ndarray
    predicted: np.ndarray
    cluster: np.ndarray
    blocks: np.ndarray
    resamples: int
    tuning: Tuning | None = None
    untuned: str = NO_VALIDATION

    @classmethod
    def of(
        cls, predictions: Predictions, resamples: int, tuning: Tuning | None = None, untuned: str = NO_VALIDATION
    ) -> Judged:
        """Return what is judged.

        Raises:
            BadInput: the split is empty.
            Fault: no resamples are asked for.
        """
        if not len(predictions.ids):
            raise BadInput("the split has no samples to evaluate", predictions.split, "choose another split")
        if resamples < 1:
            raise Fault(f"no intervals with {resamples} resamples", predictions.split)
        cluster = cluster_index(predictions.groups)
        return cls(
            predictions,
            predictions.probabilities(),
            predictions.losses(),
            predictions.predicted(),
            cluster,
            blocks_of(cluster),
            resamples,
            tuning,
            untuned,
        )

    @property
    def labels(self) -> np.ndarray:
        """int32 [samples], class index."""
        return self.predictions.labels

    @property
    def classes(self) -> list[str]:
        """Class names in index order."""
        return self.predictions.classes

    @property
    def groups(self) -> int:
        """How many groups there are; a sample without one is a group of its own."""
        return int(self.cluster.max()) + 1
