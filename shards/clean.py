"""Keep what can be trained on: bad files, duplicates and contradictions go; what belongs together is grouped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shards.duplicates import connected, exact_groups, near_pairs
from shards.examine import Image, Reject, Seen
from shards.sources import Item
from shards.sources.items import FIXED
from shards.spooled import chosen


@dataclass(frozen=True)
class Cleaned:
    """What is left after cleaning.

    Attributes:
        images: the images to pack, by path.
        features: FEATURES_DTYPE [images].
        groups: the group of each image: its patients and near-duplicates joined; "" where it stands alone.
        rejected: what was left out.
        findings: counts for the report: exact and near duplicates, joined groups, the largest cluster.
    """

    images: list[Image]
    features: np.ndarray
    groups: list[str]
    rejected: list[Reject]
    findings: dict[str, object]


def clean(
    items: Sequence[Item],
    seen: Seen,
    near: bool = True,
    dropped: Mapping[str, str] | None = None,
    workers: int = 2,
) -> Cleaned:
    """Return what can be packed of the items that were `seen`; len(images) + len(rejected) == len(items).

    The near-duplicates are searched by `workers` threads.

    `dropped` names sources that a person decided to leave out, and why. They are left out before duplicates and
    contradictions are judged (of one picture under two labels the other may stay), but the groups that they link are
    still joined.
    """
    dropped = dropped or {}
    images, features, rejected = seen
    keep, doubles, links = _exact(images, dropped)
    rejected = [r for r in rejected if r.item.source not in dropped] + doubles
    rejected += [Reject(item, "decision", dropped[item.source]) for item in items if item.source in dropped]
    joined = _join_names([image.item.group for image in images], links)
    kept = [images[i] for i in keep]
    names = [joined[images[i].item.group] if images[i].item.group else "" for i in keep]
    features = features if len(keep) == len(features) else chosen(features, np.asarray(keep), "kept.bin")
    pairs = near_pairs(features, workers=workers) if near else np.empty((0, 2), dtype=np.int64)
    groups, clusters = _group(kept, names, pairs)
    findings: dict[str, object] = {
        "exact_duplicates": sum(reject.reason == "exact duplicate" for reject in rejected),
        "contradictions": sum(reject.reason == "contradicting label" for reject in rejected),
        "near_pairs": len(pairs),
        "near_clusters": clusters["clusters"],
        "largest_cluster": clusters["largest"],
        "near_contradictions": sum(kept[int(p[0])].item.label != kept[int(p[1])].item.label for p in ends(pairs)),
        "joined_groups": sum(name not in ("", old) for old, name in joined.items()),
    }
    rejected.sort(key=lambda reject: reject.item.source)
    return Cleaned(kept, features, groups, rejected, findings)


def join(cleaned: Cleaned, pairs: np.ndarray) -> Cleaned:
    """Return the same images with the groups of each pair joined; pairs: positions, int64 [pairs, 2]."""
    groups, _ = _group(cleaned.images, cleaned.groups, pairs)
    before = cleaned.findings.get("joined_by_audit", 0)
    findings = {**cleaned.findings, "joined_by_audit": int(str(before)) + len(pairs)}
    return replace(cleaned, groups=groups, findings=findings)


def _exact(images: list[Image], dropped: Mapping[str, str]) -> tuple[list[int], list[Reject], list[tuple[str, str]]]:
    """Return the positions to keep, the duplicates and contradictions, and pairs of groups that share an image."""
    drop = {i for i, image in enumerate(images) if image.item.source in dropped}
    rejected: list[Reject] = []
    links: list[tuple[str, str]] = []
    for cluster in exact_groups([image.pixels_sha256 for image in images]):
        named = [images[i].item.group for i in cluster if images[i].item.group]
        links += [(named[0], name) for name in named[1:]]
        cluster = [i for i in cluster if i not in drop]
        if not cluster:
            continue
        fixed = [i for i in cluster if images[i].item.part == FIXED]
        if fixed:  # a test set that is kept apart loses nothing to the images outside it
            for i in (i for i in cluster if i not in fixed):
                drop.add(i)
                detail = f"same picture as {images[fixed[0]].item.source}"
                rejected.append(Reject(images[i].item, "in the fixed test set", detail))
            cluster = fixed
        first, *others = [images[i] for i in cluster]
        if len({images[i].item.label for i in cluster}) > 1:
            drop.update(cluster)
            members = ", ".join(images[i].item.source for i in cluster)
            rejected += [Reject(images[i].item, "contradicting label", f"one picture: {members}") for i in cluster]
            continue
        drop.update(cluster[1:])
        for other in others:
            same = "bytes" if other.sha256 == first.sha256 else "pixels"
            rejected.append(Reject(other.item, "exact duplicate", f"same {same} as {first.item.source}"))
    return [i for i in range(len(images)) if i not in drop], rejected, links


def _join_names(names: Sequence[str], links: list[tuple[str, str]]) -> dict[str, str]:
    """Map each group name to the name of the union of all groups that are linked with it ('20+21')."""
    known = sorted({name for name in names if name})
    position = {name: i for i, name in enumerate(known)}
    pairs = np.array([(position[a], position[b]) for a, b in links], dtype=np.int64).reshape(-1, 2)
    labels = connected(len(known), pairs)
    members: dict[int, list[str]] = {}
    for name, label in zip(known, labels, strict=True):
        members.setdefault(int(label), []).append(name)
    return {name: "+".join(members[int(label)]) for name, label in zip(known, labels, strict=True)}


def ends(pairs: np.ndarray) -> np.ndarray:
    """Return the two positions of each pair, int64 [pairs, 2]."""
    if pairs.dtype.names:
        return np.stack([pairs["a"], pairs["b"]], axis=1).astype(np.int64)
    return pairs.reshape(-1, 2).astype(np.int64)


def _group(images: list[Image], names: list[str], pairs: np.ndarray) -> tuple[list[str], dict[str, int]]:
    """Join patients and near-duplicates; return each image's group name and counts of the near-duplicate clusters."""
    near = ends(pairs)
    same = _same_name_pairs(names)
    labels = connected(len(images), np.concatenate([near, same]))
    sizes = np.bincount(labels, minlength=len(images)) if len(images) else np.empty(0, np.int64)
    found: dict[int, set[str]] = {}
    for name, label in zip(names, labels, strict=True):
        found.setdefault(int(label), set()).update({name} if name else set())
    title = {
        label: "+".join(sorted(found[label])) or (f"near:{images[label].item.source}" if sizes[label] > 1 else "")
        for label in found
    }
    clusters = np.bincount(connected(len(images), near)) if len(images) else np.empty(0, np.int64)
    counts = {"clusters": int((clusters > 1).sum()), "largest": int(clusters.max(initial=0))}
    return [title[int(label)] for label in labels], counts


def _same_name_pairs(names: list[str]) -> np.ndarray:
    """Chain the images of each named group, int64 [pairs, 2]."""
    last: dict[str, int] = {}
    chain = []
    for position, name in enumerate(names):
        if name:
            if name in last:
                chain.append((last[name], position))
            last[name] = position
    return np.array(chain, dtype=np.int64).reshape(-1, 2)
