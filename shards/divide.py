"""Name, split and audit the samples of a set: what is near and was missed is joined, and the split made again."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np

from shards.audit import Audit, audit, summary
from shards.clean import Cleaned, join
from shards.console import say, warn
from shards.errors import BadInput
from shards.kept import keep_split
from shards.split import Split, order_key, split
from shards.write import Sample

MENDINGS = 5
"""How often a split is made anew after its audit found near-duplicates across parts."""

KEY_LENGTH = 76
"""Longest name taken from a path; with 17 more for a hash and the extension it fits the 100 characters of a tar."""


def divide(
    cleaned: Cleaned, classes: list[str], fractions: dict[str, float], seed: int, *, keep_splits: bool, mend: bool
) -> tuple[list[Sample], Split, Cleaned, Audit]:
    """Split and audit; with `mend`, near-duplicates that only the audit finds are joined and the set is split again."""
    for _ in range(MENDINGS):
        samples, division = _place(cleaned, classes, fractions, seed, keep_splits)
        found, rows = _audit(samples, cleaned)
        near = [(rows[leak.a], rows[leak.b]) for leak in found.leaks if leak.kind == "near"]
        if not near or keep_splits or not mend:
            break
        say(f"the audit found {len(near)} near-duplicate pairs across parts: joined, splitting again")
        cleaned = join(cleaned, np.array(near, dtype=np.int64))
    return samples, division, cleaned, found


def _place(
    cleaned: Cleaned, classes: list[str], fractions: dict[str, float], seed: int, keep_splits: bool
) -> tuple[list[Sample], Split]:
    """Name, split and order the samples: part by part, shuffled inside each part by the seed."""
    keys = make_keys([image.item.source for image in cleaned.images])
    labels = [classes.index(image.item.label) for image in cleaned.images]
    if keep_splits:
        parts = [image.item.part for image in cleaned.images]
        division = keep_split(parts, labels, cleaned.groups, keys, fractions, seed, classes)
    else:
        division = split(labels, cleaned.groups, keys, fractions, seed, classes)
    order = sorted(range(len(keys)), key=lambda i: (division.assignment[i], order_key(seed, keys[i])))
    samples = [
        Sample(cleaned.images[i], keys[i], labels[i], cleaned.groups[i], division.parts[division.assignment[i]])
        for i in order
    ]
    return samples, division


def make_keys(sources: list[str]) -> list[str]:
    """Turn paths into unique names of [a-z0-9_]+; paths that would share a name get a hash of the path behind it."""
    slugs = [re.sub(r"[^a-z0-9]+", "_", source.rsplit(".", 1)[0].lower()).strip("_") for source in sources]
    seen = Counter(slugs)
    keys = []
    for source, slug in zip(sources, slugs, strict=True):
        if not slug or len(slug) > KEY_LENGTH or seen[slug] > 1:
            slug = f"{slug[:KEY_LENGTH]}_{order_key(0, source).hex()[:16]}".lstrip("_")
        keys.append(slug)
    return keys


def _audit(samples: list[Sample], cleaned: Cleaned) -> tuple[Audit, np.ndarray]:
    """Return what the audit found, and each sample's position in `cleaned`."""
    position = {image.item.source: i for i, image in enumerate(cleaned.images)}
    rows = np.array([position[sample.image.item.source] for sample in samples], dtype=np.int64)
    found = audit(
        [sample.part for sample in samples],
        [sample.group for sample in samples],
        [sample.image.sha256 for sample in samples],
        cleaned.features["thumbnail"][rows],
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
