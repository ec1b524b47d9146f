"""The ways a set can be divided: what the options ask for, the splits that its parts make, what dataset.json says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.bysource import leave_source_out, missing_classes, source_of
from shards.console import warn
from shards.errors import BadInput
from shards.format import ShardInfo
from shards.honesty import sentence, thin_classes
from shards.kept import shares_of
from shards.samples import Samples
from shards.sources import as_text
from shards.sources.items import FIXED
from shards.split import Split, parse_fractions, split

if TYPE_CHECKING:
    from shards.pack_options import PackOptions

MOST_WARNINGS = 8
"""Sentences about thin classes that are printed; dataset.json and the report have all."""


@dataclass(frozen=True)
class Way:
    """How a set is divided.

    Attributes:
        fractions: share of each part; of train and val where each source is divided for itself; without the fixed test.
        kept: the split that the images came with stays.
        sources: one fold for each source.
        fixed: a fixed test set stands beside the parts.
        thin: a class with too few groups for all parts is in some of them only.
    """

    fractions: dict[str, float]
    kept: bool = False
    sources: bool = False
    fixed: bool = False
    thin: bool = False

    @property
    def fixed_part(self) -> str:
        """What the fixed test set is called: `test`, but beside folds, which have a test part each, `fixed_test`."""
        return FIXED if self.sources or "train" not in self.fractions else "test"

    def divide(
        self,
        labels: Sequence[int] | np.ndarray,
        groups: Sequence[str],
        keys: Sequence[str],
        origins: Sequence[str],
        seed: int,
        classes: Sequence[str],
    ) -> Split:
        """Divide samples (of no fixed test set) anew; arguments and errors as in `split` and `leave_source_out`."""
        if self.sources:
            return leave_source_out(labels, groups, keys, origins, self.fractions, seed, classes)
        return split(labels, groups, keys, self.fractions, seed, classes, self.thin)


def way_of(options: PackOptions) -> Way:
    """Return the way that the options ask for; raises BadInput where they contradict each other."""
    asked = {"--folds": options.folds, "--leave-source-out": options.leave_source_out, "--test-from": options.test_from}
    for flag in (flag for flag, value in asked.items() if value and options.keep_splits):
        what = "folds are made" if flag == "--folds" else f"{flag} divides anew"
        raise BadInput(f"a split is kept or {what}, not both", f"--keep-splits, {flag}", "choose one")
    if options.folds and options.leave_source_out:
        raise BadInput("each source is a fold already", "--folds, --leave-source-out", "choose one")
    if (options.source_column or options.source_pattern) and not options.leave_source_out:
        raise BadInput("sources are named and not used", "--source-column, --source-pattern", "add --leave-source-out")
    fixed = bool(options.test_from)
    if options.folds:
        if options.folds < 3:
            raise BadInput(
                f"{options.folds} folds leave no part for validation", "--folds", "give 3 or more, 5 is usual"
            )
        shares = {f"fold{k}": 1 / options.folds for k in range(options.folds)}
        return Way(shares, fixed=fixed, thin=options.allow_thin)
    fractions = parse_fractions(options.split)
    if not fixed and not options.leave_source_out:
        return Way(fractions, kept=options.keep_splits, thin=options.allow_thin)
    rest = {part: share for part, share in fractions.items() if part != "test"}
    total = sum(rest.values())
    if "train" not in rest or (options.leave_source_out and "val" not in rest):
        raise BadInput(f"the split {options.split!r} leaves too little", "--split", "give shares for train and val")
    shares = {part: share / total for part, share in rest.items()}
    return Way(shares, sources=options.leave_source_out, fixed=fixed, thin=options.allow_thin)


def named_splits(parts: list[str], shards: Sequence[ShardInfo]) -> dict[str, list[str]]:
    """Name the splits: each part is one, but each fold and each source gives a train, a val and a test split."""
    files = {part: [shard.file for shard in shards if shard.part == part] for part in parts}
    folds = [part for part in parts if part.startswith("fold")]
    sources = list(dict.fromkeys(source_of(part) for part in parts if source_of(part)))
    splits = {part: files[part] for part in parts if part not in folds and not source_of(part)}
    for k, part in enumerate(folds):
        val = folds[(k + 1) % len(folds)]
        rest = [name for name in folds if name not in (part, val)]
        splits[f"fold{k}/train"] = [file for name in rest for file in files[name]]
        splits[f"fold{k}/val"] = files[val]
        splits[f"fold{k}/test"] = files[part]
    for k, source in enumerate(sources):
        for name in ("train", "val"):
            splits[f"fold{k}/{name}"] = [f for other in sources if other != source for f in files[f"{other}-{name}"]]
        splits[f"fold{k}/test"] = [f for name in ("train", "val") for f in files[f"{source}-{name}"]]
    return splits


def split_record(
    way: Way, samples: Samples, division: Split, classes: Sequence[str], options: PackOptions
) -> dict[str, Any]:
    """Return what dataset.json says of the split, with the names of its parts; warns of classes with too few groups."""
    parts, labels = samples.parts, samples.labels.tolist()
    fractions = shares_of(division) if way.kept else way.fractions
    record: dict[str, Any] = {"method": _method(way), "fractions": fractions, "seed": options.seed}
    record |= shares_record(samples, division.parts, fractions, classes)
    record["deviation"] = round(division.deviation, 6)
    if way.sources:
        origins = samples.images.texts("origin")
        held = {source_of(part): origin for part, origin in zip(parts, origins, strict=True) if source_of(part)}
        record["sources"] = {f"fold{k}": held[f"source{k}"] for k in range(len(held))}
        record["warnings"] = missing_classes(parts, labels, origins, classes) + record["warnings"]
    if way.fixed:
        record["fixed_test"] = as_text(Path(Path(options.test_from).name))
    for said in record["warnings"][:MOST_WARNINGS]:
        warn(said)
    if len(record["warnings"]) > MOST_WARNINGS:
        warn(f"{len(record['warnings']) - MOST_WARNINGS} more such warnings are in dataset.json and the report")
    return {"parts": division.parts, **record}


def shares_record(
    samples: Samples, names: Sequence[str], fractions: dict[str, float], classes: Sequence[str]
) -> dict[str, Any]:
    """Return by how much the asked shares were missed, and which classes have too few groups for an honest split."""
    labels, parts = samples.labels.tolist(), samples.parts
    missed = deviations(labels, parts, names, fractions, classes)
    whole = [source_of(part) or part for part in parts]
    thin = thin_classes(labels, samples.groups, whole, classes)
    largest = max((abs(value) for row in missed.values() for value in row.values()), default=0.0)
    return {
        "deviation": largest,
        "deviations": missed,
        "warnings": [sentence(one) for one in thin],
        "thin_classes": [asdict(one) for one in thin],
    }


def deviations(
    labels: Sequence[int],
    parts: Sequence[str],
    names: Sequence[str],
    fractions: dict[str, float],
    classes: Sequence[str],
) -> dict[str, dict[str, float]]:
    """Return, for each part with an asked share, by how much the share of each class that it got differs from it.

    Parts of one source share the images of that source, all others those that are in no fixed test set.
    """
    counts = np.zeros((len(names), len(classes)), dtype=np.int64)
    place_of = {name: place for place, name in enumerate(names)}
    rows = np.array([place_of[part] for part in parts], dtype=np.int64)
    np.add.at(counts, (rows, np.asarray(labels, dtype=np.int64)), 1)
    found: dict[str, dict[str, float]] = {}
    for place, part in enumerate(names):
        source = source_of(part)
        asked = fractions.get(part.removeprefix(f"{source}-") if source else part)
        if asked is None:
            continue
        pool = [i for i, other in enumerate(names) if source_of(other) == source and _asked(other, fractions)]
        totals = counts[pool].sum(axis=0)
        found[part] = {
            name: round(float(counts[place, label] / totals[label] - asked), 6)
            for label, name in enumerate(classes)
            if totals[label]
        }
    return found


def _asked(part: str, fractions: dict[str, float]) -> bool:
    return bool(source_of(part)) or part in fractions


def _method(way: Way) -> str:
    if way.kept:
        return "kept as it was found"
    made = "one source left out in each fold, the others stratified, grouped" if way.sources else "stratified, grouped"
    return f"{made}, beside a fixed test set" if way.fixed else made


def split_lines(record: dict[str, Any]) -> list[str]:
    """Return what people are told about a finished split, from the record in dataset.json."""
    lines = []
    if record.get("sources"):
        lines.append("sources left out: " + ", ".join(f"{fold} {name}" for fold, name in record["sources"].items()))
    missed = [(abs(v), v, part, name) for part, row in record["deviations"].items() for name, v in row.items()]
    if missed:
        _, value, part, name = max(missed)
        lines.append(f"largest difference from an asked share: {value * 100:+.2f} points ({name} in {part})")
    return lines
