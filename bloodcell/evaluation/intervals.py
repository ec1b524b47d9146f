"""Intervals that hold what they promise: Wilson's for plain proportions, a guarded cluster bootstrap for the rest.

Which method, metric by metric:

- accuracy, precision, recall, specificity, when every sample is a group of its own: Wilson's score interval (J. Am.
  Stat. Assoc. 22:209, 1927), n being the samples that the proportion is of.
- everything else, and these too when groups hold several samples: the cluster bootstrap (module `resample`). The
  interval is the wider, at each end, of
  (a) the percentiles of the resamples, expanded for few groups (Hesterberg, Am. Stat. 69:371, 2015), and
  (b) Wilson's interval with the effective n = p (1 - p) / (bootstrap variance), at most the number of samples (for
  means over the classes, classes^2 / sum of 1 / (samples of the class); AUROC has no such limit), and Student's t
  (Korn and Graubard, Surv. Methodol. 24:193, 1998; Dean and Pagano, J. Surv. Stat. Methodol. 3:484, 2015).
  Percentiles alone miss the truth far too often near 100 % and with few groups. MCC and kappa are put on the scale from
  0 to 1 for (b); for the loss, which has no upper bound, (b) is the value plus and minus t standard errors, from 0 on.
- where the resamples have no spread (nothing wrong in the test set, or one group only): Wilson's interval with n the
  number of groups; for means over the classes, classes^2 / sum of 1 / (groups with the class), at most the groups; for
  AUROC the smaller of the groups with and without the class (the bound of Birnbaum and Klose, Ann. Math. Stat. 28:933,
  1957). The loss has no interval then.

Resamples in which a value is undefined are left out of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

NO_SPREAD = 1e-12


@dataclass(frozen=True)
class Evidence:
    """What an estimate stands on: so many independent groups and, as the most that it can count for, samples."""

    groups: float
    samples: float


@dataclass(frozen=True)
class Interval:
    """Both ends; NaN if there is none."""

    low: float
    high: float


UNKNOWN = Interval(math.nan, math.nan)


def wilson(value: float, n: float, quantile: float) -> Interval:
    """Return Wilson's score interval of a proportion `value` of `n` (any n >= 0, 0 gives [0, 1])."""
    square = quantile * quantile
    centre = (n * value + square / 2) / (n + square)
    half = quantile / (n + square) * math.sqrt(max(n * value * (1 - value), 0.0) + square / 4)
    return Interval(min(max(centre - half, 0.0), value), max(min(centre + half, 1.0), value))


@lru_cache(maxsize=4096)
def student(level: float, degrees: float) -> float:
    """Return the two-sided quantile of Student's t, to about 1e-5 of itself.

    Args:
        level: of the interval, in (0, 1).
        degrees: of freedom, a fraction too; fewer than one half count as one half.
    """
    degrees = max(degrees, 0.5)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    if degrees >= 40:  # Abramowitz and Stegun 26.7.5
        first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
        third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
        return z + first / degrees + second / degrees**2 + third / degrees**3
    # With t = sqrt(degrees) / tan(angle) the density is sin(angle)^(degrees - 1): a bounded range, finest at the tail.
    angle = (np.pi / 2) * np.linspace(0, 1, 20_001) ** 4
    middle = (angle[1:] + angle[:-1]) / 2
    area = np.cumsum(np.sin(middle) ** (degrees - 1) * np.diff(angle))
    return float(math.sqrt(degrees) / math.tan(np.interp((1 - level) * area[-1], area, angle[1:])))


def from_draws(
    value: float, draws: np.ndarray, evidence: Evidence, level: float, bounds: tuple[float, float] = (0.0, 1.0)
) -> Interval:
    """Return the interval of `value` from its bootstrap resamples, as the module's docstring says.

    Args:
        value: the estimate; NaN gives no interval.
        draws: floats [resamples], its values in the resamples, NaN where undefined.
        evidence: what it stands on.
        level: of the interval, in (0, 1).
        bounds: between which it lies; the upper one may be infinite.
    """
    if math.isnan(value):
        return UNKNOWN
    draws = draws[np.isfinite(draws)]
    spread = float(draws.std()) if len(draws) else 0.0
    low, high = bounds
    width = high - low
    share = (value - low) / width if math.isfinite(width) else math.nan
    groups = evidence.groups
    if spread <= NO_SPREAD or groups <= 1 or share in (0.0, 1.0):
        if math.isnan(share):
            return UNKNOWN
        score = wilson(share, groups, NormalDist().inv_cdf(0.5 + level / 2))
        return Interval(low + width * score.low, low + width * score.high)
    quantile = student(level, groups - 1) * math.sqrt(groups / (groups - 1))
    tail = NormalDist().cdf(-quantile)
    percentiles = np.quantile(draws, [tail, 1 - tail])
    if math.isnan(share):
        other = Interval(max(value - quantile * spread, low), value + quantile * spread)
    else:
        effective = min(share * (1 - share) * (width / spread) ** 2, evidence.samples)
        score = wilson(share, effective, quantile)
        other = Interval(low + width * score.low, low + width * score.high)
    return Interval(min(float(percentiles[0]), other.low), max(float(percentiles[1]), other.high))
