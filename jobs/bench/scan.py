"""`bloodcell bench scan`: recall and precision of each detector of scan on a drawn set with every planted defect.

A recall is a share of what was planted, a precision a share of what was said. Four kinds of findings are not counted:
a foreign picture that is called blurry, dark or the like (it is no cell that could be sharp), two foreign pictures that
are called near-duplicates (they are drawn by one formula), an image with a planted defect of quality that is called an
outlier (it looks like nothing else), and another stain that is called saturated (it is drawn stronger).
Folders of real images show how much is flagged where nothing was planted.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from jobs.bench.result import Result, Row
from shards.defects import NEAR_DUPLICATES, SPOILT
from shards.errors import BadInput
from shards.parallel import available_cores
from shards.scan import ScanOptions, explore_folder
from shards.scan_findings import Findings, near_clusters
from shards.synth import SynthOptions, synthesise

QUALITY = {
    "blurred": "blurry",
    "dark": "dark",
    "bright": "bright",
    "saturated": "saturated",
    "tiny": "tiny",
    "odd_aspect": "odd aspect",
}
"""Planted defect -> the flag that should say so."""

FOREIGN = ("outlier", "foreign_crowd")
UNUSUAL = ("outlier", "crowd", "unlike its class")
"""Flags that say that an image does not look like the others."""

PATIENTS_IN_NAMES = r"_(p\d+)_\d+\.\w+$"

Truth = dict[str, dict[str, str]]
Pairs = set[frozenset[str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bloodcell bench scan`."""
    parser.add_argument("--images", type=int, default=2000, help="ordinary images; defects come on top (2000)")
    parser.add_argument("--size", type=int, default=128, help="side of an image, pixels (128)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn sets (0)")
    parser.add_argument(
        "--workers",
        type=int,
        default=available_cores(),
        help="processes that draw (all cores); one scans, so that its time is known",
    )
    parser.add_argument(
        "--real", type=Path, action="append", default=[], metavar="DIR",
        help="folder of real images, to show how many of them are flagged; may be given several times",
    )  # fmt: skip


def run_arguments(parsed: argparse.Namespace) -> Result:
    """Run the benchmark as the flags say; arguments and errors as in `run`."""
    return run(parsed.images, parsed.size, parsed.seed, parsed.workers, parsed.real)


def run(images: int, size: int, seed: int, workers: int, real: list[Path]) -> Result:
    """Draw the sets, scan them, and compare what was found with what was planted.

    Raises:
        BadInput: too few images, or a folder of real images that cannot be scanned.
    """
    if images < 200 or workers < 1:
        raise BadInput("a number is too small", "bench scan", "give 200 images or more and 1 process or more")
    with tempfile.TemporaryDirectory() as place:
        drawn = Path(place) / "drawn"
        synthesise(drawn, options(images, size, seed), workers)
        found, seconds = _scanned(drawn, ScanOptions(group_pattern=PATIENTS_IN_NAMES, workers=1))
        rows = list(detectors(truth_of(drawn), found))
        rows += [Row("scanning, drawn set", seconds, f"CPU-s for {len(found.images):,} images")]
        rows += _shortcuts(Path(place), images, size, seed, workers)
    for folder in real:
        rows += _natural(folder)
    command = f"bloodcell bench scan --images {images} --size {size} --seed {seed} --workers {workers}"
    return Result(" ".join([command, *(f"--real {folder.name}" for folder in real)]), rows)


