"""The whole judgement of one split: its metrics, and one section for each question that a reader may ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from bloodcell.evaluation.calibration import Calibration
from bloodcell.evaluation.conformal import Conformal
from bloodcell.evaluation.groups import WorstGroups
from bloodcell.evaluation.judged import NO_VALIDATION, Judged
from bloodcell.evaluation.operating import OperatingPoints
from bloodcell.evaluation.patients import Patients
from bloodcell.evaluation.predictions import Predictions
from bloodcell.evaluation.resample import Statistic, bootstrap
from bloodcell.evaluation.result import Basics
from bloodcell.evaluation.selective import Selective
from bloodcell.evaluation.tuning import Tuning


class Section(Protocol):
    """One part of a judgement: what it needs of the bootstrap, and what it says once that is drawn."""

    statistics: list[Statistic]

    def section(self, draws: dict[str, np.ndarray], level: float) -> dict[str, Any]:
        """Return its part of the result."""


def judge(
    predictions: Predictions,
    validation: Predictions | Tuning | None = None,
    sources: Mapping[int, str] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    untuned: str = NO_VALIDATION,
) -> dict[str, Any]:
    """Return everything about one split as JSON-native values, floats to 10 significant digits, undefined ones None.

    It is what `result.evaluate_predictions` returns, and the sections calibration, patients, operating_points,
    selective, conformal and worst_groups. Equal arguments give equal results.

    Args:
        predictions: of every sample of the split.
        validation: predictions of the same network for a validation split, on which temperature and thresholds are
            chosen; a Tuning where the samples have several networks (folds); without it, what needs it is left out.
        sources: sample id -> where the sample comes from (clinic, scanner, public set), for the worst groups.
        level: of the intervals, in (0, 1).
        resamples: of the bootstrap, at least 1.
        seed: of the bootstrap.
        untuned: why there is no validation, in words for the reader.

    Raises:
        BadInput: the split is empty, or the validation predictions do not fit or hold judged samples.
        Fault: level or resamples make no sense.
    """
    tuning = Tuning.of(predictions, [validation]) if isinstance(validation, Predictions) else validation
    judged = Judged.of(predictions, resamples, tuning, untuned)
    basics = Basics(judged)
    sections: dict[str, Section] = {
        "calibration": Calibration(judged),
        "operating_points": OperatingPoints(judged),
        "selective": Selective(judged),
        "conformal": Conformal(judged),
        "worst_groups": WorstGroups(judged, sources),
    }
    statistics = basics.statistics + [s for section in sections.values() for s in section.statistics]
    draws = bootstrap(statistics, judged.blocks, seed)
    return {
        **basics.result(draws, level, seed),
        "patients": Patients(judged).section(level, judged.resamples, seed),
        **{name: section.section(draws, level) for name, section in sections.items()},
    }
