"""Leaving unreadable samples out of training by one rule, which depends on the micro-batch alone.

The place of such a sample is taken by the next readable one of the same micro-batch, which is shown once more, under
draws of its own. So a micro-batch keeps its size, BatchNorm sees images only, and what is trained on does not depend on
ranks, world size or restarts, as long as the same samples cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bloodcell.data.order import DIGEST_MASK, BatchOrder, planned_digest, step_digest
from shards.errors import Fault

STAND_IN = 1 << 32
"""Occurrences from here on belong to samples that stand in for others: no epoch deals one so often."""


@dataclass(frozen=True)
class LeftOut:
    """A sample that was left out once: where it was dealt (0-based), which it is, and what was wrong."""

    step: int
    micro_batch: int
    row: int
    id: int
    problem: str


def stand_in(ids: np.ndarray, occurrences: np.ndarray, bad: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and occurrences, int64 [n], with others in the places of the rows `bad`.

    Raises:
        Fault: no row is left.
    """
    ids, occurrences = ids.copy(), occurrences.copy()
    good = np.setdiff1d(np.arange(len(ids)), bad)
    if not len(good):
        raise Fault("not one sample of a micro-batch can be read", "", "restore the shards, then start again")
    for row in bad:
        donor = good[np.searchsorted(good, row) % len(good)]
        ids[row], occurrences[row] = ids[donor], occurrences[donor] + STAND_IN * (row + 1)
    return ids, occurrences


def consumed_digest(order: BatchOrder, steps: int, left_out: Iterable[LeftOut]) -> int:
    """Return the lineage digest of the first `steps` steps of the plan with some samples left out.

    Raises:
        Fault: the plan does not deal such a sample there.
    """
    places: dict[tuple[int, int], list[LeftOut]] = {}
    for one in left_out:
        places.setdefault((one.step, one.micro_batch), []).append(one)
    total = planned_digest(order, 0, steps)
    for (step, micro_batch), entries in places.items():
        dealt, rows = order.micro(step, micro_batch), sorted({one.row for one in entries})
        if step >= steps or any(dealt.ids[one.row] != one.id for one in entries):
            raise Fault("a sample was left out that the plan does not deal there", f"step {step}")
        ids, occurrences = stand_in(dealt.ids, dealt.occurrences, rows)
        total += step_digest(ids[rows], occurrences[rows], step)
        total -= step_digest(dealt.ids[rows], dealt.occurrences[rows], step)
    return total & DIGEST_MASK