def options(images: int, size: int, seed: int) -> SynthOptions:
    """Return what is drawn: of each defect 2 % of the images, of near-duplicates 9 %, foreign crowds of 3 % each."""
    few = max(6, images // 50)
    drawn = SynthOptions(
        images=images,
        size=size,
        patients=max(24, images // 20),
        seed=seed,
        exact_duplicates=few,
        near_duplicates=few // 2 * len(NEAR_DUPLICATES),
        contradictions=few,
        outliers=few,
        corrupt=few,
        bit_flips=few,
        blurred=few,
        foreign_crowd=3 * few,
        spanning_patients=4,
        split_folders=True,
    )
    return replace(drawn, **dict.fromkeys(SPOILT, few))  # type: ignore[arg-type]  # each is a count


def detectors(truth: Truth, found: Findings) -> Iterator[Row]:
    """Yield recall and precision of each detector."""
    planted: dict[str, set[str]] = {}
    for path, row in truth.items():
        planted.setdefault(row["defect"], set()).add(path)
    names = [image.item.source for image in found.images]
    foreign = set().union(*(planted[defect] for defect in FOREIGN))
    exact = [[names[i] for i in group] for group in found.same if len({truth[names[i]]["class"] for i in group}) == 1]
    yield from _copies("exact duplicates (pairs)", _pairs_of(truth, "exact_duplicate"), _pairs(exact), truth)
    yield from _near(truth, found, names)
    originals = {truth[path]["of"] for path in planted["contradiction"]}
    yield from _score(
        "contradicting labels", planted["contradiction"] | originals, flagged(found, "contradicting label")
    )
    flips = {kind: {p for p in planted["bit_flip"] if truth[p]["detail"] == kind} for kind in ("png", "jpeg")}
    rejected = {reject.item.source for reject in found.rejected}
    yield from _score("undecodable files", planted["corrupt"] | flips["png"], rejected - flips["jpeg"])
    yield _recall("JPEG files with one inverted bit, undecodable", flips["jpeg"], rejected)
    for defect, name in QUALITY.items():
        uncounted = foreign | planted["other_stain"] if defect == "saturated" else foreign
        yield from _score(name, planted[defect], flagged(found, name) - uncounted)
    spoilt = set().union(*(planted[defect] for defect in QUALITY))
    seen = flagged(found, "outlier", "crowd") - spoilt - planted["other_stain"]
    yield from _score("foreign pictures (outlier or crowd)", foreign, seen)
    yield _recall("foreign pictures, single", planted["outlier"], seen)
    crowds = flagged(found, "crowd") - spoilt - planted["other_stain"]
    yield _recall("foreign pictures, crowds, told as crowds", planted["foreign_crowd"], crowds)
    unusual = flagged(found, *UNUSUAL) - spoilt - foreign
    yield from _score("cells in another stain", planted["other_stain"], unusual)
    parts: dict[str, set[str]] = {}
    for path, row in truth.items():
        parts.setdefault(row["patient"], set()).add(path.split("/")[0])
    spanning = {path for path in names if len(parts[truth[path]["patient"]]) > 1}
    # Foreign pictures come from few templates: two of them may look the same and join patients that share nothing else.
    linked = {path for path in names if truth[path]["patient"] in _linked(truth, found, names, foreign)} - spanning
    yield from _score("images of patients across the split", spanning, flagged(found, "crosses the split") - linked)
    ordinary = planted[""] - originals - {truth[path]["of"] for path in planted["near_duplicate"]} - spanning
    ordinary -= linked
    wrongly = {path for path, flags in zip(names, found.flags, strict=True) if flags and path in ordinary}
    yield Row("ordinary images with a flag", len(wrongly) / len(ordinary), f"of {len(ordinary):,}")


def _linked(truth: Truth, found: Findings, names: list[str], foreign: set[str]) -> set[str]:
    """Return the patients who share a foreign picture with another one, as far as the scan can see."""
    pairs = [(names[a], names[b]) for a, b in zip(found.pairs["a"].tolist(), found.pairs["b"].tolist(), strict=True)]
    owners = [{truth[one]["patient"], truth[other]["patient"]} for one, other in pairs if {one, other} <= foreign]
    return {patient for both in owners if len(both) > 1 for patient in both}


def _near(truth: Truth, found: Findings, names: list[str]) -> Iterator[Row]:
    said = _pairs([names[i] for i in cluster] for cluster in near_clusters(found))
    said = {pair for pair in said if not all(truth[path]["defect"] in FOREIGN for path in pair)}
    yield from _copies("near-duplicates (pairs)", _pairs_of(truth, "near_duplicate"), said, truth)
    for how in NEAR_DUPLICATES:
        yield _recall(f"near-duplicates, {how}", _pairs_of(truth, "near_duplicate", how), said)


def _copies(name: str, planted: Pairs, said: Pairs, truth: Truth) -> tuple[Row, Row]:
    """Score pairs of images of one scene: those of two copies of one original are right, too."""
    right = {pair for pair in said if len({truth[path]["group"] for path in pair}) == 1}
    precision = len(right) / max(len(said), 1)
    return _recall(name, planted, said), Row(f"{name}, precision", precision, f"of {len(said):,} said")


def _shortcuts(place: Path, images: int, size: int, seed: int, workers: int) -> Iterator[Row]:
    """Score the warnings of shortcuts on a set whose lower right corner tells the class, and on one without."""
    plain = SynthOptions(images=min(images, 800), size=size, patients=80, seed=seed + 1)
    wanted = "lower right corner"
    for marked in (True, False):
        folder = place / f"shortcut-{marked}"
        synthesise(folder, replace(plain, shortcut=marked), workers)
        found, _ = _scanned(folder, ScanOptions(group_pattern=PATIENTS_IN_NAMES, near=False, workers=1))
        told = {one.name: one for one in found.shortcuts if one.target == "class"}
        warned = {name for name, one in told.items() if one.warned and one.visible}
        if marked:
            yield from _score("shortcut warnings, marked corner", {wanted}, warned)
            yield Row("class from the marked corner, accuracy", told[wanted].accuracy, f"chance {told[wanted].chance}")
        else:
            yield Row(
                "shortcut warnings, none planted",
                len(warned),
                f"of {sum(one.visible for one in told.values())} features",
            )


def _natural(folder: Path) -> Iterator[Row]:
    """Yield how many images of a folder of real ones carry each flag, and what scanning them costs."""
    found, seconds = _scanned(folder, ScanOptions(workers=1))
    counts = Counter(name for flags in found.flags for name in flags)
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        yield Row(f"{folder.name}: {name}", count / len(found.images), f"of {len(found.images):,} images")
    yield Row(f"{folder.name}: scanning", seconds, f"CPU-s for {len(found.images):,} images")


def _scanned(folder: Path, how: ScanOptions) -> tuple[Findings, float]:
    """Return the findings and the processor time, seconds: all of it is this process's where there are no workers."""
    before = time.process_time()
    found = explore_folder(folder, how)
    return found, time.process_time() - before


def truth_of(folder: Path) -> Truth:
    """Return path -> row of truth.csv."""
    with open(folder / "truth.csv", newline="", encoding="utf-8") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def flagged(found: Findings, *flags: str) -> set[str]:
    """Return the paths of the images that carry one of the flags."""
    return {image.item.source for image, own in zip(found.images, found.flags, strict=True) if set(own) & set(flags)}


def _pairs(groups: Iterable[Collection[str]]) -> Pairs:
    return {frozenset((a, b)) for group in groups for a in group for b in group if a < b}


def _pairs_of(truth: Truth, defect: str, detail: str = "") -> Pairs:
    """Return (copy, original) of each copy that was planted."""
    rows = ((path, row) for path, row in truth.items() if row["defect"] == defect and detail in ("", row["detail"]))
    return {frozenset((path, row["of"])) for path, row in rows}


def _score(name: str, planted: Collection[object], said: Collection[object]) -> tuple[Row, Row]:
    hits = len(set(planted) & set(said))
    precision = hits / len(said) if said else float(not planted)
    return _recall(name, planted, said), Row(f"{name}, precision", precision, f"of {len(said):,} said")


def _recall(name: str, planted: Collection[object], said: Collection[object]) -> Row:
    hits = len(set(planted) & set(said))
    return Row(f"{name}, recall", hits / max(len(planted), 1), f"of {len(planted):,} planted")
