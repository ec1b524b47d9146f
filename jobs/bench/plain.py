"""A plain training loop, the baseline of `bloodcell bench train`: images decoded into memory once, then only torch.

MobileNetV2 from given weights, channels_last, AdamW under one cycle, flips. What one writes without a library.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from shards.images import decode

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bloodcell.data.shardset import ShardSet

MODEL = "mobilenet_v2"


def main() -> None:
    """Train as the command line says; print {split: share that is right} as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    print(json.dumps(run(asked.set, asked.weights, asked)))


def run(folder: Path, weights: Path, asked: argparse.Namespace) -> dict[str, float]:
    """Train on the training split of a set; return the share of val and test that is right."""
    import torch

    from bloodcell.data.shardset import ShardSet
    from bloodcell.models import zoo
    from bloodcell.models.weights import load_weights

    torch.set_num_threads(asked.threads)
    torch.manual_seed(asked.seed)
    shards = ShardSet.open(folder)
    tables = {name: in_memory(shards, name, asked.size) for name in ("train", "val", "test")}
    model = zoo.build(MODEL, len(shards.info.classes), None, True, "linear", asked.size)
    load_weights(model, weights)
    fit(model, *tables["train"], asked)
    return {name: right(model, *tables[name], asked.batch) for name in ("val", "test")}


def in_memory(shards: ShardSet, split: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all images of a split, uint8 [n, 3, size, size], and their labels, int64 [n]."""
    import torch

    from bloodcell.data.order import nth_ids
    from bloodcell.data.shardset import Reader

    reader, pixels = Reader(shards), []
    ids = nth_ids(shards.ranges(split), np.arange(shards.info.count(split)))
    for sample in ids.tolist():
        picture = Image.fromarray(decode(reader.read(sample).tobytes())[0])
        pixels.append(np.array(picture.resize((size, size), Image.Resampling.BILINEAR)))
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return images, torch.from_numpy(shards.index["label"][ids].astype(np.int64))


def fit(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, asked: argparse.Namespace) -> None:
    """Train the network."""
    import torch
    from torch.nn import functional

    steps = asked.epochs * math.ceil(len(images) / asked.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=asked.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, asked.lr, total_steps=steps)
    model.train()
    for _ in range(asked.epochs):
        for chosen in torch.randperm(len(images)).split(asked.batch):
            batch = normalised(images[chosen])
            flips = [axis for axis in (2, 3) if torch.rand(()) < 0.5]
            loss = functional.cross_entropy(model(batch.flip(flips)), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def right(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch: int) -> float:
    """Return the share of images whose class the network finds."""
    import torch

    model.eval()
    with torch.inference_mode():
        found = torch.cat([model(normalised(part)).argmax(1) for part in images.split(batch)])
    return float((found == labels).float().mean())


def normalised(images: torch.Tensor) -> torch.Tensor:
    """Return float32 network input of uint8 images, channels_last."""
    import torch

    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (images.float().div_(255) - mean).div_(std).contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
