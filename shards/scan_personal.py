"""Which images carry personal data in their metadata: fields and their kinds, never what stands in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shards.examine import CHUNK, Image
from shards.metadata import personal
from shards.parallel import chunked, map_ordered


def personal_fields(images: Sequence[Image], workers: int) -> list[dict[str, str]]:
    """Return for each image {field: kind} (see `shards.metadata.personal`); {} where the file is gone by now."""
    paths = [image.item.path for image in images]
    return [one for part in map_ordered(_read, chunked(paths, CHUNK), workers) for one in part]


def _read(paths: Sequence[Path]) -> list[dict[str, str]]:
    found = []
    for path in paths:
        try:
            found.append(personal(path.read_bytes()))
        except OSError:  # examined a moment ago
            found.append({})
    return found
