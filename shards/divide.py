"""Name, split and audit the samples of a set: what is near and was missed is joined, and the split made again."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from shards.audit import BOUNDED, EXAMPLES, Audit, audit, summary
from shards.clean import Cleaned, join
from shards.console import say, warn
from shards.errors import BadInput
from shards.fixedtest import beside, protect
from shards.heap import give_back
from shards.kept import keep_split
from shards.samples import Samples
from shards.sources.items import FIXED
from shards.split import Split, order_key, order_keys
from shards.spooled import alongside, chosen
from shards.ways import Way

MENDINGS = 5
"""How often a split is made anew after its audit found near-duplicates across parts."""

KEY_LENGTH = 76
"""Longest name taken from a path; with 17 more for a hash and the extension it fits the 100 characters of a tar."""


def divide(
    cleaned: Cleaned,
    classes: list[str],
    way: Way,
    seed: int,
    *,
    mend: bool,
    workers: int = 1,
    begin: Callable[[Samples], None] | None = None,
) -> tuple[Samples, Split, Cleaned, Audit]:
    """Split and audit; with `mend`, near-duplicates that only the audit finds are joined and the set is split again.

    The audit compares pictures with `workers` threads and processes. `begin` is given the samples of each split before
    its audit.
    """
    for _ in range(MENDINGS):
        if way.fixed:
            cleaned = protect(cleaned)
        samples, division, rows = _place(cleaned, classes, way, seed)
        give_back()
        if begin:
            begin(samples)
        found = audit(
            samples.parts,
            samples.groups,
            alongside(cleaned.features, [samples.images.digests("sha256")], np.dtype("S32")),
            chosen(cleaned.features, rows)["thumbnail"],
            workers=workers,
        )
        near = [(rows[leak.a], rows[leak.b]) for leak in found.leaks if leak.kind == "near"]
        if not near or way.kept or not mend:
            break
        say(f"the audit found {len(near)} near-duplicate pairs across parts: joined, splitting again")
        cleaned = join(cleaned, np.array(near, dtype=np.int64))
    return samples, division, cleaned, found


def _place(cleaned: Cleaned, classes: list[str], way: Way, seed: int) -> tuple[Samples, Split, np.ndarray]:
    """Name, split and order the samples: part by part, shuffled inside each part by the seed.

    Returns also each sample's position in `cleaned`.
    """
    images = cleaned.images
    keys, parts = make_keys(images.sources), images.texts("part")
    places = {name: place for place, name in enumerate(classes)}
    labels = np.array([places[name] for name in images.texts("label")], np.int64)
    if way.kept:
        division = keep_split(parts, labels, cleaned.groups, keys, way.fractions, seed, classes)
    else:
        rest = [i for i, part in enumerate(parts) if part != FIXED]
        origins, groups, names = ([v[i] for i in rest] for v in (images.texts("origin"), cleaned.groups, keys))
        division = way.divide(labels[rest], groups, names, origins, seed, classes)
        division = beside(division, rest, len(parts), way.fixed_part)
    order = np.lexsort((order_keys(seed, keys), division.assignment))
    parts = [division.parts[place] for place in division.assignment[order].tolist()]
    groups = [cleaned.groups[i] for i in order.tolist()]
    taken = pa.array(keys, pa.large_string()).take(pa.array(order))
    return Samples(images.taken(order), taken, labels[order], groups, parts), division, order


def make_keys(sources: Callable[[], Iterable[str]], taken: Collection[str] = (), again: int = 0) -> list[str]:
    """Turn paths into unique names of [a-z0-9_]+; paths that would share a name get a hash of the path behind it.

    `sources` gives the paths, as often as it is asked to: they need not all be held at once.

    Names that are `taken` are not given; `again` makes other hashes, for paths that have come before.
    """
    keys = [re.sub(r"[^a-z0-9]+", "_", source.rsplit(".", 1)[0].lower()).strip("_") for source in sources()]
    twice = {one for one, other in pairwise(sorted(keys)) if one == other}
    for place, source in enumerate(sources()):
        slug = keys[place]
        if not slug or len(slug) > KEY_LENGTH or slug in twice or slug in taken:
            keys[place] = f"{slug[:KEY_LENGTH]}_{order_key(again, source).hex()[:16]}".lstrip("_")
    return keys


def judge(samples: Samples, found: Audit, allow_leaks: bool, keep_splits: bool) -> dict[str, Any]:
    """Return what dataset.json says about the audit; raises BadInput if the split leaks and that is not allowed."""
    rows = sorted({row for leak in found.leaks[:EXAMPLES] for row in (leak.a, leak.b)})
    names = dict(zip(rows, samples.images.taken(rows).sources(), strict=True))
    result = summary(found, names)
    if found.bounded:
        warn(f"the audit was bounded: {BOUNDED}")
    if found.leaks and not allow_leaks:
        first, parts = found.leaks[0], samples.parts
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
