"""Which new images can join a set, and where: nothing of the set changes, and nothing new may link two of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from shards.audit import Audit, audit
from shards.chunks import Found
from shards.clean import Cleaned, bounds, clean, ends
from shards.console import say
from shards.divide import MENDINGS, make_keys
from shards.duplicates import LeftOut, connected, near_pairs
from shards.examine import Image, Reject
from shards.samples import Sample, Samples
from shards.shown import NEAR
from shards.sources import Items
from shards.split import best_part, fill_singles, order_key
from shards.spooled import Records, behind, chosen


@dataclass(frozen=True)
class Standing:
    """A set as it is, before anything joins it.

    Attributes:
        samples: by id.
        features: FEATURES_DTYPE [samples].
        classes: names by label.
        parts: names of the parts.
        fractions: the share that each part shall have; one without is a fixed test set: nothing joins it.
        seed: of the draws.
        appended: how often images have joined it before.
    """

    samples: Samples
    features: Records
    classes: list[str]
    parts: list[str]
    fractions: dict[str, float]
    seed: int
    appended: int


@dataclass(frozen=True)
class Joined:
    """What joins the set: the new samples in the order to be packed, what does not, the audit of old and new."""

    samples: Samples
    rejected: list[Reject]
    audit: Audit
    findings: dict[str, Any]
    deviation: float


@dataclass
class _Cluster:
    """New images that belong together, and what of the set belongs to them."""

    members: list[int] = field(default_factory=list)  # positions among the new images
    rows: set[int] = field(default_factory=set)  # ids of samples of the set


def extend(
    standing: Standing,
    items: Items,
    seen: Found,
    *,
    near: bool,
    mend: bool,
    dropped: Mapping[str, str],
    workers: int = 1,
) -> Joined:
    """Find what of the new `items` can join the set; len(samples) + len(rejected) == len(items).

    Exact duplicates of the set's images are rejected, and so is one of its pictures under another label. What shares
    a group with images of the set, or is their near-duplicate, joins their part; what would link two parts is
    rejected. The rest is divided, groups whole, so that each part of the whole set comes nearest to its share of
    each class. With `mend`, near-duplicates across parts that only the audit finds are kept together too. Pictures are
    compared by `workers` threads and processes.
    """
    old = standing.samples
    cleaned, links = _clean(standing, items, seen, dropped)
    pairs, left_out = np.zeros((0, 2), np.int64), LeftOut()
    if near:
        both = behind(standing.features, cleaned.features, "both.bin")
        pairs = ends(near_pairs(both, workers=workers, left_out=left_out))
    found = pairs
    for _ in range(MENDINGS):
        clusters = _clusters(old, cleaned, links, pairs)
        placed, rejected = _place(standing, cleaned, clusters)
        judged, rows = _audit(standing, cleaned, placed, workers)
        leaks = [(rows[leak.a], rows[leak.b]) for leak in judged.leaks if leak.kind == "near"]
        leaks = [pair for pair in leaks if max(pair) >= len(old)]
        if not leaks or not mend:
            break
        say(f"the audit found {len(leaks)} near-duplicate pairs across parts: kept together, placing again")
        pairs = np.concatenate([pairs, np.array(leaks, np.int64)])
    everything = sorted([*cleaned.rejected, *rejected], key=lambda reject: reject.item.source)
    findings = _findings(standing, cleaned, found, len(pairs) - len(found)) | bounds(left_out)
    return Joined(
        _named(standing, cleaned, placed), everything, judged, findings, _deviation(standing, cleaned, placed)
    )


Placed = dict[int, tuple[str, str]]
"""Position among the new images -> (part, group)."""


def _clean(
    standing: Standing, items: Items, seen: Found, dropped: Mapping[str, str]
) -> tuple[Cleaned, list[tuple[str, int]]]:
    """Clean the new images; return also (group, id) of the groups that hold an image of the set."""
    known = {pixels: row for row, pixels in enumerate(standing.samples.images.hexadecimal("pixels_sha256"))}
    keep, rejected, links = [], list(seen.rejected), []
    for place, image in enumerate(seen.images):
        row = known.get(image.pixels_sha256)
        if row is not None and image.item.group:
            links.append((image.item.group, row))
        if row is None or image.item.source in dropped:
            keep.append(place)
        else:
            rejected.append(_twin(image, standing.samples[row], standing.classes))
    kept = Found(seen.images.taken(keep), chosen(seen.features, np.array(keep, np.int64)), rejected)
    return clean(items, kept, near=False, dropped=dropped), links


def _twin(image: Image, twin: Sample, classes: list[str]) -> Reject:
    there = f"{twin.image.item.source} of the set"
    if classes[twin.label] != image.item.label:
        return Reject(image.item, "contradicting label", f"one picture: {there}, which is {classes[twin.label]}")
    same = "bytes" if twin.image.sha256 == image.sha256 else "pixels"
    return Reject(image.item, "exact duplicate", f"same {same} as {there}")


def _clusters(old: Samples, cleaned: Cleaned, links: list[tuple[str, int]], pairs: np.ndarray) -> list[_Cluster]:
    """Put together what shares a group or is near-duplicate; pairs: ids, the new images' behind those of the set."""
    first = len(old)
    by_name: dict[str, list[int]] = {}
    for place, name in enumerate(cleaned.groups):
        if name:
            by_name.setdefault(name, []).append(place)
    chains = [pair for places in by_name.values() for pair in pairwise(places)]
    inner = pairs[(pairs >= first).all(axis=1)] - first
    edges = np.concatenate([inner, np.array(chains, np.int64).reshape(-1, 2)])
    labels = connected(len(cleaned.images), edges).tolist()
    clusters: dict[int, _Cluster] = {}
    for place, label in enumerate(labels):
        clusters.setdefault(label, _Cluster()).members.append(place)
    for a, b in np.sort(pairs, axis=1).tolist():
        if a < first <= b:
            clusters[labels[b - first]].rows.add(a)
    there: dict[str, list[int]] = {}
    for row, group in enumerate(old.groups):
        for name in names_of(group):
            there.setdefault(name, []).append(row)
    for name, row in links:
        there.setdefault(name, []).append(row)
    for place, image in enumerate(cleaned.images):
        clusters[labels[place]].rows.update(there.get(image.item.group, ()) if image.item.group else ())
    return [clusters[label] for label in sorted(clusters)]


