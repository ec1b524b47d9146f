"""Which images a run has met already: the same bytes in its own set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bloodcell.data.shardset import ShardSet
from bloodcell.engine.inference import split_ids
from bloodcell.runfolder import RunFolder
from shards.errors import BadInput

PARTS = ("train", "val", "test")


class Seen:
    """Finds sha256 sums among those of a set. Holds the first 8 bytes of each: a chance hit is one in 10^19 pairs.

    Args:
        sums: uint64 [samples].
        parts: int8 [samples], place in PARTS.
    """

    def __init__(self, sums: np.ndarray, parts: np.ndarray) -> None:
        order = np.argsort(sums)
        self._sums, self._parts = sums[order], parts[order]

    def __call__(self, sha256: Sequence[str]) -> list[str]:
        """Return train, val, test, or "" for each sum in hexadecimal ("" for an image that was not read)."""
        if not len(self._sums):
            return [""] * len(sha256)
        wanted = _numbers([text or "0" * 64 for text in sha256])
        place = np.searchsorted(self._sums, wanted).clip(max=len(self._sums) - 1)
        hit = self._sums[place] == wanted
        return [
            PARTS[self._parts[p]] if found and text else "" for p, found, text in zip(place, hit, sha256, strict=True)
        ]


def seen_by(run: Path) -> tuple[Seen, bool]:
    """Return what finds the images of a run's own set, and whether that set is at hand (else it finds none)."""
    nothing = Seen(np.empty(0, np.uint64), np.empty(0, np.int8))
    if run.is_file():
        return nothing, False
    folder = RunFolder(run)
    config = folder.config()
    try:
        shards = ShardSet.open(Path(config.data.set))
        if shards.info.fingerprint != folder.stored()["fingerprint"]:
            return nothing, False
    except BadInput:
        return nothing, False
    names = [shards.split_name(part, config.data.fold) for part in PARTS]
    ids = [split_ids(shards, n) if n in shards.info.splits else np.empty(0, np.int64) for n in names]
    sums = shards.table(["sha256"]).column("sha256")
    parts = np.repeat(np.arange(len(PARTS), dtype=np.int8), [len(part) for part in ids])
    return Seen(_numbers(sums.take(np.concatenate(ids)).to_pylist()), parts), True


def _numbers(sums: Sequence[str]) -> np.ndarray:
    return np.array([int(text[:16], 16) for text in sums], dtype=np.uint64)
