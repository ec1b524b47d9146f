"""Cross-validation read rightly: every sample judged once, by the model that did not see it, and all of them together.

Each fold's test part is predicted by the runs of that fold only. The parts are put together and proven, by key, to be
the whole set. Where the validation predictions of the folds are given, each fold's logits are also divided by the
temperature fitted on its own validation part before they meet: confidences of different models then mean the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bloodcell.evaluation.predictions import NAMED, Predictions
from bloodcell.evaluation.temperature import fit_temperature
from shards.errors import BadInput, Fault


@dataclass(frozen=True, eq=False)
class Pooled:
    """One prediction for each sample of a set.

    Attributes:
        predictions: of the whole set, sorted by id.
        fold: int64 [samples], which fold's model predicted the sample.
    """

    predictions: Predictions
    fold: np.ndarray

    def scaled(self, temperatures: Sequence[float]) -> Predictions:
        """Return the predictions with the logits of fold k divided by temperatures[k]."""
        divisor = np.asarray(temperatures, dtype=np.float64)[self.fold]
        return replace(
            self.predictions, logits=(self.predictions.logits.astype(np.float64) / divisor[:, None]).astype(np.float32)
        )


def check_folds(folds: Sequence[int], count: int, names: Sequence[str]) -> dict[int, list[int]]:
    """Return which runs belong to each fold, in the order of folds.

    Args:
        folds: the fold of each run.
        count: folds of the set.
        names: of the runs.

    Raises:
        BadInput: a fold has no run, or not as many as the others.
    """
    found: dict[int, list[int]] = {fold: [] for fold in range(count)}
    for place, fold in enumerate(folds):
        if fold not in found:
            raise BadInput(f"the set has {count} folds, the run is of fold {fold}", names[place], "leave it out")
        found[fold].append(place)
    missing = [str(fold) for fold, places in found.items() if not places]
    if missing:
        what = f"fold{'s' if len(missing) > 1 else ''} {', '.join(missing)} of {count} "
        raise BadInput(f"{what}{'have' if len(missing) > 1 else 'has'} no run", ", ".join(names), "add their runs")
    sizes = {len(places) for places in found.values()}
    if len(sizes) > 1:
        said = "; ".join(f"fold {fold}: {', '.join(names[i] for i in places)}" for fold, places in found.items())
        raise BadInput("the folds do not have equally many runs", said, "give every fold as many runs")
    return found


def pool(parts: Sequence[Predictions], keys: Sequence[str], run: str, split: str) -> Pooled:
    """Put the folds' test parts together.

    Args:
        parts: predictions of each fold's test part by its own model, in the order of folds.
        keys: of all samples of the set.
        run: name of the result.
        split: name of the pooled split.

    Raises:
        BadInput: the classes or the sets of the parts differ.
        Fault: a sample of the set is missing, or in two parts.
    """
    first = parts[0]
    for part in parts:
        if part.classes != first.classes or part.fingerprint != first.fingerprint:
            raise BadInput("the folds are of different sets", f"{first.run}, {part.run}", "give folds of one set")
    ids = np.concatenate([part.ids for part in parts])
    order = np.argsort(ids, kind="stable")
    names = [key for part in parts for key in part.keys]
    _prove(names, keys, split)
    groups = [group for part in parts for group in part.groups]
    pooled = replace(
        first,
        ids=ids[order],
        keys=[names[i] for i in order],
        labels=np.concatenate([part.labels for part in parts])[order],
        groups=[groups[i] for i in order],
        logits=np.concatenate([part.logits for part in parts])[order],
        run=run,
        split=split,
    )
    fold = np.repeat(np.arange(len(parts)), [len(part.ids) for part in parts])
    return Pooled(pooled, fold[order])


def _prove(found: Sequence[str], expected: Sequence[str], split: str) -> None:
    """Raise Fault unless every expected key is found exactly once and no other is."""
    missing = sorted(set(expected) - set(found))
    foreign = sorted(set(found) - set(expected))
    doubled = len(found) - len(set(found))
    if missing or foreign or doubled:
        named = ", ".join([*missing, *foreign][:NAMED])
        raise Fault(
            f"the folds' test parts are not the set: {len(missing):,} samples missing, {doubled:,} there more than "
            f"once, {len(foreign):,} foreign",
            split,
            named,
        )


def temperatures(validations: Sequence[Predictions]) -> tuple[list[float], list[str]]:
    """Return each fold's temperature, and why it is 1 where no temperature is best.

    Args:
        validations: predictions of each fold's validation part by its own model.
    """
    found, said = [], []
    for fold, validation in enumerate(validations):
        try:
            found.append(fit_temperature(validation))
        except BadInput as problem:
            found.append(1.0)
            said.append(f"fold {fold} keeps its confidences: {problem.what}")
    return found, said


def differing(configs: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the names of the settings in which flat configs differ, sorted."""
    names = {name for config in configs for name in config}
    return sorted(name for name in names if len({repr(config.get(name)) for config in configs}) > 1)
