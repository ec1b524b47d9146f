"""Quick mode: drawn sets of two, four and eight classes, and flags that make any row a matter of seconds."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bloodcell.config import Config, Flat

SIDE, EACH = 64, 24
"""Side of the drawn images in pixels, and how many there are for each drawn class."""
FLAGS: Flat = {
    "data.micro_batch": 8,
    "train.micro_batches": 2,
    "train.epochs": 1,
    "train.keep": 1,
    "tracking.wandb": "off",
    "tracking.log_every": 1,
}


def draw_sets(folder: Path, classes: set[int]) -> dict[int, Path]:
    """Return {classes: set} of drawn sets below `folder`; those that are there already are kept.

    Four forms of cells can be drawn. Of two classes are the first two; for eight each form is cut into two classes that
    nothing tells apart: what a row reaches there means nothing, that it runs does.
    """
    from shards.pack import PackOptions, pack
    from shards.synth import SynthOptions, synthesise

    images = folder / "images"
    if not images.exists():
        synthesise(images, SynthOptions(images=4 * EACH, size=SIDE, patients=24, seed=0))
    sets = {}
    for count in sorted(classes):
        target = sets[count] = folder / f"{count}-classes"
        if (target / "dataset.json").exists():
            continue
        source = images if count == 4 else _arranged(images, folder / f"{count}-images", count)
        pack(source, target, PackOptions(split="60/20/20", workers=1))
    return sets


def _arranged(images: Path, folder: Path, count: int) -> Path:
    """Link the drawn images into two or eight class folders; return their parent."""
    shutil.rmtree(folder, ignore_errors=True)
    drawn = sorted(path for path in images.iterdir() if path.is_dir())
    for place in drawn[:2] if count == 2 else drawn:
        for index, file in enumerate(sorted(place.iterdir())):
            name = place.name if count == 2 else f"{place.name}-{'ab'[index % 2]}"
            (folder / name).mkdir(parents=True, exist_ok=True)
            os.link(file, folder / name / file.name)
    return folder


def quick_flags(config: Config) -> Flat:
    """Return the config fields of a row in quick mode: the smallest input that its model takes, one epoch."""
    from bloodcell.models import zoo

    known = zoo.spec(config.model.name)
    side = max(32, known.minimum or 32)
    return {**FLAGS, "data.size": -(-side // known.multiple) * known.multiple}
