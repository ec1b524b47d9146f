"""Pictures of noise, folders of them, and what a set holds: what the tests of packing share."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.format import read_samples
from shards.pack import PackOptions

ONE = PackOptions(workers=1)


def noise(number: int, kind: str = "PNG", width: int = 24, height: int = 20, **options: Any) -> bytes:
    """Return an encoded picture of noise, another for each number: no two of them are near-duplicates."""
    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def fill(root: Path, files: dict[str, bytes]) -> Path:
    """Write files below `root`."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def plain(count: int = 20, classes: str = "ab") -> dict[str, bytes]:
    """Return `count` files of noise for each class."""
    return {f"{name}/{i:03d}.png": noise(1000 * place + i) for place, name in enumerate(classes) for i in range(count)}


def hashes(folder: Path, pattern: str = "*") -> dict[str, str]:
    """Return file name -> sha256 of what lies in a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(pattern))}


def rejects(folder: Path) -> dict[str, tuple[str, str]]:
    """Return source -> (reason, detail) of rejected.csv."""
    with open(folder / "rejected.csv", newline="", encoding="utf-8") as file:
        return {row["source"]: (row["reason"], row["detail"]) for row in csv.DictReader(file)}


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the sample table of a set."""
    found: list[dict[str, Any]] = read_samples(folder).to_pylist()
    return found
