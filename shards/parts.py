"""One packing shared by several processes or machines: each examines its part of the images, `merge` makes the set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.assemble import assemble
from shards.chunks import Chunk, is_examined
from shards.errors import BadInput
from shards.pack import Packing, PackOptions, examine_chunks, prepared
from shards.work import Identity, Work, alone, going_on, together

MOST = 9999
"""Parts of one packing."""


def parse_part(text: str) -> tuple[int, int]:
    """Turn '2/4' into (2, 4); raises BadInput."""
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
    part, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= parts <= MOST:
        raise BadInput(f"not a part: {text!r}", "--part", "give K/N, such as 2/4: the second of four")
    return part, parts


def pack_part(source: Path, target: Path, options: PackOptions, part: int, parts: int) -> dict[str, Any]:
    """Examine the chunks of one part of the images below `source`; `merge` writes the set when all parts are done.

    The parts may run at the same time, on machines that share a file system, or one after the other.

    Returns:
        {"set", "part", "parts", "images" (in all parts), "examined" (in this one), "missing" (other parts to be done)}

    Raises:
        BadInput: as `pack`; or the packing was begun with other options, images or versions.
        EnvironmentFault: the disk is full or fails, or another process packs or merges the set, or packs this part.
    """
    with prepared(source, target, options, parts) as packing, together(target, part) as work:
        work.join(packing.identity, part)
        own = packing.chunks[part - 1 :: parts]
        with going_on(work):
            examine_chunks(own, packing.workers)
        return {
            "set": str(target),
            "part": part,
            "parts": parts,
            "images": len(packing.listing.items),
            "examined": sum(len(chunk.items) for chunk in own),
            "missing": _missing(packing.chunks, parts),
        }


def merge(target: Path, workers: int = 0) -> dict[str, Any]:
    """Write the set `target` from what its parts examined: the same bytes as `pack` would write alone.

    Options and sources are those of the parts. What the parts did is kept until the set is written.

    Returns:
        What `pack` returns.

    Raises:
        BadInput: there is nothing to merge, a part is missing, the images changed; or as `pack`.
        EnvironmentFault: as `pack`, or a part is still being packed.
    """
    work = Work(target)
    work.settle()
    begun = work.identity()
    if begun is None:
        raise BadInput("there are no parts to merge", target, "pack them with `bloodcell pack DIR SET --part K/N`")
    with prepared(*_sources(target, begun, workers), begun.parts) as packing, alone(target) as work:
        _check_same(begun, packing)
        _check_whole(packing, target)
        work.begin(packing.identity)
        with going_on(work):
            return assemble(packing, work)


def _sources(target: Path, begun: Identity, workers: int) -> tuple[Path, Path, PackOptions]:
    stored = {name: value for name, value in begun.options.items() if name not in ("source", "decisions_sha256")}
    try:
        options = PackOptions(**{**stored, "also": tuple(stored["also"]), "workers": workers})
        return Path(begun.options["source"]), target, options
    except (TypeError, KeyError) as error:
        fix = "pack all parts again with the same command"
        raise BadInput(f"the parts were packed by another version of this program: {error}", target, fix) from error


def _check_same(begun: Identity, packing: Packing) -> None:
    said = begun.differences(packing.identity)
    if said:
        raise BadInput(
            f"the parts are of other images than there are now, or of another program ({'; '.join(said)})",
            packing.source,
            "pack all parts again with the same command: what is the same is taken up",
        )


def _check_whole(packing: Packing, target: Path) -> None:
    if packing.identity.parts:
        missing = _missing(packing.chunks, packing.identity.parts)
        if missing:
            listed = ", ".join(f"{part}/{packing.identity.parts}" for part in missing)
            raise BadInput(
                f"parts are missing or not finished: {listed}", target, "pack them with the same options and --part"
            )
    elif not all(map(is_examined, packing.chunks)):
        raise BadInput(
            "the packing was not finished, and not in parts", target, "start `bloodcell pack` again to go on"
        )


def _missing(chunks: Sequence[Chunk], parts: int) -> list[int]:
    """Return the parts, from 1, that have not examined all of their chunks."""
    return sorted({chunk.number % parts + 1 for chunk in chunks if not is_examined(chunk)})
