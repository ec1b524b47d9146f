"""The `bloodcell` command: one table of verbs, each in a module that is imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TextIO

from shards.errors import BadInput, Fault, Stop, nearest, visible

SCHEMA = "bloodcell/1"

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("jobs.demo", "the whole way in one command: draw, pack, train on two ranks, evaluate, report"),
    "synth": ("jobs.data", "draw a labelled set of smear images"),
    "scan": ("jobs.data", "look before you pack: duplicates, defects, outliers, shortcuts; decisions to edit"),
    "download": ("jobs.data", "get a public set of images, or say how to get it by hand"),
    "pack": ("jobs.data", "clean and split images and write the shard set"),
    "merge": ("jobs.data", "write the set that several `pack --part K/N` examined"),
    "verify": ("jobs.data", "check every byte of a shard set again"),
    "train": ("jobs.train", "train a recipe, here or under torchrun or srun"),
    "submit": ("jobs.submit", "train on Slurm: a job, an array, a chain; checked before it is queued"),
    "submit pack": ("jobs.arrays", "examine the parts of the images in an array of jobs, then merge them"),
    "submit sweep": ("jobs.arrays", "search with an array of workers: preempted or dead, what they had goes on"),
    "submit reproduce": ("jobs.arrays", "train the published systems in an array of jobs, then write the table"),
    "status": ("jobs.status", "how runs stand: state, step, speed, time that remains, why the last start ended"),
    "logs": ("jobs.status", "what the ranks of a run printed, the one that failed first"),
    "cancel": ("jobs.status", "end the job of a run"),
    "requeue": ("jobs.status", "queue the job of a run again; it goes on from its checkpoint"),
    "sync": ("jobs.sync", "send runs that were tracked without a network to W&B"),
    "dashboard": ("jobs.dashboard", "save a W&B workspace for a project: is it learning, is it fast, is it right"),
    "stage": ("jobs.stage", "copy the shards that a run reads to a disk of this node"),
    "doctor": ("jobs.doctor.cli", "is this machine, or are a cluster's nodes, fit for training? green and red"),
    "sweep": ("jobs.sweep.cli", "search for good settings of a recipe: random, Hyperband, ASHA, TPE"),
    "reproduce": ("jobs.reproduce.cli", "train the published systems again: one table, published and reproduced"),
    "evaluate": ("jobs.evaluate", "exact metrics of a run, an ensemble or folds, on any number of ranks"),
    "compare": ("jobs.compare", "runs side by side on the same samples: differences, tests, disagreements"),
    "predict": ("jobs.predict", "what a run says about new images: a table, calibrated, with what is uncertain"),
    "export": ("jobs.export", "a run as a file for other programs: safetensors, ONNX, torch.export, compiled; checked"),
    "app": ("jobs.app", "a run as a web page on this machine: drop images, see classes and certainty"),
    "soup": ("jobs.soup", "average the weights of runs of one architecture into a new run"),
    "explain": ("jobs.explain", "maps over images, a check for shortcuts, the map of the features of a run"),
    "report": ("jobs.evaluate", "write report.html of a run or a shard set again"),
    "features": ("jobs.features", "the features of images under a network, as a table"),
    "probe": ("jobs.probe", "what a frozen network's features are worth: a linear or nearest-neighbour classifier"),
    "zoo": ("jobs.zoo", "the models there are, what they cost, and whether they work here"),
    "weights": ("jobs.weights", "get public weights as files, and see which ones are here"),
    "policies": ("jobs.policies", "the augmentations there are, what they cost, and what one does to your images"),
    "bench": ("jobs.bench.cli", "how fast each part is, beside what else one could use"),
}


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one clear line."""

    def error(self, message: str) -> NoReturn:
        """Raise BadInput in place of printing the usage."""
        raise BadInput(message, "command line", f"see `{self.prog} --help`")


