"""`bloodcell bench WHAT`: how fast a part is, beside what else one could use, measured in the same run."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from shards.atomic import write_json
from shards.errors import BadInput

BENCHES = {
    "data": ("jobs.bench.data", "the loader beside torchvision's ImageFolder and decode_image on the same files"),
    "predict": ("jobs.bench.predict", "predict beside a timm-style inference loop of the same network, same files"),
    "train": ("jobs.bench.training", "the time to a result on a set, whole commands, beside a plain loop"),
    "gpu": (
        "jobs.bench.gpu",
        "its tests, networks on real images, decoding, on a GPU; an interrupted one goes on",
    ),
    "compare": ("jobs.bench.comparing", "two results side by side: the figures of the second as ratios to the first"),
    "split": ("jobs.bench.split", "the shares of a split beside those of scikit-learn on the same groups"),
    "evaluate": ("jobs.bench.evaluation", "time and memory of judging 10^7 predictions with every section"),
    "order": ("jobs.bench.order", "the sample order of 1,024 ranks and 10^8 samples, checked and timed"),
    "engine": (
        "jobs.bench.engine",
        "a training step beside a bare DDP loop, DeepSpeed beside DDP, checkpoints, start-up",
    ),
    "pack": ("jobs.bench.pack", "packing: writing beside webdataset and tar, examination, two workers, memory"),
    "faults": ("jobs.bench.faults", "random faults over small trainings: none may lose anything; times to recover"),
    "scale": ("jobs.bench.scale", "how many GPUs are worth it: images/s on 1 to 512, memory, reads, on paper"),
    "near": ("jobs.bench.near", "the near-duplicate search among 10^6 drawn cells with planted copies"),
    "runs": ("jobs.bench.runs", "no benchmark: the figures of finished runs, with intervals and costs, as a result"),
    "sweep": ("jobs.bench.sweep", "the learning rate that a sweep finds beside the best of a fine grid, on a set"),
    "scan": ("jobs.bench.scan", "recall and precision of each detector of scan on planted defects"),
}


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare one subcommand for each benchmark."""
    parts = parser.add_subparsers(dest="bench", required=True, metavar="WHAT")
    for name, (module, about) in BENCHES.items():
        part = parts.add_parser(name, help=about, description=about, allow_abbrev=False)
        importlib.import_module(module).add_arguments(part)
        part.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
        part.add_argument("--save", type=Path, metavar="FILE", help="write that object into a file too")


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Run a benchmark; return {machine, versions, date, command, rows} and the table.

    Raises:
        BadInput: there is no folder for --save; else as the benchmark.
    """
    from jobs.bench.result import lines

    if parsed.save and not parsed.save.absolute().parent.is_dir():
        raise BadInput("there is no such folder", parsed.save.parent, "make it, or give --save another file")
    result = importlib.import_module(BENCHES[parsed.bench][0]).run_arguments(parsed)
    found = result.as_json()
    if parsed.save:
        write_json(parsed.save, found)
    return found, lines(result)
