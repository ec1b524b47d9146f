"""How far a run is to be believed: temperature, threshold and conformal quantile, chosen on its validation split."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bloodcell.evaluation.conformal import quantile_of, sets_of, true_scores
from bloodcell.evaluation.predictions import Predictions
from bloodcell.evaluation.selective import threshold_of
from bloodcell.evaluation.source import Source, read_sourced
from bloodcell.evaluation.temperature import fit_temperature
from shards.errors import BadInput

METHOD, LEVEL = "aps", 0.9
"""Of the conformal sets; evaluation.json says what they cover on the test split."""


@dataclass(frozen=True)
class Certainty:
    """What the validation split says about a network.

    Attributes:
        temperature: by which logits are divided so that probabilities mean what they say.
        threshold: of the largest probability before that division; images below it are uncertain. NaN: not known.
        keep: the share of the validation images that is not uncertain.
        quantile: of the conformal scores; infinite: every class stays possible. NaN: not known.
        notes: what could not be chosen and why, for the reader.
    """

    temperature: float
    threshold: float
    keep: float
    quantile: float
    notes: tuple[str, ...]

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities, float64 [images, classes], of float32 logits of that shape."""
        return softmax(logits, self.temperature)

    def uncertain(self, logits: np.ndarray) -> np.ndarray | None:
        """Return which images a person should look at, bool [images]; None if no threshold is known."""
        return None if math.isnan(self.threshold) else softmax(logits, 1.0).max(axis=1) < self.threshold

    def plausible(self, logits: np.ndarray) -> np.ndarray | None:
        """Return which classes cannot be ruled out, bool [images, classes]; None if no quantile is known."""
        if math.isnan(self.quantile):
            return None
        return sets_of(METHOD, softmax(logits, 1.0), np.full(len(logits), self.quantile))


def certainty_of(run: Path, folder: Path, wanted: Source, keep: float) -> Certainty:
    """Choose temperature, threshold and quantile on the validation predictions of a run.

    Args:
        run: the run folder.
        folder: where the tables lie that were made in the same way: `run`, or RUN/tta8.
        wanted: what the table must follow from.
        keep: share of the validation images that the network shall decide without a person, in (0, 1].
    """
    found = read_sourced(folder / "predictions" / "val.parquet", wanted)
    if isinstance(found, str):
        tta = f" --tta {wanted.orientations}" if wanted.orientations > 1 else ""
        fix = f"`bloodcell evaluate {run} --split val{tta}` makes it"
        return unknown(keep, f"the table of validation predictions cannot be used ({found}); {fix}")
    return chosen(found, keep) if len(found.ids) else unknown(keep, "the validation split is empty")


def chosen(validation: Predictions, keep: float) -> Certainty:
    """Choose on a table of validation predictions that is not empty."""
    notes: tuple[str, ...] = ()
    try:
        temperature = fit_temperature(validation)
    except BadInput as error:
        temperature, notes = 1.0, (f"probabilities are as the network gives them: {error.what}",)
    threshold = threshold_of(validation.probabilities().max(axis=1), keep)
    return Certainty(temperature, threshold, keep, quantile_of(true_scores(METHOD, validation), LEVEL), notes)


def unknown(keep: float, why: str) -> Certainty:
    """Return what is known where there is nothing to choose on."""
    return Certainty(1.0, math.nan, keep, math.nan, (f"not calibrated and nothing is called uncertain: {why}",))


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return probabilities, float64 [images, classes], of float32 logits divided by a temperature."""
    scaled = logits.astype(np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True))
