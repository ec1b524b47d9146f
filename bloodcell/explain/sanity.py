"""Sanity check of maps: a network with random weights must give other maps (Adebayo et al., NeurIPS 2018)."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import rankdata

LIMIT = 0.5
"""Mean rank correlation with the maps of the random network from which maps say little about the trained one."""


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each pair of maps, float64 [n]; 0 where a map is flat.

    Args:
        first, second: float [n, h, w].
    """
    ranks = [rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (first, second)]
    a, b = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    size = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), size, out=np.zeros(len(a)), where=size > 0)


def compare_with_random(trained: np.ndarray, random: np.ndarray) -> dict[str, Any]:
    """Return the mean rank correlation of the maps of both networks and whether they differ enough."""
    value = float(rank_correlation(trained, random).mean())
    return {"correlation": round(value, 4), "limit": LIMIT, "passed": bool(abs(value) < LIMIT)}
