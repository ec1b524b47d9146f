"""Name, split and audit the samples of a set: what is near and was missed is joined, and the split made again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np

from shards.audit import Audit, audit, summary
from shards.clean import Cleaned, join
from shards.console import say, warn
from shards.errors import BadInput
from shards.fixedtest import beside, protect
from shards.kept import keep_split
from shards.sources.items import FIXED
from shards.split import Split, order_key
from shards.spooled import chosen
from shards.ways import Way
from shards.write import Sample

MENDINGS = 5
"""How often a split is made anew after its audit found near-duplicates across parts."""

KEY_LENGTH = 76
"""Longest name taken from a path; with 17 more for a hash and the extension it fits the 100 characters of a tar."""


def divide(
    cleaned: Cleaned, classes: list[str], way: Way, seed: int, *, mend: bool, workers: int = 2
) -> tuple[list[Sample], Split, Cleaned, Audit]:
    """Split and audit; with `mend`, near-duplicates that only the audit finds are joined and the set is split again.

    The audit compares pictures with `workers` threads.
    """
    for _ in range(MENDINGS):
        if way.fixed:
            cleaned = protect(cleaned)
        samples, division = _place(cleaned, classes, way, seed)
        found, rows = _audit(samples, cleaned, workers)
        near = [(rows[leak.a], rows[leak.b]) for leak in found.leaks if leak.kind == "near"]
        if not near or way.kept or not mend:
            break
        say(f"the audit found {len(near)} near-duplicate pairs across parts: joined, splitting again")
        cleaned = join(cleaned, np.array(near, dtype=np.int64))
    return samples, division, cleaned, found


def _place(cleaned: Cleaned, classes: list[str], way: Way, seed: int) -> tuple[list[Sample], Split]:
    """Name, split and order the samples: part by part, shuffled inside each part by the seed."""
    keys = make_keys([image.item.source for image in cleaned.images])
    labels = [classes.index(image.item.label) for image in cleaned.images]
    parts = [image.item.part for image in cleaned.images]
    if way.kept:
        division = keep_split(parts, labels, cleaned.groups, keys, way.fractions, seed, classes)
    else:
        rest = [i for i, part in enumerate(parts) if part != FIXED]
        origins = [cleaned.images[i].item.origin for i in rest]
        groups, names = ([values[i] for i in rest] for values in (cleaned.groups, keys))
        division = way.divide([labels[i] for i in rest], groups, names, origins, seed, classes)
        division = beside(division, rest, len(parts), way.fixed_part)
    order = sorted(range(len(keys)), key=lambda i: (division.assignment[i], order_key(seed, keys[i])))
    samples = [
        Sample(cleaned.images[i], keys[i], labels[i], cleaned.groups[i], division.parts[division.assignment[i]])
        for i in order
    ]
    return samples, division


def make_keys(sources: list[str], taken: Collection[str] = (), again: int = 0) -> list[str]:
    """Turn paths into unique names of [a-z0-9_]+; paths that would share a name get a hash of the path behind it.

    Names that are `taken` are not given; `again` makes other hashes, for paths that have come before.
    """
    slugs = [re.sub(r"[^a-z0-9]+", "_", source.rsplit(".", 1)[0].lower()).strip("_") for source in sources]
    seen = Counter(slugs)
    keys = []
    for source, slug in zip(sources, slugs, strict=True):
        if not slug or len(slug) > KEY_LENGTH or seen[slug] > 1 or slug in taken:
            slug = f"{slug[:KEY_LENGTH]}_{order_key(again, source).hex()[:16]}".lstrip("_")
        keys.append(slug)
    return keys


def _audit(samples: list[Sample], cleaned: Cleaned, workers: int) -> tuple[Audit, np.ndarray]:
    """Return what the audit found, and each sample's position in `cleaned`."""
    position = {image.item.source: i for i, image in enumerate(cleaned.images)}
    rows = np.array([position[sample.image.item.source] for sample in samples], dtype=np.int64)
    features = chosen(cleaned.features, rows, "audited.bin")
    found = audit(
        [sample.part for sample in samples],
        [sample.group for sample in samples],
        [sample.image.sha256 for sample in samples],
        features["thumbnail"],
        workers=workers,
    )
    return found, rows


def judge(samples: list[Sample], found: Audit, allow_leaks: bool, keep_splits: bool) -> dict[str, Any]:
    """Return what dataset.json says about the audit; raises BadInput if the split leaks and that is not allowed."""
    parts = [sample.part for sample in samples]
    names = [sample.image.item.source for sample in samples]
    result = summary(found, names)
    if found.leaks and not allow_leaks:
        first = found.leaks[0]
        raise BadInput(
            f"the split leaks: {len(found.leaks)} times, first {names[first.a]} ({parts[first.a]}) and "
            f"{names[first.b]} ({parts[first.b]}), {first.kind}",
            "audit",
            (
                "--merge-splits to divide all images anew"
                if keep_splits
                else "let near-duplicates and patients be grouped"
            )
            + ", or --allow-leaks to write a set marked as leaking",
        )
    if found.leaks:
        warn(f"the split leaks {len(found.leaks)} times; the set and every report made from it will say so")
    return result
