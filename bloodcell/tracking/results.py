"""What a finished run shows in the views beside its metrics: plain data, gathered by whoever knows the run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Chart:
    """A confusion matrix of counts, rows true, columns predicted, of one split."""

    split: str
    classes: list[str]
    matrix: list[list[int]]


@dataclass(frozen=True)
class Curves:
    """Curves of a split, one for each class against the others: points (class, x, y), x ascending.

    Attributes:
        split: the split.
        name: "roc" (x false positive rate, y recall) or "pr" (x recall, y precision).
        axes: the names of x and y.
        points: of all classes.
    """

    split: str
    name: str
    axes: tuple[str, str]
    points: Sequence[tuple[str, float, float]]


@dataclass(frozen=True)
class Artifact:
    """Something that a run was made from, or that it made.

    Attributes:
        name: letters, digits, `-`, `_`, `.`.
        kind: "dataset" or "model".
        metadata: what it is, by name.
        text: the content of its one text file, KIND.json: the same text is the same version.
        files: to upload, name -> path.
        used: whether the run was made from it, rather than made it.
        aliases: further names of this version.
    """

    name: str
    kind: str
    metadata: dict[str, Any]
    text: str
    files: dict[str, Path] = field(default_factory=dict)
    used: bool = False
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Shown:
    """One image in a table of predictions; pixels uint8 [height, width, 3] RGB."""

    key: str
    truth: str
    prediction: str
    confidence: float
    pixels: np.ndarray


@dataclass(frozen=True)
class Results:
    """All of it; `images` maps splits to their tables."""

    summary: dict[str, Any] = field(default_factory=dict)
    charts: Sequence[Chart] = ()
    curves: Sequence[Curves] = ()
    artifacts: Sequence[Artifact] = ()
    images: dict[str, Sequence[Shown]] = field(default_factory=dict)
    pages: Sequence[Path] = ()


Gather = Callable[[], Results]
