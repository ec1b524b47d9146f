"""The worst groups: accuracy and macro recall by patient or slide and by source, the worst first.

- A patient or slide is judged by its own samples: Wilson's interval, which says how well this one is known.
- A source holds several patients: cluster bootstrap over its groups (`proportions`).

The worst of many groups looks worse than it is, by chance alone. So `worst` has a second interval, `simultaneous`, at
the level that holds for all groups at once (Bonferroni), and only groups with enough samples can be the worst.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np

from bloodcell.evaluation import metrics
from bloodcell.evaluation.entries import entry, rounded
from bloodcell.evaluation.estimates import Estimate
from bloodcell.evaluation.intervals import wilson
from bloodcell.evaluation.judged import Judged
from bloodcell.evaluation.patients import patient_mask
from bloodcell.evaluation.proportions import Proportions
from bloodcell.evaluation.resample import Statistic, cluster_index
from shards.errors import BadInput

FEWEST_SAMPLES = 20
"""Samples that a group must have to be called the worst."""
MOST_ROWS = 100
"""Groups that are listed, the worst first."""


class _Kind:
    """The groups of one kind."""

    def __init__(self, kind: str, judged: Judged, names: list[str], clustered: bool) -> None:
        """Take a name for each sample ("" is in no group), and whether a group holds several patients."""
        inside = np.array([bool(name) for name in names], dtype=bool)
        kept = [name for name in names if name]
        self.names = sorted(set(kept))
        member = np.full(len(names), -1, dtype=np.int64)
        if kept:
            first = cluster_index(kept)
            seen = np.unique(first, return_index=True)[1]
            place = {name: index for index, name in enumerate(self.names)}
            member[inside] = np.array([place[kept[index]] for index in seen])[first]
        hit = judged.predicted == judged.labels
        groups, classes = len(self.names), len(judged.classes)
        cells = member[inside] * classes + judged.labels[inside]
        samples = np.bincount(cells, minlength=groups * classes).reshape(groups, classes)
        hits = np.bincount(cells, weights=hit[inside], minlength=groups * classes).reshape(groups, classes)
        with np.errstate(invalid="ignore"):
            self.recalls = metrics.mean_defined(hits / samples)
        self.samples = samples.sum(axis=1)
        self.accuracy = hits.sum(axis=1) / np.maximum(self.samples, 1)
        self.shares: Proportions | None = None
        self.statistics: list[Statistic] = []
        if clustered and groups:
            self.shares = Proportions(f"worst/{kind}", judged, member, hit, groups)
            self.statistics = self.shares.statistics

    def section(self, draws: dict[str, np.ndarray], level: float) -> dict[str, Any]:
        order = sorted(range(len(self.names)), key=lambda i: (self.accuracy[i], self.names[i]))
        enough = [i for i in order if self.samples[i] >= FEWEST_SAMPLES]
        found = self._estimates(draws, level)
        worst = None
        if enough:
            strict = self._estimates(draws, 1 - (1 - level) / len(enough))
            worst = self._row(enough[0], found)
            interval = strict[enough[0]][1]
            worst["simultaneous"] = {"low": rounded(interval.low), "high": rounded(interval.high)}
        return {
            "groups": len(self.names),
            "large_enough": len(enough),
            "worst": worst,
            "rows": [self._row(i, found) for i in order[:MOST_ROWS]],
        }

    def _estimates(self, draws: dict[str, np.ndarray], level: float) -> list[Estimate]:
        if self.shares is not None:
            return self.shares.estimates(draws, level)
        normal = NormalDist().inv_cdf(0.5 + level / 2)
        pairs = zip(self.accuracy.tolist(), self.samples.tolist(), strict=True)
        return [(accuracy, wilson(accuracy, samples, normal)) for accuracy, samples in pairs]

    def _row(self, index: int, found: list[Estimate]) -> dict[str, Any]:
        return {
            "name": self.names[index],
            "samples": int(self.samples[index]),
            "accuracy": entry(found[index]),
            "macro_recall": rounded(float(self.recalls[index])),
        }


class WorstGroups:
    """The section `worst_groups` of a result.

    Args:
        judged: what is judged.
        sources: sample id -> source; None if no sources are known.

    Raises:
        BadInput: a sample has no source.
    """

    def __init__(self, judged: Judged, sources: Mapping[int, str] | None) -> None:
        p = judged.predictions
        named = patient_mask(p.groups)
        patients = [name if known else "" for name, known in zip(p.groups, named, strict=True)]
        self.kinds = {"patient": _Kind("patient", judged, patients, clustered=False)}
        if sources is not None:
            missing = [key for number, key in zip(p.ids.tolist(), p.keys, strict=True) if number not in sources]
            if missing:
                raise BadInput(
                    f"{len(missing):,} samples have no source, such as {missing[0]}", p.split, "name a source for each"
                )
            names = [sources[number] for number in p.ids.tolist()]
            self.kinds["source"] = _Kind("source", judged, names, clustered=True)
        self.statistics = [statistic for kind in self.kinds.values() for statistic in kind.statistics]

    def section(self, draws: dict[str, np.ndarray], level: float) -> dict[str, Any]:
        """Return fewest_samples and, for patient and source, groups, worst and rows; None where none are named."""
        found = {name: kind.section(draws, level) if kind.names else None for name, kind in self.kinds.items()}
        return {"fewest_samples": FEWEST_SAMPLES, "patient": None, "source": None, **found}
