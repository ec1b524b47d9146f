"""What the images that a run looks at in every epoch would take in memory, and at which side they would fit."""

from __future__ import annotations

import numpy as np
import torch

from bloodcell.config import Config
from bloodcell.data.layout import EncodedLayout, Layout
from bloodcell.data.memory import available_memory
from bloodcell.data.order import nth_ids
from bloodcell.data.resident import SharedCache
from bloodcell.data.shardset import ShardSet
from bloodcell.data.smaller import smaller

LOOKED_AT = 4096
"""Images of a split by whose sizes a side is proposed."""

STEP = 32
"""Proposed sides are multiples of it, pixels."""

LEAST = {"device": 4, "host": 4, "encoded": 16}
"""The tars of the smallest images are at most so many times as large as what is kept of them."""


def room(place: str, share: float) -> int:
    """Return the bytes that images may take on the GPU of this rank ("device") or on this node."""
    return int((torch.cuda.mem_get_info()[0] if place == "device" else available_memory()) * share)


def at_least(config: Config, shards: ShardSet, place: str) -> int:
    """Return bytes that the images take at least, without a look at all samples."""
    if config.data.cache_side and place != "encoded":
        return _about(config, shards, place, [config.data.cache_side])[0] // 2
    used = _splits(config, shards, ("train", "val"))
    return sum({one.file: one.bytes for name in used for one in shards.info.shards_of(name)}.values()) // LEAST[place]


def kept_ids(config: Config, shards: ShardSet, names: tuple[str, ...] = ("train", "val")) -> np.ndarray:
    """Return the ids of the samples of some splits, int64 [n], ascending; the default is what every epoch looks at."""
    ranges = [shards.ranges(name) for name in _splits(config, shards, names)]
    return np.unique(np.concatenate([np.arange(first, last) for part in ranges for first, last in part]))


def encoded_layout(config: Config, shards: ShardSet) -> EncodedLayout:
    """Return what a cache of encoded bytes keeps: the training and validation images."""
    return EncodedLayout(shards, kept_ids(config, shards))


def pixel_layout(config: Config, shards: ShardSet, place: str) -> Layout:
    """Return which pixels a cache on the "device" or the "host" keeps.

    Training images, in the size in which training looks at them. On the host those of the validation too, as they are.
    """
    train = kept_ids(config, shards, ("train",))
    if place == "device":
        return Layout(shards, train, config.data.cache_side)
    ids = kept_ids(config, shards)
    return Layout(shards, ids, np.where(np.isin(ids, train), config.data.cache_side, 0))


def needs(config: Config, shards: ShardSet, place: str) -> int:
    """Return the bytes that the images take."""
    layout = encoded_layout(config, shards) if place == "encoded" else pixel_layout(config, shards, place)
    return SharedCache.size(layout)


def fitting_side(config: Config, shards: ShardSet, place: str, limit: int) -> tuple[int, int] | None:
    """Return the largest useful data.cache_side that fits into `limit` bytes, and about what it takes; or None.

    Useful is what is not smaller than the network's input, and a multiple of 32 pixels.
    """
    height, width, _ = _some_sizes(config, shards, "train")
    largest = int(np.minimum(height, width).max(initial=0))
    sides = list(range(largest // STEP * STEP, config.data.size - 1, -STEP))
    sizes = zip(sides, _about(config, shards, place, sides), strict=True)
    return next(((side, size) for side, size in sizes if size <= limit), None)


def _about(config: Config, shards: ShardSet, place: str, sides: list[int]) -> list[int]:
    """Return about how many bytes the decoded images take with each of these sides."""
    train = _some_sizes(config, shards, "train")
    fixed = 0 if place == "device" else _pixels(*_some_sizes(config, shards, "val"), 0)
    return [_pixels(*train, side) + fixed for side in sides]


def _some_sizes(config: Config, shards: ShardSet, name: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Return heights and widths, int64, of some images of a split, evenly spread, and for how many each stands."""
    ranges = [shards.ranges(split) for split in _splits(config, shards, (name,))]
    total = sum(int(last - first) for part in ranges for first, last in part)
    looked_at = min(total, LOOKED_AT)
    if not looked_at:
        return np.empty(0, np.int64), np.empty(0, np.int64), 0.0
    rows = shards.index[nth_ids(np.concatenate(ranges), np.arange(looked_at) * total // looked_at)]
    return rows["height"].astype(np.int64), rows["width"].astype(np.int64), total / looked_at


def _pixels(height: np.ndarray, width: np.ndarray, each: float, side: int) -> int:
    tall, wide = smaller(height, width, side)
    return int((tall * wide).sum() * 3 * each)


def _splits(config: Config, shards: ShardSet, names: tuple[str, ...]) -> list[str]:
    full = dict.fromkeys(shards.split_name(name, config.data.fold) for name in names)
    return [name for name in full if name in shards.info.splits]
