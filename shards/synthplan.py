"""What a drawn set holds: its options, and from them every file with its class, patient, slide and planted defect."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

import numpy as np

from shards.defects import BIT_FLIPS, CORRUPT, NEAR_DUPLICATES, ODD_FORMATS, OUTLIERS, SPOILT
from shards.drawing import CLASSES
from shards.errors import BadInput
from shards.foreign import CROWDS
from shards.textures import stream

BY_SIZE = ("early", "pre", "pro", "benign")
"""The classes from the largest to the smallest of an unbalanced set."""

SLIDES = 3
"""Slides of each patient."""

TEST_SHARE = 0.2
"""Share of the patients of a class that lie in TEST/, and of the images of a patient who lies in both folders."""

COPIES = ("exact_duplicate", "near_duplicate", "contradiction")
"""Defects that copy another file."""

SMALLEST, LARGEST = 32, 2048
"""Sides of an image that can be drawn, pixels."""

PLANNING = 4
"""Kind of the random stream of the plan."""


T = TypeVar("T")


def _option(default: T, text: str) -> T:
    """A field of the options with its help."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class SynthOptions:
    """What `synthesise` draws; the help of every field is in its metadata. Planted files come on top of `images`."""

    images: int = _option(400, "cell images, before anything is planted")
    size: int = _option(128, "side of an image, pixels (32 to 2048)")
    patients: int = _option(24, "patients; each has one class and up to three slides")
    seed: int = _option(0, "seed: the same options and seed give the same bytes")
    imbalance: float = _option(1.0, "images of the largest class for each one of the smallest")
    exact_duplicates: int = _option(0, "copies of a file, byte for byte")
    near_duplicates: int = _option(0, "copies in the 8 orientations of the square or slightly cropped, in turn")
    contradictions: int = _option(0, "copies of a file, byte for byte, in the folder of another class")
    outliers: int = _option(0, "pictures that show no cells")
    blurred: int = _option(0, "images far out of focus")
    corrupt: int = _option(0, "broken files: a truncated JPEG, text named .jpg, no byte at all, in turn")
    bit_flips: int = _option(0, "files with one inverted bit, PNG and JPEG in turn")
    dark: int = _option(0, "images far too dark")
    bright: int = _option(0, "overexposed images")
    saturated: int = _option(0, "images of far too strong colours")
    tiny: int = _option(0, "images of a fifth of the side")
    odd_aspect: int = _option(0, "images cut to half their height")
    other_stain: int = _option(0, "cells in another stain than all others")
    foreign_crowd: int = _option(0, "foreign pictures of two kinds, alike within each, put into one class each")
    spanning_patients: int = _option(0, "patients with images in both TRAIN and TEST (needs split_folders)")
    shortcut: bool = _option(False, "label a corner of every image in a colour that gives its class away")
    odd_formats: int = _option(0, "images as BMP, PNG, grey, CMYK, 16-bit, palette, EXIF-rotated, in turn")
    split_folders: bool = _option(False, "put TRAIN and TEST folders above the class folders")


@dataclass(frozen=True)
class Entry:
    """One file of the set."""

    path: str
    """Below the folder of the set, with slashes."""
    folder: str
    """TRAIN or TEST; empty without split folders."""
    name: str
    """Class whose folder it lies in."""
    drawn: str
    """Class of the cell that it shows: another one in a contradiction."""
    patient: int
    slide: int
    number: int
    """Running number of the file."""
    scene: int
    """Number of the first file that shows the same cell: its own, unless it is a copy."""
    defect: str = ""
    """What was planted; empty in an ordinary image."""
    detail: str = ""
    """Which kind of it."""
    of: str = ""
    """Path of the original of a copy."""


def check(options: SynthOptions) -> None:
    """Raise BadInput, naming the option, if the options make no sense."""
    for one in fields(options):
        value = getattr(options, one.name)
        if not isinstance(value, bool) and value < 0:
            raise BadInput("cannot be negative", one.name, f"got {value}")
    if not SMALLEST <= options.size <= LARGEST:
        raise BadInput("image size out of range", "size", f"give {SMALLEST} to {LARGEST} pixels, got {options.size}")
    if not 1 <= options.imbalance <= 1000:
        raise BadInput("class imbalance out of range", "imbalance", f"give 1 to 1000, got {options.imbalance}")
    if options.seed >= 2**63:
        raise BadInput("seed out of range", "seed", "give less than 2**63")
    if options.patients < len(CLASSES):
        raise BadInput("too few patients", "patients", f"each has one class: give at least {len(CLASSES)}")
    counts = class_counts(options)
    for label, name in enumerate(CLASSES):
        needed = len(_patients_of(label, options))
        if counts[name] < needed:
            fix = "give more images, fewer patients or less imbalance"
            raise BadInput(f"{counts[name]} images of {name} for its {needed} patients", "images", fix)
    if options.contradictions > options.images:
        raise BadInput("more contradictions than images", "contradictions", f"give at most {options.images}")
    if options.contradictions == options.images and options.exact_duplicates + options.near_duplicates:
        raise BadInput("every image is contradicted: none is left to copy", "contradictions", "give fewer")
    if options.spanning_patients and not options.split_folders:
        raise BadInput("patients can span only folders that exist", "spanning_patients", "add split_folders")


def class_counts(options: SynthOptions) -> dict[str, int]:
    """Return how many ordinary images each class has: class sizes fall geometrically and sum to `images`."""
    share = np.array([options.imbalance ** (-rank / (len(BY_SIZE) - 1)) for rank in range(len(BY_SIZE))])
    exact = options.images * share / share.sum()
    counts = np.floor(exact).astype(int)
    largest = np.argsort(counts - exact, kind="stable")[: options.images - counts.sum()]
    counts[largest] += 1
    by_name = dict(zip(BY_SIZE, counts.tolist(), strict=True))
    return {name: by_name[name] for name in CLASSES}


