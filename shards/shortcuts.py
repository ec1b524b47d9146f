"""How well trivial features alone tell the class, the patient, the source: a network may learn those, not the cells.

Each group of features (`shards.trivial`) trains extremely randomised trees (Geurts, Ernst and Wehenkel, "Extremely
randomized trees", Machine Learning 2006), judged by balanced accuracy and the mean one-against-rest area under the ROC
curve in cross-validation in which patients and near-duplicates stay on one side (Geirhos et al., "Shortcut learning in
deep neural networks", Nature Machine Intelligence 2020).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.appearance import CORNERS
from shards.examine import Image
from shards.trivial import INVISIBLE, trivial_features

SKILL = 0.3
"""Share of the way from chance to perfect from which a feature is warned of."""

ERRORS = 3.0
"""Standard errors of guessing, over independent units, that the accuracy must lie above chance by."""

CORNER_LEAD = 0.1
"""Balanced accuracy by which one corner must beat the median of the four: a scale bar lies in one of them."""

LEAST = 10
"""Images that a class, a patient or a source needs to take part."""

MOST_PATIENTS = 20
"""Patients that are told apart: those with the most images."""

FOLDS = 4
_MOST = 2_000  # images that are looked at: evenly spaced in the list
_TREES = 30


@dataclass(frozen=True)
class Shortcut:
    """What one group of features says about one target.

    Attributes:
        target: "class", "group" or "source".
        name: the group of features, or "source".
        visible: whether a network sees it in the pixels.
        accuracy: balanced accuracy in cross-validation, 0..1.
        auroc: area under the ROC curve, mean over one value against the rest, 0..1; chance is 0.5.
        chance: balanced accuracy of guessing: 1 / number of values.
        units: independent images or groups that it was measured on.
        warned: whether it is clearly better than chance.
        sentence: the same for a person.
    """

    target: str
    name: str
    visible: bool
    accuracy: float
    auroc: float
    chance: float
    units: int
    warned: bool
    sentence: str


def shortcuts(
    images: Sequence[Image],
    looks: NDArray[np.void],
    sources: Sequence[str],
    units: NDArray[np.int64],
    clusters: NDArray[np.int64],
) -> list[Shortcut]:
    """Measure every group of features against the class and, where several are known, against patient and source.

    Args:
        images: the images.
        looks: their records of `shards.appearance.LOOK_DTYPE` [images].
        sources: which source each image comes from [images].
        units: what each image must stay together with in cross-validation: its patient joined with near-duplicates
            [images].
        clusters: the same without the patients, who cannot be kept on one side where they are to be told [images].
    """
    labels, named = [image.item.label for image in images], [image.item.group for image in images]
    largest = [name for name, n in Counter(filter(None, named)).most_common(MOST_PATIENTS) if n >= LEAST]
    found = _against("class", labels, units, images, looks, sources)
    kept = set(largest)
    found += _against("group", [name if name in kept else "" for name in named], clusters, images, looks, [])
    return found + _against("source", sources, units, images, looks, [])


def _against(
    target: str,
    values: Sequence[str],
    together: NDArray[np.int64],
    images: Sequence[Image],
    looks: NDArray[np.void],
    sources: Sequence[str],
) -> list[Shortcut]:
    """Measure all groups of features against `values`; images whose value is empty or rare take no part."""
    counts = Counter(filter(None, values))
    rows = np.array([i for i, value in enumerate(values) if counts[value] >= LEAST], np.int64)
    if len(rows) > _MOST:
        rows = rows[np.linspace(0, len(rows) - 1, _MOST).astype(np.int64)]
    names, truth = np.unique([values[i] for i in rows], return_inverse=True)
    _, units = np.unique(together[rows], return_inverse=True)
    if len(names) < 2 or min((len(set(units[truth == k])) for k in range(len(names))), default=0) < 2:
        return []
    features = trivial_features([images[i] for i in rows], looks[rows])
    if len(set(sources)) > 1:
        told = np.array([sources[i] for i in rows])
        features["source"] = (told[:, None] == np.unique(told)).astype(np.float64)
    reached = {name: _measured(block, truth, units) for name, block in features.items()}
    typical = float(np.median([reached[f"{name} corner"][0] for name in CORNERS]))
    chance, independent = 1 / len(names), len(set(units.tolist()))
    found = []
    for name, (accuracy, auroc) in reached.items():
        clear = (accuracy - chance) / (1 - chance) >= SKILL
        clear &= accuracy > chance + ERRORS * np.sqrt(chance * (1 - chance) / independent)
        if name.endswith("corner"):
            clear &= accuracy >= typical + CORNER_LEAD
        said = _sentence(target, name, accuracy, auroc, chance, bool(clear))
        visible = name not in INVISIBLE
        found.append(Shortcut(target, name, visible, accuracy, auroc, chance, independent, bool(clear), said))
    return found


def _measured(values: NDArray[np.float64], truth: NDArray[np.int64], units: NDArray[np.int64]) -> tuple[float, float]:
    """Return balanced accuracy and mean one-against-rest AUROC of cross-validated predictions, units on one side."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold

    count = int(truth.max()) + 1
    if (values == values[0]).all():
        return 1 / count, 0.5
    rare = min(len(set(units[truth == k].tolist())) for k in range(count))
    folds = StratifiedGroupKFold(min(FOLDS, rare), shuffle=True, random_state=0)
    shares = np.zeros((len(truth), count))
    for train, test in folds.split(values, truth, units):
        trees = ExtraTreesClassifier(_TREES, min_samples_leaf=2, class_weight="balanced", random_state=0)
        trees.fit(values[train], truth[train])
        shares[np.ix_(test, trees.classes_)] = trees.predict_proba(values[test])
    predicted = shares.argmax(axis=1)
    accuracy = float(np.mean([(predicted[truth == k] == k).mean() for k in range(count)]))
    return accuracy, float(np.mean([roc_auc_score(truth == k, shares[:, k]) for k in range(count)]))


_TARGETS = {"class": "the class", "group": "the patient or slide", "source": "the source"}
_FOLLOWS = {
    "class": "a network can score well without looking at the cells",
    "group": "a network can know the patient again: keep patients apart in the split",
    "source": "a network can know the source again: test on a source that it was not trained on",
}


def _sentence(target: str, name: str, accuracy: float, auroc: float, chance: float, clear: bool) -> str:
    what = _TARGETS[target]
    told = f"{accuracy:.0%} balanced accuracy, chance is {chance:.0%}; AUROC {auroc:.2f}"
    if not clear:
        return f"From {_of(name)} alone {what} cannot be told clearly ({told})."
    follow = _FOLLOWS[target]
    if name == "source":
        follow = "the sources hold different classes, so that knowing the source is knowing much of the class"
    elif name in INVISIBLE:
        follow = "no network sees it, but the images were collected or written differently"
    return f"From {_of(name)} alone {what} is told with {told}: {follow}."


def _of(name: str) -> str:
    return f"the {name}" if not name.endswith("corner") else f"the {name} of the picture"
