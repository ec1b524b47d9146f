"""Draw a labelled set of smear images, with patients, slides and, on request, the defects of real sets."""

from __future__ import annotations

import csv
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from shards.atomic import check_place, disk_errors, new_folder
from shards.console import progress
from shards.defects import (
    SPOILT,
    bit_flipped,
    blurred,
    corrupt,
    encode_jpeg,
    mark_corner,
    near_duplicate,
    odd_format,
    outlier,
    spoilt,
)
from shards.drawing import CLASSES, SCENE, draw_smear, slide_look
from shards.errors import BadInput
from shards.foreign import crowd_picture
from shards.parallel import chunked, map_ordered
from shards.synthplan import Entry, SynthOptions, plan
from shards.textures import stream

__all__ = ["CLASSES", "TRUTH_COLUMNS", "SynthOptions", "synthesise"]

TRUTH_COLUMNS = ("path", "class", "patient", "slide", "group", "defect", "of", "detail")
"""Columns of truth.csv. Files of one `group` show the same cell; `defect` is empty in ordinary images."""

CHUNK = 64
"""Files that a worker process writes at a time."""


def synthesise(folder: Path, options: SynthOptions, workers: int = 1) -> dict:
    """Draw a set: `<class>/<class>_<patient>_<number>.jpg` and truth.csv, which tells everything that was planted.

    The classes are told apart by the form of the nucleated cell only: stain and light vary by patient and slide and
    are drawn without knowing the class. The bytes are a function of the options alone (on one type of CPU and with
    the same versions of numpy and pillow), not of the number of workers.

    Args:
        folder: to be made; written as `<folder>.partial` and renamed at the end.
        options: what to draw.
        workers: processes.

    Returns:
        {"folder", "files", "images", "classes": {class: ordinary images}, "planted": {defect: files}, "patients",
        "spanning_patients": [name], "seconds"}.

    Raises:
        BadInput: the options make no sense, or the folder exists and is not empty.
        EnvironmentFault: the disk is full, or a worker process died.
    """
    begin = time.monotonic()
    folder = Path(folder).absolute()
    check_place(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput("exists and is not an empty folder", folder, "give a new folder")
    if workers < 1:
        raise BadInput("at least one process is needed", "workers", f"got {workers}")
    entries = plan(options)
    with new_folder(folder, durable=False) as partial_folder:
        for parent in sorted({str(Path(entry.path).parent) for entry in entries}):
            (partial_folder / parent).mkdir(parents=True, exist_ok=True)
        for _ in progress(_written(entries, partial_folder, options, workers), "drawing", len(entries)):
            pass
        _write_truth(partial_folder / "truth.csv", entries)
    return _summary(folder, options, entries, time.monotonic() - begin)


def _written(entries: list[Entry], folder: Path, options: SynthOptions, workers: int) -> Iterator[Entry]:
    """Write every file, in `workers` processes; yield each entry when its file is there."""
    for done in map_ordered(partial(_write, folder, options), chunked(entries, CHUNK), workers):
        yield from done


def _write(folder: Path, options: SynthOptions, entries: list[Entry]) -> list[Entry]:
    for entry in entries:
        path = folder / entry.path
        with disk_errors(path):
            path.write_bytes(contents(entry, options))
    return entries


def contents(entry: Entry, options: SynthOptions) -> bytes:
    """Return the bytes of one file: a function of the entry and the options only. A copy draws its original again."""
    rng = stream(options.seed, SCENE, entry.scene)
    if entry.defect == "outlier":
        return encode_jpeg(outlier(rng, entry.detail, options.size))
    if entry.defect == "foreign_crowd":
        return encode_jpeg(crowd_picture(rng, entry.detail, options.size))
    picture = draw_smear(entry.drawn, slide_look(options.seed, entry.patient, entry.slide), rng, options.size)
    if entry.defect == "blurred":
        picture = blurred(picture)
    if options.shortcut:
        picture = mark_corner(picture, CLASSES.index(entry.drawn))
    if entry.defect in SPOILT:
        picture = spoilt(picture, entry.defect)
    if entry.defect == "bit_flip":
        return bit_flipped(picture, entry.detail, rng)
    if entry.defect == "odd_format":
        return odd_format(picture, entry.detail)
    content = encode_jpeg(picture)
    if entry.defect == "near_duplicate":
        return near_duplicate(content, entry.detail)
    if entry.defect == "corrupt":
        return corrupt(content, entry.detail, entry.path)
    return content


def _write_truth(path: Path, entries: list[Entry]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(TRUTH_COLUMNS)
        for entry in sorted(entries, key=lambda entry: entry.path):
            patient, slide = f"p{entry.patient:03d}", f"p{entry.patient:03d}s{entry.slide}"
            group = f"c{entry.scene:06d}"
            writer.writerow((entry.path, entry.name, patient, slide, group, entry.defect, entry.of, entry.detail))


def _summary(folder: Path, options: SynthOptions, entries: list[Entry], seconds: float) -> dict:
    ordinary = Counter(entry.name for entry in entries if not entry.defect)
    both = {(entry.patient, entry.folder) for entry in entries}
    patients = Counter(patient for patient, _ in both)
    return {
        "folder": str(folder),
        "files": len(entries),
        "images": options.images,
        "classes": {name: ordinary[name] for name in CLASSES},
        "planted": dict(Counter(entry.defect for entry in entries if entry.defect)),
        "patients": options.patients,
        "spanning_patients": [f"p{patient:03d}" for patient, folders in sorted(patients.items()) if folders > 1],
        "seconds": round(seconds, 3),
    }
