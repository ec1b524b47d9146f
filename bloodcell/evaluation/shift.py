"""How another set differs from the run's own: colour, sharpness, size, features, and what each class loses by it.

For each plain quantity the standardised mean difference (Cohen's d: the difference of the means over the root of the
mean variance) and the Kolmogorov-Smirnov distance (the largest difference of the distribution functions). For the
features the squared maximum mean discrepancy, unbiased, with a Gaussian kernel as wide as the median distance, and the
share of random exchanges between the sets that reach it (Gretton et al., J. Mach. Learn. Res. 13:723, 2012).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bloodcell.evaluation.ensemble import said
from bloodcell.evaluation.paired import differences, measure, rounded
from bloodcell.evaluation.predictions import Predictions

EXCHANGES = 500
"""Random exchanges of the permutation test."""


def quantities(own: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> dict[str, dict[str, float | None]]:
    """Return own, other (means), smd and ks of each quantity; smd is positive where the other set has more.

    Args:
        own, other: name -> floats [images], the same names.
    """
    found = {}
    for name, ours in own.items():
        theirs = other[name]
        spread = float(np.sqrt((ours.var() + theirs.var()) / 2))
        gap = float(theirs.mean() - ours.mean())
        found[name] = {
            "own": rounded(float(ours.mean())),
            "other": rounded(float(theirs.mean())),
            "smd": rounded(gap / spread) if spread > 0 else (0.0 if gap == 0 else None),
            "ks": rounded(ks_distance(ours, theirs)),
        }
    return found


def ks_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest difference of the empirical distribution functions of two samples, 0 to 1."""
    values = np.concatenate([first, second])
    shares = [np.searchsorted(np.sort(part), values, side="right") / len(part) for part in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def feature_distance(own: np.ndarray, other: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Return {mmd2, p, own, other}: the discrepancy, how often exchanged images reach it, and the numbers of images.

    Args:
        own, other: floats [images, features], two images or more each.
        seed: of the exchanges.
    """
    joined = np.concatenate([own, other]).astype(np.float64)
    squares = (joined**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares - 2 * joined @ joined.T, 0.0)
    width = float(np.median(distances[np.triu_indices(len(joined), 1)])) or 1.0
    kernel = np.exp(-distances / width)
    np.fill_diagonal(kernel, 0.0)
    first = np.zeros(len(joined), dtype=bool)
    first[: len(own)] = True
    observed = _mmd2(kernel, first)
    random = np.random.default_rng(seed)
    reached = sum(_mmd2(kernel, random.permutation(first)) >= observed for _ in range(EXCHANGES))
    return {
        "mmd2": rounded(observed),
        "p": rounded((reached + 1) / (EXCHANGES + 1)),
        "own": len(own),
        "other": len(other),
    }


def _mmd2(kernel: np.ndarray, first: np.ndarray) -> float:
    """Return the unbiased squared discrepancy; the kernel's diagonal is 0."""
    ours, theirs = first.astype(np.float64), (~first).astype(np.float64)
    m, n = ours.sum(), theirs.sum()
    mine, yours = kernel @ ours, kernel @ theirs
    return float(ours @ mine / (m * (m - 1)) + theirs @ yours / (n * (n - 1)) - 2 * (ours @ yours) / (m * n))


def drop(own: Predictions, other: Predictions) -> dict[str, Any]:
    """Return what is lost on the other set: {overall, per_class} of entries {value, low, high}, negative is a loss.

    The two sets are resampled independently.

    Args:
        own: of the run's own test split.
        other: of the other set, with the same classes.
    """
    return differences(measure(other, seed=1), [measure(own, seed=0)], own.classes)


def lines(report: dict[str, Any]) -> list[str]:
    """Return a shift report as lines of text."""
    found = []
    if report["left_out"]:
        said_out = ", ".join(f"{name} {count:,}" for name, count in report["left_out"].items())
        found.append(f"left out, without a class of the run: {said_out}")
    if report["quantities"] is not None:
        found.append("shift of the images (own, other, standardised difference, Kolmogorov-Smirnov distance):")
        for name, row in report["quantities"].items():
            smd = "undefined" if row["smd"] is None else f"{row['smd']:+.2f}"
            found.append(f"  {name:<12} {row['own']:10.2f} {row['other']:10.2f} {smd:>9} {row['ks']:.2f}")
    if report["features"] is not None:
        features = report["features"]
        found.append(f"shift of the network's features: MMD² {features['mmd2']:.4f}, p = {features['p']:.3g}")
    if report["drop"] is not None:
        found.append("change from the run's own test split:")
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "nll"):
            found.append(f"  {name:<18} {said(report['drop']['overall'][name])}")
        found += [
            f"  {label:<18} recall {said(entry['recall'])}" for label, entry in report["drop"]["per_class"].items()
        ]
    return found
