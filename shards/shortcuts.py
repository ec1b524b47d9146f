"""How well trivial features alone predict the class, or the patient: a network may learn those in place of the cells.

Each group of features (the picture's border, its size, its file, the number in its name, each corner) trains extremely
randomised trees (Geurts, Ernst and Wehenkel, "Extremely randomized trees", Machine Learning 2006), judged by balanced
accuracy in cross-validation in which patients and near-duplicates stay on one side (Geirhos et al., "Shortcut learning
in deep neural networks", Nature Machine Intelligence 2020).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.appearance import CORNERS
from shards.clean import Image

SKILL = 0.3
"""Share of the way from chance to perfect from which a feature is warned of."""

ERRORS = 3.0
"""Standard errors of guessing, over independent units, that the accuracy must lie above chance by."""

CORNER_LEAD = 0.1
"""Balanced accuracy by which one corner must beat the median of the four: a scale bar lies in one of them."""

LEAST = 10
"""Images that a class or a patient needs to take part."""

MOST_PATIENTS = 20
"""Patients that are told apart: those with the most images."""

FOLDS = 5
_MOST = 2_000  # images that are looked at: evenly spaced in the list
_TREES = 60


@dataclass(frozen=True)
class Shortcut:
    """What one group of features says about one target.

    Attributes:
        target: "class" or "group".
        name: the group of features.
        visible: whether a network sees it in the pixels.
        accuracy: balanced accuracy in cross-validation, 0..1.
        chance: 1 / number of classes.
        units: independent images or groups that it was measured on.
        warned: whether it is clearly better than chance.
        sentence: the same for a person.
    """

    target: str
    name: str
    visible: bool
    accuracy: float
    chance: float
    units: int
    warned: bool
    sentence: str


def shortcuts(images: Sequence[Image], looks: NDArray[np.void], units: Sequence[str]) -> list[Shortcut]:
    """Measure every group of features against the class and, where patients are known, against the patient.

    Args:
        images: the images.
        looks: their records of `shards.appearance.LOOK_DTYPE` [images].
        units: what each image must stay together with in cross-validation: its patient joined with near-duplicates; a
            name of its own where it has neither [images].
    """
    features = _features(images, looks)
    found = _against("class", [image.item.label for image in images], units, features)
    named = [image.item.group for image in images]
    largest = [name for name, n in Counter(filter(None, named)).most_common(MOST_PATIENTS) if n >= LEAST]
    # Copies of one picture share their digest; a patient cannot be kept on one side when it is to be told.
    return found + _against(
        "group",
        [name if name in largest else "" for name in named],
        [image.pixels_sha256 for image in images],
        features,
    )


def _features(images: Sequence[Image], looks: NDArray[np.void]) -> dict[str, NDArray[np.float64]]:
    """Return the groups of features, each float64 [images, d]."""
    sizes = np.array([(image.width, image.height, image.width / image.height) for image in images], np.float64)
    lengths = np.array([(image.size, image.size / (image.width * image.height)) for image in images], np.float64)
    kinds = [f"{image.format} {image.mode}" for image in images]
    hot = np.array([[kind == one for one in sorted(set(kinds))] for kind in kinds], np.float64)
    corners = looks["corners"].reshape(len(looks), len(CORNERS), -1).astype(np.float64)
    return {
        "border colour": looks["border"].astype(np.float64),
        "image size": sizes,
        "file format and bytes": np.hstack([lengths, hot]),
        "number in the file name": np.array([_numbers(image.item.source) for image in images], np.float64),
        **{f"{name} corner": corners[:, place] for place, name in enumerate(CORNERS)},
    }


INVISIBLE = ("file format and bytes", "number in the file name")
"""Groups of features that no network sees; they tell how the set was collected."""


def _numbers(source: str) -> tuple[float, float]:
    """Return the last number in a file name, and how many digits it has; -1 and 0 if there is none."""
    found = re.findall(r"\d+", source.rsplit("/", 1)[-1].rsplit(".", 1)[0])
    return (float(found[-1][-15:]), len(found[-1])) if found else (-1.0, 0)


def _against(
    target: str, values: Sequence[str], together: Sequence[str], features: dict[str, NDArray[np.float64]]
) -> list[Shortcut]:
    """Measure all groups of features against `values`; images whose value is empty or rare take no part."""
    counts = Counter(filter(None, values))
    rows = np.array([i for i, value in enumerate(values) if counts[value] >= LEAST], np.int64)
    if len(rows) > _MOST:
        rows = rows[np.linspace(0, len(rows) - 1, _MOST).astype(np.int64)]
    names, truth = np.unique([values[i] for i in rows], return_inverse=True)
    _, units = np.unique([together[i] for i in rows], return_inverse=True)
    if len(names) < 2 or min((len(set(units[truth == k])) for k in range(len(names))), default=0) < 2:
        return []
    reached = {name: _accuracy(block[rows], truth, units) for name, block in features.items()}
    typical = float(np.median([reached[f"{name} corner"] for name in CORNERS]))
    chance, independent = 1 / len(names), len(set(units.tolist()))
    found = []
    for name, accuracy in reached.items():
        clear = (accuracy - chance) / (1 - chance) >= SKILL
        clear &= accuracy > chance + ERRORS * np.sqrt(chance * (1 - chance) / independent)
        if name.endswith("corner"):
            clear &= accuracy >= typical + CORNER_LEAD
        said = _sentence(target, name, accuracy, chance, bool(clear))
        visible = name not in INVISIBLE
        found.append(Shortcut(target, name, visible, accuracy, chance, independent, bool(clear), said))
    return found


def _accuracy(values: NDArray[np.float64], truth: NDArray[np.int64], units: NDArray[np.int64]) -> float:
    """Return the balanced accuracy of predictions made by cross-validation, units kept on one side."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.model_selection import StratifiedGroupKFold

    if (values == values[0]).all():
        return float(1 / (truth.max() + 1))
    rare = min(len(set(units[truth == k].tolist())) for k in range(truth.max() + 1))
    folds = StratifiedGroupKFold(min(FOLDS, rare), shuffle=True, random_state=0)
    predicted = np.zeros(len(truth), np.int64)
    for train, test in folds.split(values, truth, units):
        trees = ExtraTreesClassifier(_TREES, min_samples_leaf=2, class_weight="balanced", random_state=0)
        predicted[test] = trees.fit(values[train], truth[train]).predict(values[test])
    return float(np.mean([(predicted[truth == k] == k).mean() for k in range(truth.max() + 1)]))


def _sentence(target: str, name: str, accuracy: float, chance: float, clear: bool) -> str:
    what = "the class" if target == "class" else "the patient or slide"
    told = f"{accuracy:.0%} balanced accuracy, chance is {chance:.0%}"
    if not clear:
        return f"From {_of(name)} alone {what} cannot be told clearly ({told})."
    follow = {
        "class": "a network can score well without looking at the cells",
        "group": "a network can know the patient again: keep patients apart in the split",
    }[target]
    if name in INVISIBLE:
        follow = "no network sees it, but the images were collected or written differently"
    return f"From {_of(name)} alone {what} is told with {told}: {follow}."


def _of(name: str) -> str:
    return f"the {name}" if not name.endswith("corner") else f"the {name} of the picture"
