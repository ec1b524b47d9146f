"""Everything that a scan found, and what follows from it: flags with reasons for each image, suggested decisions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shards.crowds import FOREIGN
from shards.decisions import DROP, KEEP
from shards.duplicates import LeftOut
from shards.examine import Image, Reject
from shards.outliers import FAR, Outliers
from shards.quality import FLAGS, quality_flags
from shards.shortcuts import Shortcut

CERTAIN = ("exact duplicate", "contradicting label")
"""Flags of images that packing leaves out by itself."""

UNTOLD = ("near duplicate", "crosses the split", "personal metadata")
"""Flags that are no reason to leave one image out: packing keeps copies together and refuses such a split, and metadata
can go without the image."""


@dataclass(frozen=True)
class Findings:
    """Everything that was found.

    Attributes:
        images: the images that decode, by path.
        looks: their records of `shards.appearance.LOOK_DTYPE`.
        rejected: the files that do not decode.
        same: groups of positions of images with the same pixels, the first by path first.
        pairs: pairs of near-duplicates (`shards.duplicates.PAIR_DTYPE`), one image for each group of `same`.
        clusters: the smallest position that shows the same field as each image, int64 [images].
        units: the smallest position that each image must stay together with: patients joined with copies [images].
        outliers: single ones, crowds, and what does not fit its class.
        shortcuts: how well trivial features tell class, patient and source.
        personal: fields of each image's metadata that hold personal data, and of what kind [images].
        ignored: other files below the folder.
        left_out: what the search for near-duplicates left out because very many pictures are alike.
        origins: name of the source that each file comes from, by its path; the folder's where nothing tells it.
        flags: what was found about each image: CERTAIN, "near duplicate", "near contradiction", "crosses the split",
            "personal metadata", "outlier", "crowd", "unlike its class", "like another class" and the flags of
            `shards.quality`.
        reasons: the same for a person, flag by flag.
    """

    images: list[Image]
    looks: NDArray[np.void]
    rejected: list[Reject]
    same: list[list[int]]
    pairs: NDArray[np.void]
    clusters: NDArray[np.int64]
    units: NDArray[np.int64]
    outliers: Outliers
    shortcuts: list[Shortcut]
    personal: list[dict[str, str]]
    ignored: int
    left_out: LeftOut
    origins: dict[str, str]
    flags: list[list[str]] = field(default_factory=list)
    reasons: list[list[str]] = field(default_factory=list)

    def source(self, path: str) -> str:
        """Return the name of the source that an image or a rejected file comes from, by its path."""
        return self.origins[path]

    @property
    def roots(self) -> list[str]:
        """Names of the sources; one if there is but one."""
        return sorted(set(self.origins.values()))


def flag(found: Findings) -> Findings:
    """Fill in flags and reasons of every image; return the same findings."""
    found.flags.extend([] for _ in found.images)
    found.reasons.extend([] for _ in found.images)
    for detector in (_copies, _crossing, _personal, _quality, _appearance):
        for i, name, reason in detector(found):
            if name not in found.flags[i]:
                found.flags[i].append(name)
                found.reasons[i].append(f"{name}: {reason}")
    return found


def _copies(found: Findings) -> Iterator[tuple[int, str, str]]:
    images = found.images
    for group in found.same:
        members = ", ".join(images[i].item.source for i in group)
        contradicting = len({images[i].item.label for i in group}) > 1
        for i in group if contradicting else group[1:]:
            first = images[group[0]]
            kind = "bytes" if images[i].sha256 == first.sha256 else "pixels"
            said = f"one picture: {members}" if contradicting else f"same {kind} as {first.item.source}"
            yield i, CERTAIN[contradicting], said
    for a, b in zip(found.pairs["a"].tolist(), found.pairs["b"].tolist(), strict=True):
        name = "near duplicate" if images[a].item.label == images[b].item.label else "near contradiction"
        for one, other in ((a, b), (b, a)):
            yield one, name, f"shows the same as {images[other].item.source}"


def _crossing(found: Findings) -> Iterator[tuple[int, str, str]]:
    """Say which images lie in one part of a split while their patient or their copy lies in another."""
    parts: dict[int, set[str]] = {}
    for image, unit in zip(found.images, found.units.tolist(), strict=True):
        if image.item.part:
            parts.setdefault(unit, set()).add(image.item.part)
    for i, (image, unit) in enumerate(zip(found.images, found.units.tolist(), strict=True)):
        if image.item.part and len(parts[unit]) > 1:
            who = f"{image.item.group} or a copy" if image.item.group else "a copy"
            yield i, "crosses the split", f"{who} lies in {', '.join(sorted(parts[unit] - {image.item.part}))} as well"


def _personal(found: Findings) -> Iterator[tuple[int, str, str]]:
    for i, fields in enumerate(found.personal):
        if fields:
            yield i, "personal metadata", ", ".join(f"{name} ({kind})" for name, kind in sorted(fields.items()))


def _quality(found: Findings) -> Iterator[tuple[int, str, str]]:
    sizes = np.array([(image.width, image.height) for image in found.images], np.int64).reshape(-1, 2)
    for i, names in enumerate(quality_flags(found.looks, sizes, [image.item.label for image in found.images])):
        for name in names:
            yield i, name, FLAGS[name]


def _appearance(found: Findings) -> Iterator[tuple[int, str, str]]:
    judged = found.outliers
    for number, group in enumerate(judged.crowds.groups, 1):
        for i in group.tolist():
            yield (
                i,
                "crowd",
                f"one of {len(group)} alike in crowd {number}, far from the others: {crowd_advice(found, group)}",
            )
    for i in np.flatnonzero(judged.flagged).tolist():
        yield i, "outlier", f"looks like nothing else, {judged.score[i]:.1f} times as far as usual"
    for i in np.flatnonzero(judged.misfits.unlike & ~judged.flagged & (judged.crowds.member == 0)).tolist():
        yield i, "unlike its class", f"{judged.misfits.score[i]:.1f} times as far from its class as usual"
    for i in np.flatnonzero(judged.misfits.nearer).tolist():
        yield i, "like another class", f"looks more like {judged.misfits.other[i]}"


def crowd_advice(found: Findings, group: NDArray[np.int64]) -> str:
    """Return what is suggested about a crowd, in words: a person decides."""
    if float(np.median(found.outliers.crowds.apart[group])) >= FOREIGN:
        return "probably foreign, drop it unless it belongs to the set"
    return "perhaps another stain, another microscope or rare cells, keep it unless it is foreign"


def near_clusters(found: Findings) -> list[list[int]]:
    """Return the clusters of images that show the same field with different pixels, the largest first."""
    chosen = {int(found.clusters[i]) for i in found.pairs["a"]}
    members: dict[int, list[int]] = {root: [] for root in sorted(chosen)}
    for i, root in enumerate(found.clusters.tolist()):
        if root in members:
            members[root].append(i)
    return sorted(members.values(), key=lambda cluster: (-len(cluster), cluster[0]))


def suggestions(found: Findings) -> list[tuple[str, str, str]]:
    """Return (path, keep or drop, reason) of every image that something was found about, by path.

    To drop are the images that packing leaves out by itself, and single ones that look like nothing else by far. All
    other findings, crowds above all, are a person's to judge: they say keep, with the reason. Near-duplicates of one
    class are no reason to leave anything out; packing keeps them together.
    """
    rows = [(reject.item.source, DROP, f"{reject.reason}: {reject.detail}") for reject in found.rejected]
    for i, (flags, reasons) in enumerate(zip(found.flags, found.reasons, strict=True)):
        told = [reason for name, reason in zip(flags, reasons, strict=True) if name not in UNTOLD]
        far = found.outliers.flagged[i] and found.outliers.score[i] >= FAR
        if told:
            word = DROP if far or set(flags) & set(CERTAIN) else KEEP
            rows.append((found.images[i].item.source, word, "; ".join(told)))
    return sorted(rows)
