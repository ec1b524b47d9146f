"""From images to a shard set: list, clean, split, audit, write. The same input gives the same bytes on any machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from shards.atomic import check_place, existing_parent
from shards.chunks import Chunk, cut, examination, examine_chunk, is_examined, listing_digest
from shards.console import say
from shards.decisions import digest, read_decisions
from shards.errors import BadInput
from shards.examine import ticking
from shards.pack_options import PackOptions
from shards.parallel import available_cores, map_ordered, warm_up
from shards.sources import Listing
from shards.sources.gather import Request, gathered
from shards.ways import way_of
from shards.work import Identity, Work, alone, going_on, refuse_existing

__all__ = ["PackOptions", "Packing", "examine_chunks", "identified", "pack", "prepared", "request"]


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
        from shards.assemble import assemble  # loaded while the workers were at the images

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
            import_module("shards.assemble")  # the workers have their next chunks already


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


def _check_target(target: Path) -> None:
    """Check, before hours of work, that the set can be written where it shall lie."""
    if target.name:
        refuse_existing(target)
    check_place(target)
