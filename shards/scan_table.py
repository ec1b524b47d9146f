"""scan.parquet: a row per file, by path, with what was measured, what was found and what is suggested."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from shards.decisions import KEEP
from shards.scan_findings import Findings

_NUMBERS = ("mean_r", "mean_g", "mean_b", "std_r", "std_g", "std_b", "border_r", "border_g", "border_b")
_MEASURES = (*_NUMBERS, "sharpness", "brightness", "saturation", "clipped", "outlier_score", "class_score")
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("path", "source", "part", "class", "group", "status", "detail")),
        *((name, pa.int64()) for name in ("bytes", "width", "height", "crowd")),
        *((name, pa.string()) for name in ("mode", "format", "sha256", "pixels_sha256", "cluster")),
        *((name, pa.float32()) for name in _MEASURES),
        ("flags", pa.list_(pa.string())),
        ("decision", pa.string()),
        ("reason", pa.string()),
    ]
)


def scan_table(found: Findings, rows: list[tuple[str, str, str]]) -> pa.Table:
    """Return the table; measures are null where a file does not decode, `rows` are the suggested decisions."""
    decided = {source: (word, reason) for source, word, reason in rows}
    files = [(image.item, i) for i, image in enumerate(found.images)]
    files += [(reject.item, -1 - k) for k, reject in enumerate(found.rejected)]
    files.sort(key=lambda entry: entry[0].source)
    members = Counter(found.clusters.tolist())
    return pa.Table.from_pylist([_row(found, place, decided, members) for _, place in files], _SCHEMA)


def _row(found: Findings, place: int, decided: dict[str, tuple[str, str]], members: Counter[int]) -> dict[str, Any]:
    """Return the row of the image at `place`, or of the rejected file at -1 - `place`."""
    measures: dict[str, Any]
    if place < 0:
        reject = found.rejected[-1 - place]
        item, measures = reject.item, {"status": reject.reason, "detail": reject.detail, "flags": []}
    else:
        image, seen = found.images[place], found.looks[place]
        fine, item = seen["features"], image.item
        numbers = np.concatenate([fine["mean"], fine["std"], seen["border"][:3]]).tolist()
        root = int(found.clusters[place])
        measures = {
            "status": "ok",
            "bytes": image.size,
            **{name: getattr(image, name) for name in ("width", "height", "mode", "format", "sha256", "pixels_sha256")},
            "cluster": found.images[root].item.source if members[root] > 1 else "",
            **dict(zip(_NUMBERS, numbers, strict=True)),
            "sharpness": float(fine["sharpness"]),
            **{name: float(seen[name]) for name in ("brightness", "saturation", "clipped")},
            "outlier_score": float(found.outliers.score[place]),
            "class_score": float(found.outliers.misfits.score[place]),
            "crowd": int(found.outliers.crowds.member[place]) or None,
            "flags": found.flags[place],
        }
    word, reason = decided.get(item.source, (KEEP, ""))
    return {
        "path": item.source,
        "source": found.source(item.source),
        "part": item.part,
        "class": item.label,
        "group": item.group,
        "decision": word,
        "reason": reason,
        **measures,
    }
