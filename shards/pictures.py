"""Images of a shard set as small data URIs: read by (shard, offset, size), decoded, shrunk, written as JPEG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from PIL import Image

from shards.format import DatasetInfo, read_samples
from shards.images import UnusableImageError, decode

COLUMNS = ["key", "class", "group", "source", "width", "height", "shard", "offset", "size"]

QUALITIES = (82, 70, 55, 40, 25)
"""JPEG qualities, tried in this order until a thumbnail is small enough."""


@dataclass(frozen=True)
class Picture:
    """One image for a page. `uri` is empty where its bytes could not be read."""

    uri: str
    key: str
    label: str
    source: str
    width: int
    height: int


def thumbnail(data: bytes, side: int, limit: int) -> str:
    """Return an image as a JPEG data URI: at most `side` pixels on its longer side, aspect ratio kept.

    Args:
        data: encoded image bytes in any format that `shards.images.decode` knows.
        side: pixels; smaller images are not enlarged.
        limit: bytes of JPEG that are aimed at; quality falls until they suffice or the lowest quality is reached.

    Raises:
        UnusableImageError: the bytes cannot be decoded.
    """
    image = Image.fromarray(decode(data)[0])
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    encoded = b""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        encoded = buffer.getvalue()
        if len(encoded) <= limit:
            break
    return "data:image/jpeg;base64," + base64.b64encode(encoded).decode("ascii")


def pictures(
    folder: Path, info: DatasetInfo, ids: Sequence[int], side: int, limit: int, table: pa.Table | None = None
) -> list[Picture]:
    """Return the samples `ids` of the set in `folder` as thumbnails, in the order asked for.

    Args:
        folder: the set.
        info: its dataset.json.
        ids: sample ids, rows of samples.parquet.
        side: longer side of a thumbnail in pixels.
        limit: bytes of JPEG for each.
        table: samples.parquet with at least COLUMNS, where it has been read already.

    Raises:
        BadInput: the sample table cannot be read. A missing or damaged shard only leaves `uri` empty.
    """
    if not ids:
        return []
    rows = (table or read_samples(folder, COLUMNS)).select(COLUMNS).take(pa.array(ids, pa.int64())).to_pylist()
    return [
        Picture(
            _uri(folder / info.shards[row["shard"]].file, row["offset"], row["size"], side, limit),
            row["key"],
            row["class"],
            row["source"],
            row["width"],
            row["height"],
        )
        for row in rows
    ]


def _uri(shard: Path, offset: int, size: int, side: int, limit: int) -> str:
    try:
        with open(shard, "rb") as file:
            file.seek(offset)
            return thumbnail(file.read(size), side, limit)
    except (OSError, UnusableImageError):
        return ""
