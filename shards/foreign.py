"""Foreign pictures that are alike, drawn: a crowd of them in a set is a kind of its own, not a lonely outlier."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

CROWDS = ("tissue", "animal")
"""Subjects: a section of tissue full of small nuclei, and an animal's head before a coloured wall."""


def crowd_picture(rng: np.random.Generator, how: str, size: int) -> NDArray[np.uint8]:
    """Draw a picture of one of CROWDS, uint8 [size, size, 3]; colours, places and sizes vary."""
    return _tissue(rng, size) if how == "tissue" else _animal(rng, size)


def _tissue(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    ground = np.array((225, 140, 185)) + rng.normal(0, 8, 3)
    image = Image.fromarray(np.full((size, size, 3), ground.clip(0, 255), np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(25, 40))):  # fibres
        x, y, along = *rng.uniform(0, size, 2), rng.uniform(-0.5, 0.5)
        shade = tuple((ground + rng.normal(0, 18)).clip(0, 255).astype(int).tolist())
        draw.line((x - size, y - along * size, x + size, y + along * size), fill=shade, width=max(1, size // 40))
    for x, y in rng.uniform(0, size, (int(rng.integers(90, 150)), 2)):
        wide, tall = rng.uniform(0.012, 0.03, 2) * size
        shade = tuple(rng.normal((85, 45, 130), 12).clip(0, 255).astype(int).tolist())
        draw.ellipse((x - wide, y - tall, x + wide, y + tall), fill=shade)
    return _photographed(image.filter(ImageFilter.GaussianBlur(size / 250)), rng)


def _animal(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    wall, fur = rng.uniform(60, 220, 3), rng.choice(np.array([(60, 50, 45), (200, 120, 50), (150, 140, 130)]))
    image = Image.fromarray(np.full((size, size, 3), wall, np.uint8))
    draw = ImageDraw.Draw(image)
    coat = tuple((fur + rng.normal(0, 10, 3)).clip(0, 255).astype(int).tolist())
    x, y, radius = *(rng.uniform(0.35, 0.65, 2) * size), rng.uniform(0.16, 0.34) * size
    draw.rectangle((0, min(y + 1.1 * radius, size), size, size), fill=tuple((wall * 0.6).astype(int).tolist()))
    draw.ellipse((x - 1.3 * radius, y + 0.6 * radius, x + 1.3 * radius, y + 3 * radius), fill=coat)
    for side in (-1, 1):
        draw.polygon(
            [(x + side * a * radius, y - b * radius) for a, b in ((0.2, 0.9), (0.95, 0.5), (0.8, 1.6))], fill=coat
        )
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=coat)
    for side in (-1, 1):
        at, wide = x + side * 0.4 * radius, 0.17 * radius
        draw.ellipse((at - wide, y - 2 * wide, at + wide, y), fill=(190, 200, 60))
        draw.ellipse((at - wide / 3, y - 2 * wide, at + wide / 3, y), fill=(10, 10, 10))
    wall_colour = tuple(wall.astype(int).tolist())
    image = image.rotate(rng.uniform(-40, 40), Image.Resampling.BILINEAR, fillcolor=wall_colour)
    return _photographed(image.filter(ImageFilter.GaussianBlur(size / 200)), rng)


def _photographed(image: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
    pixels = np.asarray(image, np.float64) + rng.normal(0, 4, (*image.size[::-1], 3))
    return np.asarray(pixels.clip(0, 255), np.uint8)