def _patients_of(label: int, options: SynthOptions) -> range:
    return range(label, options.patients, len(CLASSES))


def plan(options: SynthOptions) -> list[Entry]:
    """Return every file of the set, ordinary images first; a pure function of the options.

    Raises:
        BadInput: the options make no sense.
    """
    check(options)
    rng = stream(options.seed, PLANNING, 0)
    ordinary = _ordinary(options, rng)
    return ordinary + _copies(options, rng, ordinary) + _extras(options, rng, ordinary)


def _path(folder: str, name: str, patient: int, number: int, suffix: str = ".jpg") -> str:
    return f"{folder}{'/' if folder else ''}{name}/{name}_p{patient:03d}_{number:06d}{suffix}"


def _ordinary(options: SynthOptions, rng: np.random.Generator) -> list[Entry]:
    """The ordinary images, patient by patient: every patient has at least one, some have many."""
    of_patient: dict[int, int] = {}
    tested: set[int] = set()
    for label, count in enumerate(class_counts(options).values()):
        patients = _patients_of(label, options)
        weights = rng.dirichlet(np.full(len(patients), 5.0))
        more = rng.multinomial(count - len(patients), weights)
        of_patient |= {patient: 1 + int(extra) for patient, extra in zip(patients, more, strict=True)}
        if len(patients) > 1:
            held = max(1, round(TEST_SHARE * len(patients)))
            tested |= set(rng.permutation(np.array(patients))[:held].tolist())
    spanning = _spanning(options, rng, of_patient)
    entries: list[Entry] = []
    shortcut = "shortcut" if options.shortcut else ""
    for patient in sorted(of_patient, key=lambda patient: (patient % len(CLASSES), patient)):
        name = CLASSES[patient % len(CLASSES)]
        for place in range(of_patient[patient]):
            number, slide = len(entries), int(rng.integers(SLIDES))
            test = patient in tested
            if patient in spanning:
                test = bool(rng.random() < TEST_SHARE) if place > 1 else place == 0
            folder = ("TEST" if test else "TRAIN") if options.split_folders else ""
            path = _path(folder, name, patient, number)
            entries.append(Entry(path, folder, name, name, patient, slide, number, number, detail=shortcut))
    return entries


def _spanning(options: SynthOptions, rng: np.random.Generator, of_patient: dict[int, int]) -> set[int]:
    """The patients who lie in both folders."""
    able = np.array([patient for patient, count in sorted(of_patient.items()) if count > 1], dtype=int)
    if options.spanning_patients > len(able):
        fix = f"give at most {len(able)}, or more images"
        raise BadInput("too few patients with two images or more", "spanning_patients", fix)
    return set(rng.permutation(able)[: options.spanning_patients].tolist())


def _copies(options: SynthOptions, rng: np.random.Generator, ordinary: list[Entry]) -> list[Entry]:
    """Duplicates and contradictions; a contradicted image is copied only once, others may be several times."""
    order = rng.permutation(len(ordinary)).tolist()
    contradicted, free = order[: options.contradictions], order[options.contradictions :]
    exact = [("exact_duplicate", "", int(rng.choice(free))) for _ in range(options.exact_duplicates)]
    near = [
        ("near_duplicate", NEAR_DUPLICATES[turn % len(NEAR_DUPLICATES)], int(rng.choice(free)))
        for turn in range(options.near_duplicates)
    ]
    copies = exact + near + [("contradiction", "", original) for original in contradicted]
    entries: list[Entry] = []
    for number, (defect, detail, original) in enumerate(copies, len(ordinary)):
        entry = ordinary[original]
        name = entry.name
        if defect == "contradiction":
            name = str(rng.choice([other for other in CLASSES if other != name]))
        path = _path(entry.folder, name, entry.patient, number)
        entries.append(replace(entry, path=path, name=name, number=number, defect=defect, detail=detail, of=entry.path))
    return entries


def _extras(options: SynthOptions, rng: np.random.Generator, ordinary: list[Entry]) -> list[Entry]:
    """Files that show something of their own, put among the images of random patients."""
    kinds = (
        ("outlier", options.outliers, OUTLIERS),
        ("blurred", options.blurred, ("",)),
        ("corrupt", options.corrupt, CORRUPT),
        ("odd_format", options.odd_formats, tuple(ODD_FORMATS)),
        ("bit_flip", options.bit_flips, tuple(BIT_FLIPS)),
        *((defect, getattr(options, defect), ("",)) for defect in SPOILT),
        ("foreign_crowd", options.foreign_crowd, CROWDS),
    )
    suffixes = {"odd_format": ODD_FORMATS, "bit_flip": BIT_FLIPS}
    number = len(ordinary) + sum((options.exact_duplicates, options.near_duplicates, options.contradictions))
    entries: list[Entry] = []
    for defect, count, details in kinds:
        for turn in range(count):
            detail = details[turn % len(details)]
            among = ordinary
            if defect == "foreign_crowd":
                among = [entry for entry in ordinary if entry.name == CLASSES[CROWDS.index(detail)]]
            beside = among[int(rng.integers(len(among)))]
            suffix = suffixes.get(defect, {}).get(detail, ".jpg")
            path = _path(beside.folder, beside.name, beside.patient, number, suffix)
            entries.append(replace(beside, path=path, number=number, scene=number, defect=defect, detail=detail))
            number += 1
    return entries
