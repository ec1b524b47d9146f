"""The second half of a packing: what was examined is cleaned, split, audited and written, and the set gets its name."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.ahead import Ahead
from shards.atomic import disk_errors
from shards.chunks import load
from shards.clean import Cleaned, clean
from shards.compose import Contents, compose, personal_fields, warn_of_personal, write_shards
from shards.decisions import digest, read_decisions
from shards.divide import divide, judge
from shards.duplicates import ALL_PAIRS
from shards.errors import BadInput, Fault
from shards.format import DatasetInfo, ShardInfo
from shards.heap import give_back
from shards.report import write_set_report
from shards.samples import Samples
from shards.sources import as_text
from shards.sources.listing import class_names
from shards.treat import parameters
from shards.ways import split_record, way_of
from shards.work import Work
from shards.write import plan_shards

if TYPE_CHECKING:
    from shards.pack import Packing
    from shards.pack_options import PackOptions


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
    write = partial(_shards, packing, work, classes)
    with disk_errors(work.target), Ahead(write) as ahead:
        samples, division, cleaned, found = divide(
            cleaned,
            classes,
            way,
            options.seed,
            mend=options.near and not options.allow_leaks,
            workers=packing.workers,
            begin=ahead.begin if packing.workers > 1 and _is_small(packing) else None,
        )
        give_back()
        audited = judge(samples, found, options.allow_leaks, options.keep_splits)
        if len(samples) + len(cleaned.rejected) != len(items):
            said = f"{len(items)} images in, {len(samples)} to pack, {len(cleaned.rejected)} rejected"
            raise Fault(said, packing.source)
        extra = personal_fields(samples.images)
        warn_of_personal(samples.images)
        if packing.listing.encoder:
            extra["encoder"] = packing.listing.encoder
        if options.treatment.changes:
            extra["treatment"] = parameters(options.treatment)
        split = split_record(way, samples, division, classes, options)
        parts = split.pop("parts")
        contents = Contents(samples, classes, parts, cleaned, split, audited, _stored(packing.source, options), extra)
        return compose(work.partial, *ahead.result(samples), contents)


def _shards(
    packing: Packing, work: Work, classes: list[str], samples: Samples, stop: Event
) -> tuple[list[ShardInfo], np.ndarray]:
    """Write the shards of the samples; as `write_shards`."""
    size, most = packing.options.shard_bytes, packing.options.shard_samples
    plans = plan_shards(samples, classes, size, most, work.partial, work=work.folder)
    return write_shards(plans, packing.workers, stop=stop)


def _is_small(packing: Packing) -> bool:
    """Whether the shards are begun before the audit has looked: of few, the largest keeps one process busy for long.

    In a set whose pictures were all compared the audit hardly ever finds what makes the shards be written again.
    """
    return packing.options.near and len(packing.listing.items) <= ALL_PAIRS


def _check_classes_left(classes: list[str], cleaned: Cleaned, source: Path) -> None:
    left = set(cleaned.images.texts("label"))
    for name in classes:
        if name not in left:
            reasons = Counter(reject.reason for reject in cleaned.rejected if reject.item.label == name)
            named = ((n, "dropped by decision" if why == "decision" else why) for why, n in reasons.most_common())
            said = ", ".join(f"{n} {why}" for n, why in named)
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
