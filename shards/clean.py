"""Keep what can be trained on: bad files, duplicates and contradictions go; what belongs together is grouped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shards.chunks import Found
from shards.console import warn
from shards.duplicates import LeftOut, connected, exact_groups, near_pairs
from shards.examine import Reject, Seen
from shards.seen import Images
from shards.sources import Item
from shards.sources.items import FIXED
from shards.spooled import Records, chosen


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

    images: Images
    features: Records
    groups: list[str]
    rejected: list[Reject]
    findings: dict[str, object]


def clean(
    items: Sequence[Item],
    seen: Seen | Found,
    near: bool = True,
    dropped: Mapping[str, str] | None = None,
    workers: int = 1,
) -> Cleaned:
    """Return what can be packed of the items that were `seen`; len(images) + len(rejected) == len(items).

    The near-duplicates are searched by `workers` threads and processes.

    `dropped` names sources that a person decided to leave out, and why. They are left out before duplicates and
    contradictions are judged (of one picture under two labels the other may stay), but the groups that they link are
    still joined.
    """
    dropped = dropped or {}
    images, features, rejected = Images.of(seen.images), seen.features, seen.rejected
    keep, doubles, links = _exact(images, dropped)
    rejected = [r for r in rejected if r.item.source not in dropped] + doubles
    if dropped:
        rejected += [Reject(item, "decision", dropped[item.source]) for item in items if item.source in dropped]
    kept, named = images.taken(keep), images.texts("group")
    joined = _join_names(named, links)
    names = [joined.get(named[i], "") for i in keep.tolist()]
    features = chosen(features, keep)
    left_out = LeftOut()
    pairs = near_pairs(features, workers=workers, left_out=left_out) if near else np.empty((0, 2), dtype=np.int64)
    groups, clusters = _group(kept, names, pairs)
    labels = kept.texts("label")
    findings: dict[str, object] = {
        "exact_duplicates": sum(reject.reason == "exact duplicate" for reject in rejected),
        "contradictions": sum(reject.reason == "contradicting label" for reject in rejected),
        "near_pairs": len(pairs),
        "near_clusters": clusters["clusters"],
        "largest_cluster": clusters["largest"],
        "near_contradictions": sum(labels[a] != labels[b] for a, b in ends(pairs).tolist()),
        "joined_groups": sum(name not in ("", old) for old, name in joined.items()),
        **bounds(left_out),
    }
    rejected.sort(key=lambda reject: reject.item.source)
    return Cleaned(kept, features, groups, rejected, findings)


def bounds(left_out: LeftOut) -> dict[str, object]:
    """Return what the findings say of a search that had to leave pairs out, and warn of it; {} if it left out none."""
    if left_out.sentence():
        warn(f"{left_out.sentence()}; dataset.json and the report say so too")
    return left_out.findings()


def join(cleaned: Cleaned, pairs: np.ndarray) -> Cleaned:
    """Return the same images with the groups of each pair joined; pairs: positions, int64 [pairs, 2]."""
    groups, _ = _group(cleaned.images, cleaned.groups, pairs)
    before = cleaned.findings.get("joined_by_audit", 0)
    findings = {**cleaned.findings, "joined_by_audit": int(str(before)) + len(pairs)}
    return replace(cleaned, groups=groups, findings=findings)


def _exact(images: Images, dropped: Mapping[str, str]) -> tuple[np.ndarray, list[Reject], list[tuple[str, str]]]:
    """Return the positions to keep, the duplicates and contradictions, and pairs of groups that share an image."""
    drop = {i for i, source in enumerate(images.sources()) if source in dropped} if dropped else set()
    rejected: list[Reject] = []
    links: list[tuple[str, str]] = []
    for places in exact_groups(images.digests("pixels_sha256")):
        same = dict(zip(places, images.taken(places), strict=True))
        named = [image.item.group for image in same.values() if image.item.group]
        links += [(named[0], name) for name in named[1:]]
        cluster = [i for i in places if i not in drop]
        if not cluster:
            continue
        fixed = [i for i in cluster if same[i].item.part == FIXED]
        if fixed:  # a test set that is kept apart loses nothing to the images outside it
            for i in (i for i in cluster if i not in fixed):
                drop.add(i)
                detail = f"same picture as {same[fixed[0]].item.source}"
                rejected.append(Reject(same[i].item, "in the fixed test set", detail))
            cluster = fixed
        first, *others = [same[i] for i in cluster]
        if len({same[i].item.label for i in cluster}) > 1:
            drop.update(cluster)
            members = ", ".join(same[i].item.source for i in cluster)
            rejected += [Reject(same[i].item, "contradicting label", f"one picture: {members}") for i in cluster]
            continue
        drop.update(cluster[1:])
        for other in others:
            kind = "bytes" if other.sha256 == first.sha256 else "pixels"
            rejected.append(Reject(other.item, "exact duplicate", f"same {kind} as {first.item.source}"))
    return np.delete(np.arange(len(images)), sorted(drop)), rejected, links


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


def _group(images: Images, names: list[str], pairs: np.ndarray) -> tuple[list[str], dict[str, int]]:
    """Join patients and near-duplicates; return each image's group name and counts of the near-duplicate clusters."""
    near = ends(pairs)
    labels = connected(len(images), np.concatenate([near, _same_name_pairs(names)]))
    sizes = np.bincount(labels, minlength=len(images))
    found: dict[int, set[str]] = {}
    for name, label in zip(names, labels.tolist(), strict=True):
        if name:
            found.setdefault(label, set()).add(name)
    title = {label: "+".join(sorted(group)) for label, group in found.items()}
    for label in np.flatnonzero(sizes > 1).tolist():
        if label not in title:
            title[label] = f"near:{images[label].item.source}"
    clusters = np.bincount(connected(len(images), near), minlength=1)
    counts = {"clusters": int((clusters > 1).sum()), "largest": int(clusters.max())}
    return [title.get(label, "") for label in labels.tolist()], counts


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
