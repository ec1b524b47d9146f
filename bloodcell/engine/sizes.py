"""The side of the training images as a pure function of the step: small and cheap at first, larger towards the end.

Progressive resizing: Howard, Training ImageNet in 18 minutes, 2018; Tan and Le, EfficientNetV2, ICML 2021, section 4.
Images of a validation or a test are always of `data.size`, which may be larger than the last training size: objects
look larger in a random crop than in a whole image (Touvron et al., Fixing the train-test resolution discrepancy, 2019).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from shards.errors import BadInput

WHERE = "train.sizes"
FIX = "write sizes in pixels, each but the last with its share of all steps: 96x0.4,128"


@dataclass(frozen=True)
class Sizes:
    """The course of the training images' side over a run.

    Attributes:
        stages: (size in pixels, share of all steps) in their order; the shares are above 0 and sum to 1.
        steps: of the whole run.
    """

    stages: tuple[tuple[int, Fraction], ...]
    steps: int

    def at(self, step: int) -> int:
        """Return the side of the images of `step` (from 0), pixels."""
        return next(size for size, _, last in self._spans() if step < last or last == self.steps)

    def spans(self, first: int) -> list[tuple[int, int, int]]:
        """Return (size, first step, end) of what is left from step `first` on, each with at least one step."""
        return [(size, max(begin, first), end) for size, begin, end in self._spans() if max(begin, first) < end]

    def _spans(self) -> Iterator[tuple[int, int, int]]:
        ends = itertools.accumulate(share for _, share in self.stages)
        begin = 0
        for (size, _), end in zip(self.stages, ends, strict=True):
            last = round(end * self.steps)
            yield size, begin, last
            begin = last

    @property
    def cost(self) -> float:
        """Pixels of the whole run as a share of those that it would have in its last size: about its share in time."""
        last = self.stages[-1][0]
        return float(sum(share * size**2 for size, share in self.stages) / last**2)

    def describe(self) -> str:
        """Return the course in words, "" for one size."""
        if len(self.stages) == 1:
            return ""
        said = [f"{size} px from step {begin}" for size, begin, _ in self.spans(0)]
        return f"training images: {', '.join(said)}; {self.cost:.0%} of the pixels of the last size throughout"


def parse_sizes(text: str, size: int) -> tuple[tuple[int, Fraction], ...]:
    """Return (size, share of all steps) of each stage of a config's train.sizes.

    Args:
        text: SIZExSHARE,…,SIZE; empty is `size` throughout.
        size: data.size.

    Raises:
        BadInput: not of that form, or shares that leave nothing to the last size.
    """
    if not text.strip():
        return ((size, Fraction(1)),)
    *first, last = text.split(",")
    stages = [_stage(part) for part in first]
    rest = 1 - sum((share for _, share in stages), Fraction(0))
    if rest <= 0:
        raise BadInput(f"the shares of {text!r} leave nothing to the last size", WHERE, FIX)
    if "x" in last:
        raise BadInput(f"the last size of {text!r} has a share: it gets the rest", WHERE, FIX)
    return (*stages, (_pixels(last), rest))


def _stage(part: str) -> tuple[int, Fraction]:
    size, _, share = part.partition("x")
    try:
        found = Fraction(share.strip())
    except (ValueError, ZeroDivisionError):
        raise BadInput(f"{part.strip()!r} is no size with a share", WHERE, FIX) from None
    if not 0 < found < 1:
        raise BadInput(f"{part.strip()!r} has no share between 0 and 1", WHERE, FIX)
    return _pixels(size), found


def _pixels(text: str) -> int:
    if not text.strip().isdecimal() or not 8 <= int(text) <= 4096:
        raise BadInput(f"{text.strip()!r} is no size from 8 to 4096 pixels", WHERE, FIX)
    return int(text)
