"""What one could use instead of our loader, as its own documentation shows it, for `bloodcell bench data`.

All give float32 batches [n, 3, size, size], normalised: random resized crop with antialiasing, and a horizontal flip.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bloodcell.data.shardset import ShardSet

BATCH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AREA, RATIO = (0.35, 1.0), (3 / 4, 4 / 3)
SUFFIXES = "jpg;jpeg;png;bmp;tif;tiff;webp"
BUFFER = 1000
"""Samples that webdataset shuffles, as in its README."""


def image_folder(place: Path, size: int, workers: int, images: int, decode_v2: bool) -> Iterator[Any]:
    """Yield image batches of torchvision's ImageFolder and a DataLoader, decoded by PIL or by decode_image."""
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image

    if decode_v2:
        loader = partial(decode_image, mode=ImageReadMode.RGB)
        files = ImageFolder(place, _transform(size, pictures=False), loader=loader)
    else:
        files = ImageFolder(place, _transform(size, pictures=True))
    sampler = RandomSampler(files, replacement=True, num_samples=images)
    for batch, _ in DataLoader(files, BATCH, sampler=sampler, num_workers=workers, drop_last=True):
        yield batch


def pipeline_of_users(shards: ShardSet, split: str, size: int, workers: int, images: int) -> Iterator[Any]:
    """Yield image batches of webdataset's own pipeline on the set's tars: decoded by PIL, torchvision's transforms."""
    import webdataset

    files = [str(shards.folder / shard.file) for shard in shards.info.shards_of(split)]
    dataset = (
        webdataset.WebDataset(
            files, resampled=True, shardshuffle=False
        )  # each worker draws tars: there may be fewer tars than workers
        .shuffle(BUFFER)
        .decode("pilrgb")
        .to_tuple(SUFFIXES, "cls")
        .map_tuple(_transform(size, pictures=True))
        .batched(BATCH, partial=False)
        .with_epoch(max(1, images // BATCH // workers))  # of each worker
    )
    for batch, _ in webdataset.WebLoader(dataset, batch_size=None, num_workers=workers):
        yield batch


def _transform(size: int, pictures: bool) -> Any:
    """Return torchvision's transforms of PIL pictures, or of tensors."""
    import torch
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=AREA, ratio=RATIO, antialias=True),
            v2.RandomHorizontalFlip(),
            *([v2.PILToTensor()] if pictures else []),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