@dataclass
class Output:
    """Where results go: with --json file descriptor 1 is kept for one object and everything else is sent to stderr."""

    stream: TextIO
    as_json: bool
    first: bool

    @classmethod
    def open(cls, as_json: bool) -> Output:
        """Keep the real stdout; point file descriptor 1 (libraries write there) at stderr if the output is JSON."""
        first = _rank() in ("", "0")
        if not as_json:
            return cls(sys.stdout, False, first)
        kept = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        return cls(kept, True, first)

    def result(self, verb: str, value: dict[str, Any], lines: Sequence[str]) -> None:
        """Print what a verb returned, as JSON or as lines for people; the first rank only."""
        if not self.first:
            return
        if self.as_json:
            self._json({"schema": f"{SCHEMA}/{verb}", "exit": value.get("exit", 0), **value})
        else:
            print(*lines, sep="\n", file=self.stream, flush=True)

    def error(self, verb: str, problem: Stop) -> None:
        """Print one clear line; bad input is the same on all ranks, so only the first says it."""
        if not self.first and isinstance(problem, BadInput):
            return
        who = "bloodcell" if self.first else f"bloodcell (rank {_rank()})"
        print(f"{who}: {visible(' '.join(str(problem).split()))}", file=sys.stderr, flush=True)
        if self.as_json and self.first:
            said = {"what": problem.what, "where": problem.where, "fix": problem.fix}
            self._json({"schema": f"{SCHEMA}/{verb}", "exit": problem.code, "error": said})

    def _json(self, value: dict[str, Any]) -> None:
        print(json.dumps(value, allow_nan=False), file=self.stream, flush=True)


def _rank() -> str:
    """Return this process's rank, "" without a launcher (bloodcell.ranks knows more, and loads torch)."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", ""))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return its exit code: 0, 1 (check failed), 2 (bad input), 3 (environment), 70 (fault), 85."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verb = given[0] if given else ""
    if verb in ("", "-h", "--help", "help"):
        print(usage())
        return 0 if verb else 2
    if verb in ("--version", "version"):
        print(f"bloodcell {importlib.import_module('importlib.metadata').version('bloodcell')}")
        return 0
    output = Output.open("--json" in given)
    try:
        value, lines = run_verb(verb, given[1:])
        output.result(verb, value, lines)
        return int(value.get("exit", 0))
    except Stop as problem:
        output.error(verb, problem)
        return problem.code
    except KeyboardInterrupt:
        print("bloodcell: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    except Exception as error:  # a fault inside is loud
        traceback.print_exc()
        output.error(
            verb, Fault(f"{type(error).__name__}: {error}", verb, "this is a fault of the program: please report it")
        )
        return Fault.code


def run_verb(verb: str, rest: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Parse the arguments of a verb and run it; return its result and the lines for people."""
    if rest and f"{verb} {rest[0]}" in VERBS:
        verb, rest = f"{verb} {rest[0]}", rest[1:]
    if verb not in VERBS:
        raise BadInput(f"no verb {verb!r}", "command line", nearest(verb, list(VERBS)) or "see `bloodcell --help`")
    module_name, about = VERBS[verb]
    module = importlib.import_module(module_name)
    parser = Parser(
        prog=f"bloodcell {verb}",
        description=about,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(verb, parser)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
    if getattr(module, "TAKES_CONFIG", False):
        parsed, flags = parser.parse_known_args(rest)
        parsed.flags = flags
    else:
        parsed, unknown = parser.parse_known_args(rest)
        if unknown:
            said = nearest(unknown[0].split("=")[0], list(parser._option_string_actions))
            raise BadInput(f"unknown argument {unknown[0]!r}", "command line", said or f"see `{parser.prog} --help`")
    return module.run(verb, parsed)


def usage() -> str:
    """Return the list of verbs."""
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {about}" for name, (_, about) in VERBS.items()]
    return "usage: bloodcell VERB ...   (`bloodcell VERB --help` for each)\n\n" + "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
