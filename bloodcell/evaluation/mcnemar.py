"""Do two models differ in how often they are right? Exact tests on the samples that only one of them gets right.

McNemar's test (Psychometrika 12:153, 1947) in its exact form takes the samples as independent. Where groups hold
several samples they are not; then the sign of each group's balance (samples that only A gets right less those that
only B does) is exchanged instead: if the models are equally good, exchanging their names in a group changes nothing.
The distribution over all exchanges is computed, not sampled, from its characteristic function, the product of
cos(balance * t) over the groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest  # type: ignore[import-untyped]

from bloodcell.evaluation.paired import rounded


def mcnemar(first: np.ndarray, second: np.ndarray, cluster: np.ndarray) -> dict[str, Any]:
    """Return the counts and two-sided p values of the tests as JSON-native values.

    `p_samples` takes the samples as independent, `p_groups` the groups, and `p` is the one to go by: p_groups if any
    group holds several samples. Without a sample that only one model gets right all are 1.

    Args:
        first, second: bool [samples], whether each model is right.
        cluster: int64 [samples], from resample.cluster_index.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p_samples = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    grouped = int(cluster.max()) + 1 < len(cluster)
    balances = np.bincount(cluster, weights=first.astype(np.float64) - second).round().astype(np.int64)
    p_groups = exchange(balances) if grouped else p_samples
    return {
        "only_first": only_first,
        "only_second": only_second,
        "p": rounded(p_groups),
        "p_samples": rounded(p_samples),
        "p_groups": rounded(p_groups),
        "grouped": grouped,
    }


def exchange(balances: np.ndarray) -> float:
    """Return the share of all exchanges of sign whose sum is as far from 0 as that of `balances`, integers [groups]."""
    sizes = np.abs(balances[balances != 0])
    if not len(sizes):
        return 1.0
    observed, most = abs(int(balances.sum())), int(sizes.sum())
    points = 2 * most + 1
    angles = 2 * np.pi * np.arange(points) / points
    values = np.ones(points)
    for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
        values *= np.cos(angles * size) ** int(count)
    shares = np.fft.fft(values).real / points  # entry k: the share of exchanges with the sum k, or k - points
    sums = np.minimum(np.arange(points), points - np.arange(points))
    tail = float(shares[sums >= observed].sum())
    return float(np.clip(tail, 2.0 ** (1 - min(len(sizes), 1000)), 1.0))


def holm(values: Sequence[float]) -> list[float]:
    """Return p values corrected for how many there are (Holm, Scand. J. Stat. 6:65, 1979)."""
    order = np.argsort(values, kind="stable")
    corrected, highest = np.empty(len(values)), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - place) * values[index]))
        corrected[index] = highest
    return [float(value) for value in corrected]
