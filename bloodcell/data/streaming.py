"""The order of the readers that go through shards from front to back: the plan at the granularity of shards.

How one global order, sequential reading and many ranks go together:

- An epoch lays all shards of the split in a row, in an order drawn from (seed, epoch), and closes it to a ring that is
  cut open at a drawn sample. What does not fill a last step is the end of this row: another part in each epoch.
- The row is cut into as many equal lanes as a step has micro-batches (K, `train.micro_batches`). Micro-batch j of every
  step comes from lane j. So an epoch is one sequence of K x micro_batch samples a step, dealt out as `plan` deals its
  own, and the same on any number of ranks: world size only decides which rank goes along which lanes. A rank reads the
  shards of its own lanes, K / world stretches of the row, and no others; a shard is shared where a lane ends in it.
- A lane is cut into windows of a fixed number of steps, and each window is shuffled by a permutation drawn from (seed,
  epoch, lane, window). A window needs its own stretch of the tars and nothing else, so any step is found from its
  number alone: after a restart the rest of a window is read, not what was before it.

What is mixed with what: packing has shuffled the samples of a split over its shards, so each stretch of a tar is a
random part of the split already; that order is the same in each epoch, though, and the window is what changes it: of
the pairs that stand side by side in a tar, about (micro_batch - 1) / (window - 1) meet in one micro-batch.

Index memory is one row for each shard; mosaicml-streaming's `py1b` (blocks of samples, shuffled) is the nearest kin.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from bloodcell.data.draws import chain
from bloodcell.data.order import Samples, check_ranges, count
from bloodcell.data.shuffle import permute, permute_each
from shards.errors import BadInput, Fault

SEQUENTIAL = ("stream", "webdataset")
"""The readers that deal in this order."""

_SHARDS, _CUT, _WINDOW = 8, 9, 10  # first links of the hash chains: the ones below are those of other plans


@dataclass(frozen=True, eq=False)
class StreamPlan:
    """Every sample once an epoch: shards in a drawn order, shuffled inside windows.

    Args:
        shards: ids of each shard's samples, half-open, int64 [shards, 2].
        micro_batch: samples in a micro-batch.
        micro_batches: in a step: the lanes.
        window: samples of a lane that are shuffled among each other; cut down to whole micro-batches, at least one.

    Raises:
        BadInput: the shards overlap or hold no sample.
    """

    shards: np.ndarray
    micro_batch: int
    micro_batches: int
    window: int

    def __post_init__(self) -> None:
        check_ranges(self.shards)

    @cached_property
    def length(self) -> int:
        """How many samples an epoch deals."""
        return count(self.shards)

    @property
    def window_steps(self) -> int:
        """Steps that a window holds."""
        return max(1, self.window // self.micro_batch)

    @property
    def lane(self) -> int:
        """Samples of an epoch in each lane."""
        return self.length // (self.micro_batch * self.micro_batches) * self.micro_batch

    def samples(self, positions: np.ndarray, seed: int, epoch: int) -> Samples:
        """Return the samples at these positions (integers in [0, length)) of this epoch, same shape."""
        positions = np.asarray(positions, dtype=np.int64)
        flat = positions.reshape(-1)
        if flat.size and not (flat.min() >= 0 and flat.max() < self.length):
            raise Fault(f"a position lies outside [0, {self.length})", "sample order")
        places = flat.copy()  # in the row; beyond the lanes lies what is left out
        dealt = np.flatnonzero(flat < self.lane * self.micro_batches)
        places[dealt] = self._in_row(flat[dealt], seed, epoch)
        ids = self._ids(places, seed, epoch)
        return Samples(ids.reshape(positions.shape), np.zeros(positions.shape, dtype=np.int64))

    def _in_row(self, positions: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Return where in the row of shards the samples at these positions stand."""
        step, rest = np.divmod(positions, self.micro_batch * self.micro_batches)
        lane, row = np.divmod(rest, self.micro_batch)
        size = self.window_steps * self.micro_batch
        window, inside = np.divmod(step * self.micro_batch + row, size)
        sizes = np.minimum(size, self.lane - window * size)
        moved = permute_each(inside, sizes, chain(_WINDOW, seed, epoch, lane, window))
        return lane * self.lane + window * size + moved

    def _ids(self, places: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        firsts, ends, cut = _row(self, seed, epoch)
        places = (places + cut) % self.length
        shard = np.searchsorted(ends, places, side="right")
        ids: np.ndarray = firsts[shard] + places - np.where(shard > 0, ends[shard - 1], 0)
        return ids


@lru_cache(maxsize=4)
def _row(plan: StreamPlan, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the row of an epoch: each shard's first id, where it ends in the row, and where the ring is cut open."""
    shards = len(plan.shards)
    order = permute(np.arange(shards), shards, int(chain(_SHARDS, seed, epoch)[0]))
    chosen = plan.shards[order]
    cut = int(chain(_CUT, seed, epoch)[0] % np.uint64(plan.length))
    return chosen[:, 0], np.cumsum(chosen[:, 1] - chosen[:, 0]), cut


def check_sampling(sampling: int | str, reader: str) -> None:
    """Raise BadInput if `data.sampling` wants samples in proportions that no stretch of a tar has."""
    if sampling != "natural":
        raise BadInput(
            f"the reader {reader} goes through shards from front to back and cannot deal data.sampling = {sampling!r}",
            "data.reader",
            "set data.reader to plan, or data.sampling to natural and loss.class_weights to balanced",
        )