def names_of(group: str) -> list[str]:
    """Return the names that a group was joined from (`20+21`), and its own."""
    if not group or group.startswith(NEAR):
        return [group] if group else []
    return list(dict.fromkeys([group, *group.split("+")]))


def _place(standing: Standing, cleaned: Cleaned, clusters: list[_Cluster]) -> tuple[Placed, list[Reject]]:
    """Give each new image a part and a group, or reject it: its cluster links two parts, or it is of the fixed test."""
    placed: Placed = {}
    rejected: list[Reject] = []
    free = []
    for cluster in clusters:
        homes = {standing.samples.parts[row]: row for row in sorted(cluster.rows, reverse=True)}
        group = _title(standing, cleaned, cluster)
        if len(homes) > 1:
            said = " and ".join(f"{standing.samples[row].image.item.source} ({part})" for part, row in homes.items())
            rejected += [Reject(cleaned.images[i].item, "links two parts", said) for i in cluster.members]
        elif homes.keys() - standing.fractions.keys():
            there = standing.samples[next(iter(homes.values()))].image.item.source
            said = f"a patient or a picture of {there}"
            rejected += [
                Reject(cleaned.images[i].item, "shared with the fixed test set", said) for i in cluster.members
            ]
        elif homes:
            placed |= {i: (part, group) for part in homes for i in cluster.members}
        else:
            free.append((cluster.members, group))
    _divide(standing, cleaned, free, placed)
    return placed, rejected


def _title(standing: Standing, cleaned: Cleaned, cluster: _Cluster) -> str:
    """Return the group of a cluster: that of the set if it says all, else all names joined."""
    there = {standing.samples.groups[row] for row in cluster.rows} - {""}
    own = {cleaned.images[i].item.group for i in cluster.members} - {""}
    if len(there) == 1 and own <= set(names_of(min(there))):
        return min(there)
    names = own | {name for group in there if not group.startswith(NEAR) for name in group.split("+")}
    if names:
        return "+".join(sorted(names))
    if there:
        return min(there)
    if cluster.rows:
        return f"{NEAR}{standing.samples[min(cluster.rows)].image.item.source}"
    return f"{NEAR}{cleaned.images[cluster.members[0]].item.source}" if len(cluster.members) > 1 else ""


