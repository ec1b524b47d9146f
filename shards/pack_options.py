"""The options of packing, as flags and as stored: declared before anything that takes long is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from shards.source_options import SourceOptions

if TYPE_CHECKING:
    from shards.treat import Treatment


@dataclass(frozen=True)
class PackOptions(SourceOptions):
    """How to pack. Every field but `workers` decides what the set contains and is stored in dataset.json."""

    split: str = field(default="80/10/10", metadata={"help": "shares of train, val and test in percent"})
    folds: int = field(default=0, metadata={"help": "cross-validation folds instead of --split; 0 is none"})
    leave_source_out: bool = field(
        default=False, metadata={"help": "one fold for each source: tested on it, trained on all others"}
    )
    test_from: str = field(
        default="",
        metadata={"help": "fixed test set: a folder of --also, a part of the split found, or a CSV of paths"},
    )
    seed: int = field(default=0, metadata={"help": "of the split and of the order inside the shards"})
    keep_splits: bool = field(default=False, metadata={"help": "keep the split whose folders the images lie in"})
    merge_splits: bool = field(
        default=False, metadata={"help": "divide anew images that lie in the folders of a split"}
    )
    decisions: str = field(default="", metadata={"help": "CSV of path, keep or drop, reason, as scan suggests it"})
    near: bool = field(default=True, metadata={"help": "search near-duplicates and keep them in one part"})
    encode: str = field(
        default="keep", metadata={"help": "keep, png, webp-lossless or jpeg:Q with a quality of 1 to 100"}
    )
    max_side: int = field(
        default=0, metadata={"help": "longest side in pixels, larger images are made smaller; 0 is any"}
    )
    exif: str = field(
        default="apply", metadata={"help": "orientation of images that are encoded again: apply it, or keep it"}
    )
    strip: bool = field(default=False, metadata={"help": "remove metadata and ICC profiles, pixels stay"})
    segment: str = field(default="", metadata={"help": "lab-kmeans: all but stained nuclei become black"})
    stain: str = field(default="", metadata={"help": "macenko or reinhard: normalise the stain"})
    shard_bytes: int = field(default=256 << 20, metadata={"help": "largest size of a shard in bytes"})
    shard_samples: int = field(default=10_000, metadata={"help": "largest number of samples in a shard"})
    allow_leaks: bool = field(default=False, metadata={"help": "write the set although its audit finds leaks"})
    allow_thin: bool = field(
        default=False, metadata={"help": "let a class with too few groups be missing in some parts, and say so"}
    )
    workers: int = field(default=0, metadata={"help": "processes; 0 is one for each core"})

    @property
    def treatment(self) -> Treatment:
        """What is done to each image; raises BadInput if it cannot be done."""
        from shards.treat import Treatment, check

        names = (leaf.name for leaf in fields(Treatment))
        how = Treatment(**{name: getattr(self, name) for name in names})
        check(how)
        return how
