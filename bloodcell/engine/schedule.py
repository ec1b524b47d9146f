"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math


def learning_rate(step: int, peak: float, warmup: int, steps: int, kind: str) -> float:
    """Return the learning rate of step `step` (from 0) of `steps`.

    It rises linearly to `peak` over the first `warmup` steps, then stays ("constant") or falls along half a cosine to
    nearly 0 ("cosine"; Loshchilov and Hutter, SGDR, 2017, without restarts).
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if kind == "constant":
        return peak
    share = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
