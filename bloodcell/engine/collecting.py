"""Python's collector rests in the training loop and works between two steps, on all ranks in the same ones.

Left to itself it starts in the middle of a step, on each rank in another one, and all others wait for that rank.
"""

from __future__ import annotations

import gc


class Collector:
    """A context in which garbage is collected when it is told to. Nested ones, and `every` 0, leave Python alone.

    Args:
        every: steps between collections of what is young.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._ours = False

    def __enter__(self) -> Collector:
        self._ours = self.every > 0 and gc.isenabled()
        if self._ours:
            gc.freeze()  # what is there stays for the whole loop: no search looks through it
            gc.disable()
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            gc.enable()

    def step(self, step: int) -> None:
        """Collect what is young if it is time."""
        if self._ours and step % self.every == 0:
            gc.collect(1)

    def pause(self) -> None:
        """Collect everything: the loop waits for something else anyway."""
        if self._ours:
            gc.collect()
