"""The learning rate as a pure function of the step (and, on a plateau, of how often it has fallen)."""

from __future__ import annotations

import math
from dataclasses import dataclass

FIRST, LAST = 25.0, 1e4
"""One-cycle: the peak is FIRST times the first rate, and the first rate is LAST times the last one."""


@dataclass(frozen=True)
class Schedule:
    """The course of the learning rate over a run.

    - constant: stays at the peak.
    - cosine: falls along half a cosine to nearly 0 (Loshchilov and Hutter, SGDR, 2017, without restarts).
    - step: falls by the factor `fall` every `fall_every` steps.
    - plateau: falls by the factor `fall` each time that validation has not improved for long enough.
    - onecycle: rises along half a cosine from peak / 25, falls along another to peak / 250,000 (Smith and Topin,
      Super-Convergence, 2018).

    Before that it rises linearly to the peak over the first `warmup` steps (onecycle: the whole rise).

    Attributes:
        kind: one of the above.
        peak: highest learning rate.
        warmup: steps of rising.
        steps: of the whole run.
        fall: factor in (0, 1).
        fall_every: steps.
    """

    kind: str
    peak: float
    warmup: int
    steps: int
    fall: float = 0.1
    fall_every: int = 1

    def rate(self, step: int, falls: int = 0) -> float:
        """Return the learning rate of `step` (from 0); `falls`: how often a plateau was met."""
        rising = step < self.warmup
        if self.kind == "onecycle":
            first = self.peak / FIRST
            if rising:
                return _half_cosine(first, self.peak, step / self.warmup)
            return _half_cosine(self.peak, first / LAST, self._share(step))
        if rising:
            return self.peak * (step + 1) / self.warmup
        if self.kind == "cosine":
            return _half_cosine(self.peak, 0.0, self._share(step))
        if self.kind == "step":
            return self.peak * self.fall ** (step // self.fall_every)
        return self.peak * self.fall**falls  # constant never falls

    def _share(self, step: int) -> float:
        """Return how much of the time after the warm-up is over, 0..1."""
        return min((step - self.warmup) / max(1, self.steps - self.warmup), 1.0)


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
