"""From images to a shard set: list, clean, split, audit, write. The same input gives the same bytes on any machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from shards.atomic import check_place, disk_errors, existing_parent
from shards.chunks import Chunk, cut, examination, examine_chunk, is_examined, listing_digest, load
from shards.clean import Cleaned, clean
from shards.compose import Contents, compose, personal_fields, warn_of_personal
from shards.console import say
from shards.decisions import digest, read_decisions
from shards.divide import divide, judge
from shards.errors import BadInput, Fault
from shards.examine import ticking
from shards.format import DatasetInfo
from shards.heap import give_back
from shards.parallel import available_cores, map_ordered, warm_up
from shards.report import write_set_report
from shards.sources import Listing, as_text
from shards.sources.gather import Request, gathered
from shards.sources.listing import class_names
from shards.sources.options import SourceOptions
from shards.treat import Treatment, check, parameters
from shards.ways import split_record, way_of
from shards.work import Identity, Work, alone, going_on, refuse_existing
from shards.write import plan_shards


@dataclass(frozen=True)
class PackOptions(SourceOptions):
    """How to pack. Every field but `workers` decides what the set contains and is stored in dataset.json."""

    split: str = field(default="80/10/10", metadata={"help": "shares of train, val and test in percent"})
    folds: int = field(default=0, metadata={"help": "cross-validation folds instead of --split; 0 is none"})
    leave_source_out: bool = field(
        default=False, metadata={"help": "one fold for each source: tested on it, trained on all others"}
    )
    test_from: str = field(
        default="",
        metadata={"help": "fixed test set: a folder of --also, a part of the split found, or a CSV of paths"},
    )
    seed: int = field(default=0, metadata={"help": "of the split and of the order inside the shards"})
    keep_splits: bool = field(default=False, metadata={"help": "keep the split whose folders the images lie in"})
    merge_splits: bool = field(
        default=False, metadata={"help": "divide anew images that lie in the folders of a split"}
    )
    decisions: str = field(default="", metadata={"help": "CSV of path, keep or drop, reason, as scan suggests it"})
    near: bool = field(default=True, metadata={"help": "search near-duplicates and keep them in one part"})
    encode: str = field(
        default="keep", metadata={"help": "keep, png, webp-lossless or jpeg:Q with a quality of 1 to 100"}
    )
    max_side: int = field(
        default=0, metadata={"help": "longest side in pixels, larger images are made smaller; 0 is any"}
    )
    exif: str = field(
        default="apply", metadata={"help": "orientation of images that are encoded again: apply it, or keep it"}
    )
    strip: bool = field(default=False, metadata={"help": "remove metadata and ICC profiles, pixels stay"})
    segment: str = field(default="", metadata={"help": "lab-kmeans: all but stained nuclei become black"})
    stain: str = field(default="", metadata={"help": "macenko or reinhard: normalise the stain"})
    shard_bytes: int = field(default=256 << 20, metadata={"help": "largest size of a shard in bytes"})
    shard_samples: int = field(default=10_000, metadata={"help": "largest number of samples in a shard"})
    allow_leaks: bool = field(default=False, metadata={"help": "write the set although its audit finds leaks"})
    allow_thin: bool = field(
        default=False, metadata={"help": "let a class with too few groups be missing in some parts, and say so"}
    )
    workers: int = field(default=0, metadata={"help": "processes; 0 is one for each core"})

    @property
    def treatment(self) -> Treatment:
        """What is done to each image; raises BadInput if it cannot be done."""
        names = (leaf.name for leaf in fields(Treatment))
        how = Treatment(**{name: getattr(self, name) for name in names})
        check(how)
        return how


@dataclass(frozen=True)
class Packing:
    """A packing that is about to be done: what, from where, how, and the chunks in which it is examined."""

    listing: Listing
    source: Path
    options: PackOptions
    identity: Identity
    chunks: list[Chunk]

    @property
    def workers(self) -> int:
        """Processes."""
        return self.options.workers or available_cores()


def pack(source: Path, target: Path, options: PackOptions) -> dict[str, Any]:
    """Pack the images below `source` into the shard set `target`.

    What a killed packing of the same images left in TARGET.partial is taken up again; the set is the same.

    Returns:
        {"packed", "rejected", "splits": {part: {class: n}}, "shards": [{file, samples, bytes, sha256}], ...}

    Raises:
        BadInput: nothing usable below `source`, `target` exists, a class is too small, or the split leaks.
        EnvironmentFault: the disk is full or fails, or another process is packing this set.
    """
    if (options.workers or available_cores()) > 1:
        warm_up("shards.write")
    with prepared(source, target, options) as packing, alone(target) as work, going_on(work):
        work.begin(packing.identity)
        examine_chunks(packing.chunks, packing.workers)
        return assemble(packing, work)


@contextmanager
def prepared(source: Path, target: Path, options: PackOptions, parts: int = 0) -> Iterator[Packing]:
    """Check the options and list the images; archives are unpacked as long as the context lasts.

    Raises:
        BadInput: nothing usable below `source`, `target` exists, or the options cannot be followed.
    """
    _check_target(target)
    if options.workers < 0:
        raise BadInput(f"{options.workers} processes", "--workers", "give 1 or more, or 0 for one on each core")
    way_of(options)
    how = options.treatment
    with gathered(request(source, target, options)) as listing:
        others = f", {listing.ignored:,} other files" if listing.ignored else ""
        say(f"{len(listing.items):,} images below {', '.join([str(source), *options.also])}{others}")
        if options.decisions:
            read_decisions(Path(options.decisions), set(listing.items.each("source")))
        chunks = cut(Work(target).folder, listing.items, how)
        yield Packing(listing, source, options, identified(source, options, chunks, parts), chunks)


def identified(source: Path, options: PackOptions, chunks: list[Chunk], parts: int = 0) -> Identity:
    """Return what a packing is about, by which what it left after a kill is known again."""
    images = sum(len(chunk.items) for chunk in chunks)
    stored = _portable(source, options)
    return Identity(examination(options.treatment), stored, images, listing_digest(chunks), parts)


def examine_chunks(chunks: list[Chunk], workers: int, what: str = "examining") -> None:
    """Examine the images of all chunks that an earlier start did not examine."""
    left = [chunk for chunk in chunks if not is_examined(chunk)]
    total, missing = (sum(len(chunk.items) for chunk in some) for some in (chunks, left))
    if missing < total:
        say(f"{total - missing:,} of {total:,} images were examined before: taken up")
    if left:
        done = ((count, count) for count in map_ordered(examine_chunk, left, workers))
        for _ in ticking(done, what, total, total - missing):
            pass


def _portable(source: Path, options: PackOptions) -> dict[str, Any]:
    """Return the options as JSON with absolute paths: all that a packing depends on, and what merge goes by."""
    stored = {name: value for name, value in asdict(options).items() if name != "workers"}
    for name in ("table", "labels", "decisions"):
        stored[name] = str(Path(stored[name]).absolute()) if stored[name] else ""
    if options.dataset and Path(options.dataset).is_file():
        stored["dataset"] = str(Path(options.dataset).absolute())
    if options.test_from and Path(options.test_from).is_file():
        stored["test_from"] = str(Path(options.test_from).absolute())
    stored["also"] = [str(Path(root).absolute()) for root in options.also]
    if options.decisions:
        stored["decisions_sha256"] = digest(Path(options.decisions))
    return {"source": str(source.absolute()), **stored}


def request(source: Path, target: Path, options: PackOptions) -> Request:
    """Return what the options ask to list; archives are unpacked beside the set."""
    return options.request(
        source,
        existing_parent(target),
        keep_splits=options.keep_splits,
        merge_splits=options.merge_splits,
        test_from=options.test_from,
    )


def assemble(packing: Packing, work: Work) -> dict[str, Any]:
    """Clean, split, audit and write what was examined, and give the set its name; errors as in `pack`."""
    info = _written(packing, work)
    give_back()
    with disk_errors(work.target):
        write_set_report(work.partial)
        work.finish()
    return result(info, work.target)


def _written(packing: Packing, work: Work) -> DatasetInfo:
    """Write all of the set but its report; return what its dataset.json says."""
    options, items = packing.options, packing.listing.items
    way = way_of(options)
    dropped = read_decisions(Path(options.decisions), set(items.each("source"))) if options.decisions else {}
    cleaned = clean(items, load(packing.chunks, items), options.near, dropped, packing.workers)
    give_back()
    classes = class_names(items)
    _check_classes_left(classes, cleaned, packing.source)
    samples, division, cleaned, found = divide(
        cleaned,
        classes,
        way,
        options.seed,
        mend=options.near and not options.allow_leaks,
        workers=packing.workers,
    )
    give_back()
    audited = judge(samples, found, options.allow_leaks, options.keep_splits)
    if len(samples) + len(cleaned.rejected) != len(items):
        raise Fault(f"{len(items)} images in, {len(samples)} to pack, {len(cleaned.rejected)} rejected", packing.source)
    extra = personal_fields(samples.images)
    warn_of_personal(samples.images)
    if packing.listing.encoder:
        extra["encoder"] = packing.listing.encoder
    if options.treatment.changes:
        extra["treatment"] = parameters(options.treatment)
    split = split_record(way, samples, division, classes, options)
    parts = split.pop("parts")
    contents = Contents(samples, classes, parts, cleaned, split, audited, _stored(packing.source, options), extra)
    with disk_errors(work.target):
        plans = plan_shards(
            samples, classes, options.shard_bytes, options.shard_samples, work.partial, work=work.folder
        )
        return compose(work.partial, plans, contents, packing.workers)


def _check_target(target: Path) -> None:
    """Check, before hours of work, that the set can be written where it shall lie."""
    if target.name:
        refuse_existing(target)
    check_place(target)


def _check_classes_left(classes: list[str], cleaned: Cleaned, source: Path) -> None:
    left = set(cleaned.images.texts("label"))
    for name in classes:
        if name not in left:
            reasons = Counter(reject.reason for reject in cleaned.rejected if reject.item.label == name)
            said = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
            raise BadInput(
                f"class {name!r} has no usable image ({said})", source, "mend its files or remove the folder"
            )


def _stored(source: Path, options: PackOptions) -> dict[str, Any]:
    """Return what dataset.json says of the options: names in place of paths."""
    stored = {name: value for name, value in asdict(options).items() if name != "workers"}
    for name in ("table", "dataset", "labels", "decisions", "test_from"):
        stored[name] = as_text(Path(Path(stored[name]).name)) if stored[name] else ""
    stored["also"] = [as_text(Path(Path(root).resolve().name)) for root in options.also]
    if options.decisions:
        stored["decisions_sha256"] = digest(Path(options.decisions))
    return {"source": as_text(Path(source.resolve().name)), **stored}


def result(info: DatasetInfo, target: Path) -> dict[str, Any]:
    """Return what `pack` says about a set."""
    packed = sum(shard.samples for shard in info.shards)
    return {
        "set": str(target),
        "images": info.images_in,
        "packed": packed,
        "rejected": info.rejected,
        "splits": info.samples,
        "split": info.split,
        "shards": [{"file": s.file, "samples": s.samples, "bytes": s.bytes, "sha256": s.sha256} for s in info.shards],
        "duplicates": info.extra["duplicates"],
        "leaks": info.audit["leaks"],
        "personal_metadata_images": info.extra.get("personal_metadata_images", 0),
        "fingerprint": info.fingerprint,
        "report": str(target / "report.html"),
    }
