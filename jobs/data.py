"""The verbs of the data floor: synth, pack, verify. They load no torch."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

from shards.errors import BadInput


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of synth, pack or verify."""
    if verb == "synth":
        from shards.synth import SynthOptions

        parser.add_argument("output", type=Path, metavar="OUT", help="folder to make")
        add_options(parser, SynthOptions)
        parser.add_argument("--workers", type=int, default=1, help="processes (1)")
    elif verb == "pack":
        from shards.pack import PackOptions

        parser.add_argument("source", type=Path, metavar="DIR", help="folder with one folder of images for each class")
        parser.add_argument("target", type=Path, metavar="SET", help="shard set to make")
        add_options(parser, PackOptions)
    else:
        parser.add_argument("set", type=Path, metavar="SET", help="shard set")
        parser.add_argument("--workers", type=int, default=0, help="processes; 0 is one for each core")


def add_options(parser: argparse.ArgumentParser, options: type) -> None:
    """Make a flag of every field of an options dataclass; its help is in the field's metadata."""
    hints = get_type_hints(options)
    for leaf in dataclasses.fields(options):
        flag, kind = f"--{leaf.name.replace('_', '-')}", hints[leaf.name]
        shown = "none" if leaf.default == "" else leaf.default
        about = f"{leaf.metadata.get('help', '')} ({shown})".strip()
        if kind is bool:
            parser.add_argument(
                flag, dest=leaf.name, default=leaf.default, action=argparse.BooleanOptionalAction, help=about
            )
        else:
            parser.add_argument(flag, dest=leaf.name, default=leaf.default, type=kind, help=about.replace("%", "%%"))


def options_from(parsed: argparse.Namespace, options: type) -> Any:
    """Return the options dataclass filled from parsed arguments."""
    return options(**{leaf.name: getattr(parsed, leaf.name) for leaf in dataclasses.fields(options)})


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Run synth, pack or verify; return the result and the lines for people."""
    return {"synth": _synth, "pack": _pack, "verify": _verify}[verb](parsed)


def _synth(parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from shards.synth import SynthOptions, synthesise

    result = synthesise(parsed.output, options_from(parsed, SynthOptions), parsed.workers)
    return result, [f"{parsed.output}: {result['images']} images drawn", f"next: bloodcell pack {parsed.output} SET"]


def _pack(parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from shards.pack import PackOptions, pack

    if parsed.shard_bytes < 1 or parsed.shard_samples < 1:
        raise BadInput("a shard holds at least one sample", "--shard-bytes, --shard-samples", "give positive numbers")
    result = pack(parsed.source, parsed.target, options_from(parsed, PackOptions))
    lines = [f"{result['images']} images in = {result['packed']} packed + {result['rejected']} rejected"]
    for part, counts in result["splits"].items():
        lines.append(f"  {part:<6} {sum(counts.values()):>8}  " + "  ".join(f"{k} {n}" for k, n in counts.items()))
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
