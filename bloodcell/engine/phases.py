"""The parts of a training step, named where they happen; outside of a profile nobody takes note of them."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

WAIT, FORWARD, BACKWARD, OPTIMIZER, AGREE = "wait for data", "forward", "backward", "optimizer", "agree"
PARTS = (WAIT, FORWARD, BACKWARD, OPTIMIZER, AGREE)
"""The loss belongs to forward, the averaging of gradients to backward, clipping to optimizer; agree: the ranks' sum."""


class Phases:
    """Takes no note of anything; profiling.Profile does."""

    def begin(self, step: int) -> None:
        """Say that a step begins."""

    def part(self, name: str) -> AbstractContextManager[None]:
        """Surround a part of the step."""
        return _UNNOTED

    def end(self) -> bool:
        """Say that the step is over; return whether something was written, which took its time. Collective."""
        return False

    def finish(self) -> None:
        """Say that no step follows. Collective."""

    def close(self) -> None:
        """Stop, whatever the reason."""


_UNNOTED = contextlib.nullcontext()
