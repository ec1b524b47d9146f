"""A few drawn cells as files: what a page shows to those who have no image at hand."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from shards.drawing import CLASSES, SCENE, draw_smear, slide_look
from shards.textures import stream


def draw_examples(folder: Path, size: int = 224) -> Path:
    """Make a folder with one drawn cell of each drawn class, as PNG; return it.

    Args:
        folder: to be made.
        size: side of the images, pixels.
    """
    folder.mkdir()
    for number, name in enumerate(CLASSES):
        picture = draw_smear(name, slide_look(0, number, 0), stream(0, SCENE, number), size)
        Image.fromarray(picture).save(folder / f"drawn {name}.png")
    return folder
