"""The verbs of the data floor: synth, scan, download, pack, merge, verify. They load no torch."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, get_type_hints

from shards.errors import BadInput, Preempted

if TYPE_CHECKING:
    from shards.pack import PackOptions


MOST_CLASSES = 40
"""Classes whose counts are printed for each part; dataset.json and the report have all."""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of synth, scan, download, pack, merge or verify."""
    if verb == "synth":
        from shards.synth import SynthOptions

        parser.add_argument("output", type=Path, metavar="OUT", help="folder to make")
        add_options(parser, SynthOptions)
        parser.add_argument("--workers", type=int, default=1, help="processes (1)")
    elif verb == "pack":
        from shards.pack import PackOptions

        parser.add_argument(
            "source", type=Path, metavar="DIR", help="folder with one folder of images for each class, or an .npz"
        )
        parser.add_argument("target", type=Path, metavar="SET", help="shard set to make")
        add_options(parser, PackOptions)
        parser.add_argument(
            "--part",
            default="",
            metavar="K/N",
            help="examine only the K-th of N parts of the images; when all are done, `bloodcell merge SET`",
        )
        parser.add_argument(
            "--append",
            action="store_true",
            help="add the images to the existing SET as new shards; how it was split and encoded stays",
        )
    elif verb == "scan":
        from shards.scan import ScanOptions

        parser.add_argument("source", type=Path, metavar="DIR", help="folder with one folder of images for each class")
        parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder to make (DIR's name with -scan, here)")
        add_options(parser, ScanOptions)
    elif verb == "download":
        parser.add_argument(
            "name", metavar="NAME", help="a data set of shards/datasets, or a .toml file that describes one"
        )
        parser.add_argument("--to", type=Path, metavar="DIR", help="folder to make (the name of the set, here)")
    else:
        about = "shard set to make from its parts" if verb == "merge" else "shard set"
        parser.add_argument("set", type=Path, metavar="SET", help=about)
        parser.add_argument("--workers", type=int, default=0, help="processes; 0 is one for each core")


def add_options(parser: argparse.ArgumentParser, options: type) -> None:
    """Make a flag of every field of an options dataclass; its help is in the field's metadata."""
    hints = get_type_hints(options)
    for leaf in dataclasses.fields(options):
        flag, kind = f"--{leaf.name.replace('_', '-')}", hints[leaf.name]
        shown = "none" if leaf.default in ("", ()) else leaf.default
        about = f"{leaf.metadata.get('help', '')} ({shown})".strip()
        if kind == tuple[str, ...]:
            parser.add_argument(flag, dest=leaf.name, action="append", metavar="PATH", help=about.replace("%", "%%"))
        elif kind is bool:
            parser.add_argument(
                flag, dest=leaf.name, default=leaf.default, action=argparse.BooleanOptionalAction, help=about
            )
        else:
            parser.add_argument(flag, dest=leaf.name, default=leaf.default, type=kind, help=about.replace("%", "%%"))


def options_from(parsed: argparse.Namespace, options: type) -> Any:
    """Return the options dataclass filled from parsed arguments."""
    given = {leaf.name: getattr(parsed, leaf.name) for leaf in dataclasses.fields(options)}
    # argparse leaves a flag that may come several times as a list, or None.
    lists = {leaf.name for leaf in dataclasses.fields(options) if isinstance(leaf.default, tuple)}
    return options(**{name: tuple(value or ()) if name in lists else value for name, value in given.items()})


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Run synth, scan, download, pack, merge or verify; return the result and the lines for people."""
    runs = {"synth": _synth, "scan": _scan, "download": _download, "pack": _pack, "merge": _merge, "verify": _verify}
    with stoppable():
        return runs[verb](parsed)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGUSR2 and SIGTERM end the block as an interrupt does, with code 85: the same command goes on."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Preempted(f"stopped by {signal.Signals(number).name}", "", "start the same command again")

    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, stop) for number in (signal.SIGUSR2, signal.SIGTERM) if here}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _synth(parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from shards.synth import SynthOptions, synthesise

    result = synthesise(parsed.output, options_from(parsed, SynthOptions), parsed.workers)
    return result, [f"{parsed.output}: {result['images']} images drawn", f"next: bloodcell pack {parsed.output} SET"]


def _scan(parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from shards.scan import ScanOptions, scan

    target = parsed.out or Path(f"{parsed.source.resolve().name}-scan")
    result = scan(parsed.source, target, options_from(parsed, ScanOptions))
    lines = [f"{result['images']} images, {result['usable']} usable"]
    counts = {**result["rejected"], **result["flags"]}
    lines += [f"  {n:>8}  {name}" for name, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    lines += [f"  shortcut: {sentence}" for sentence in result["shortcuts"]]
    suggested = result["suggested"]
    lines.append(f"suggested: drop {suggested['drop']}, look at {suggested['keep']} more")
    lines += [f"report: {result['report']}", f"next: edit {result['decisions']}, then bloodcell pack --decisions"]
    return result, lines


def _download(parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from jobs.download import download
    from shards.definitions import read_definition

    definition = read_definition(parsed.name)
    result = download(definition, parsed.name, parsed.to or Path(definition.name))
    return result, [f"{parsed.name}: {result['files']:,} files in {result['folder']}", f"next: {result['next']}"]


def _pack(parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from shards.pack import PackOptions, pack

    if parsed.shard_bytes < 1 or parsed.shard_samples < 1:
        raise BadInput("a shard holds at least one sample", "--shard-bytes, --shard-samples", "give positive numbers")
    options = options_from(parsed, PackOptions)
    if parsed.part and parsed.append:
        raise BadInput("images are appended by one process", "--part, --append", "choose one")
    if parsed.append:
        return _append(parsed, options)
    if parsed.part:
        return _pack_part(parsed, options)
    return _packed(pack(parsed.source, parsed.target, options))


def _append(parsed: argparse.Namespace, options: PackOptions) -> tuple[dict[str, Any], list[str]]:
    from shards.append import append

    result, lines = _packed(append(parsed.source, parsed.target, options))
    new = result["appended"]
    said = f"{new['images_in']} images in = {new['packed']} packed + {new['rejected']} rejected"
    return result, [f"appended: {said}", f"the whole set: {lines[0]}", *lines[1:]]


def _pack_part(parsed: argparse.Namespace, options: PackOptions) -> tuple[dict[str, Any], list[str]]:
    from shards.parts import pack_part, parse_part

    result = pack_part(parsed.source, parsed.target, options, *parse_part(parsed.part))
    missing = ", ".join(f"{part}/{result['parts']}" for part in result["missing"])
    todo = f"still to be packed: {missing}" if missing else f"next: bloodcell merge {parsed.target}"
    done = f"part {result['part']}/{result['parts']}: {result['examined']} of {result['images']} images examined"
    return result, [done, todo]


def _merge(parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from shards.parts import merge

    return _packed(merge(parsed.set, parsed.workers))


def _packed(result: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    from shards.ways import split_lines

    lines = [f"{result['images']} images in = {result['packed']} packed + {result['rejected']} rejected"]
    for part, counts in result["splits"].items():
        named = [f"{k} {n}" for k, n in counts.items()]
        more = [f"and {len(named) - MOST_CLASSES} more classes"] if len(named) > MOST_CLASSES else []
        lines.append(f"  {part:<6} {sum(counts.values()):>8}  " + "  ".join([*named[:MOST_CLASSES], *more]))
    lines += split_lines(result["split"])
    found = result["duplicates"]
    lines.append(
        f"duplicates: {found['exact_duplicates']} exact (left out), {found['near_clusters']} near-duplicate clusters "
        f"(kept together), {found['contradictions']} images with contradicting labels (left out)"
    )
    lines += [f"leaks found by the audit: {result['leaks']}", f"report: {result['report']}"]
    return result, lines


def _verify(parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from shards.parallel import available_cores
    from shards.verify import verify

    if parsed.workers < 0:
        raise BadInput(f"{parsed.workers} processes", "--workers", "give 1 or more, or 0 for one on each core")
    result = verify(parsed.set, parsed.workers or available_cores())
    if result["ok"]:
        return result, [f"{parsed.set}: {result['samples']} samples in {result['shards']} shards, every byte as packed"]
    lines = [f"{parsed.set}: damaged"] + [f"  {problem}" for problem in result["problems"]]
    return {**result, "exit": 1}, [*lines, "restore the named files from a copy, or pack the set again"]