def _divide(standing: Standing, cleaned: Cleaned, free: list[tuple[list[int], str]], placed: Placed) -> None:
    """Divide clusters that belong to no part yet; as in `split`, with what the parts hold already."""
    parts, classes = list(standing.fractions), standing.classes
    labels = np.array([classes.index(image.item.label) for image in cleaned.images], np.int64)
    held = _held(standing, labels, placed)
    new = [i for members, _ in free for i in members]
    totals = held.sum(axis=0) + np.bincount(labels[new], minlength=len(classes))
    wanted = np.outer([standing.fractions[part] for part in parts], totals)
    assignment = np.full(len(labels), -1, np.int64)

    def rank(members: list[int]) -> tuple[int, bytes]:
        return -len(members), order_key(standing.seed, min(cleaned.images[i].item.source for i in members))

    ordered = sorted((members for members, _ in free), key=rank)
    for members in (members for members in ordered if len(members) > 1):
        brought = np.bincount(labels[members], minlength=len(classes)).astype(float)
        part = best_part(brought, held, wanted, totals)
        assignment[members] = part
        held[part] += brought
    fill_singles([members[0] for members in ordered if len(members) == 1], labels, assignment, held, wanted)
    placed |= {i: (parts[assignment[i]], group) for members, group in free for i in members}


def _held(standing: Standing, labels: np.ndarray, placed: Placed) -> np.ndarray:
    """Return how many images of each class each part with a share holds, float64 [parts, classes]."""
    place = {part: i for i, part in enumerate(standing.fractions)}
    held = np.zeros((len(place), len(standing.classes)))
    for part, label in (
        *zip(standing.samples.parts, standing.samples.labels.tolist(), strict=True),
        *((part, int(labels[i])) for i, (part, _) in placed.items()),
    ):
        if part in place:
            held[place[part], label] += 1
    return held


def _audit(standing: Standing, cleaned: Cleaned, placed: Placed, workers: int) -> tuple[Audit, list[int]]:
    """Audit old and new together; return also the id of each row, the new images' behind those of the set."""
    old, new = standing.samples, sorted(placed)
    found = audit(
        [*old.parts, *(placed[i][0] for i in new)],
        [*old.groups, *(placed[i][1] for i in new)],
        np.concatenate([old.images.digests("sha256"), cleaned.images.taken(new).digests("sha256")]),
        behind(standing.features, chosen(cleaned.features, np.array(new, np.int64)), "audited.bin")["thumbnail"],
        workers=workers,
    )
    return found, [*range(len(old)), *(len(old) + i for i in new)]


def _named(standing: Standing, cleaned: Cleaned, placed: Placed) -> Samples:
    """Return the new samples part by part, shuffled inside each part by the seed, under keys that the set has not."""
    taken = set(standing.samples.keys.to_pylist())
    chosen = sorted(placed)
    keys = make_keys(cleaned.images.taken(chosen).sources, taken, standing.appended + 1)
    samples = [
        Sample(cleaned.images[i], key, standing.classes.index(cleaned.images[i].item.label), placed[i][1], placed[i][0])
        for i, key in zip(chosen, keys, strict=True)
    ]
    return Samples.of(sorted(samples, key=lambda s: (standing.parts.index(s.part), order_key(standing.seed, s.key))))


def _findings(standing: Standing, cleaned: Cleaned, pairs: np.ndarray, joined: int) -> dict[str, Any]:
    """Return the counts of `clean` for old and new together, as far as both are looked at; near pairs are ids."""
    labels = standing.samples.labels.tolist()
    labels += [standing.classes.index(image.item.label) for image in cleaned.images]
    sizes = np.bincount(connected(len(labels), pairs)) if labels else np.zeros(0, np.int64)
    reasons = [reject.reason for reject in cleaned.rejected]
    return {
        "exact_duplicates": reasons.count("exact duplicate"),
        "contradictions": reasons.count("contradicting label"),
        "near_pairs": len(pairs),
        "near_clusters": int((sizes > 1).sum()),
        "largest_cluster": int(sizes.max(initial=0)),
        "near_contradictions": sum(labels[a] != labels[b] for a, b in pairs.tolist()),
        "joined_groups": int(str(cleaned.findings["joined_groups"])),
        **({"joined_by_audit": joined} if joined else {}),
    }


def _deviation(standing: Standing, cleaned: Cleaned, placed: Placed) -> float:
    """Return the largest difference between the share of a class that a part has and the one it shall have."""
    labels = np.array([standing.classes.index(image.item.label) for image in cleaned.images], np.int64)
    held = _held(standing, labels, placed)
    totals = held.sum(axis=0)
    shares = np.array(list(standing.fractions.values()))
    return float(np.abs(held / np.maximum(totals, 1) - shares[:, None])[:, totals > 0].max(initial=0))
