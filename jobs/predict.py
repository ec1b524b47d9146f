"""`bloodcell predict`: what a run says about images that it has never seen, as a table."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import BadInput

if TYPE_CHECKING:
    from bloodcell.predict import Classifier
    from bloodcell.ranks import Ranks

EPILOG = """\
PATH: image files, folders (to the ground), plain tars, tables (CSV, TSV, parquet) with a column path, file, filename
or image, whose relative paths start from the table's folder; `-` reads paths from stdin, one a line.

Every image is a row of FILE, also one that cannot be used: it has its reason. prediction, confidence and p_CLASS are
calibrated on the run's validation split (temperature); `uncertain` means: less sure than the surest --keep of those
images, show it to a person; `plausible` are the classes that a conformal set of level 90 % holds; `seen` says that
the run's own set holds these very bytes. Pixels are those of `bloodcell evaluate`, JPEGs being decoded on the CPU.

All GPUs of this machine are used; torchrun or srun on several machines works too. What is done stays in FILE.parts:
the same command goes on after a kill.

--json: {output, images, predicted, refused, uncertain, passed_over, classes, reasons, seen, calibrated, notes,
images_per_s}"""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of predict."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or the model.safetensors of one")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="what to predict")
    parser.add_argument("--list", type=Path, metavar="FILE", help="text file with a path on each line")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", required=True, help="table to write: .parquet, .csv or .jsonl"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument(
        "--keep", type=float, default=0.95, help="share of images to decide without a person, by validation (0.95)"
    )
    parser.add_argument("--tta", choices=["2", "4", "8", "d4"], help="orientations shown of each image; d4 is all 8")
    parser.add_argument("--batch", type=int, help="images that pass through the network at once (as in training)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute (auto)")
    parser.epilog = EPILOG


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Predict; return the summary and the lines for people."""
    from bloodcell.predict.table import check_output

    check_output(parsed.output, parsed.overwrite)
    if parsed.batch is not None and parsed.batch < 1:
        raise BadInput(f"{parsed.batch} will not do", "--batch", "give 1 or more")
    if not parsed.paths and parsed.list is None:
        raise BadInput("no images are named", "command line", "give files, folders, tars or tables, or - for stdin")
    import torch

    from bloodcell.ranks import discover

    ranks = discover()
    alone = ranks.launcher == "single" and parsed.device != "cpu"
    if alone and torch.cuda.device_count() > 1:
        return _on_all_devices(parsed, torch.cuda.device_count())
    return _here(parsed, ranks)


def _here(parsed: argparse.Namespace, ranks: Ranks) -> tuple[dict[str, Any], list[str]]:
    """Predict as one of the ranks."""
    import torch

    from bloodcell.engine.orientations import orientations_of
    from bloodcell.predict import open_classifier, predict
    from bloodcell.ranks import process_group
    from shards.console import warn

    orientations = orientations_of(parsed.tta)
    classifier = open_classifier(parsed.run, parsed.device, orientations, parsed.keep, parsed.batch, ranks)
    if ranks.first:
        for note in classifier.certainty.notes:
            warn(note)
    paths = [Path(name) for name in parsed.paths if name != "-"]
    engine = classifier.config.engine
    with process_group(ranks, torch.device(engine.device), engine.timeout):
        found = predict(classifier, parsed.run, paths, lambda: _lines(parsed), parsed.output, ranks)
    if not found:
        return {}, []
    known = classifier.certainty
    value = {**found, "calibrated": known.threshold == known.threshold, "notes": list(known.notes)}
    return value, _told(value, classifier)


def _lines(parsed: argparse.Namespace) -> Iterable[bytes]:
    """Yield the lines that name images, of stdin and of --list."""
    if "-" in parsed.paths:
        yield from sys.stdin.buffer
    if parsed.list is not None:
        try:
            with parsed.list.open("rb") as file:
                yield from file
        except OSError as error:
            raise BadInput(f"the list cannot be read: {error.strerror}", parsed.list, "give a text file") from error


def _told(value: dict[str, Any], classifier: Classifier) -> list[str]:
    lines = [f"{value['images']:,} images: {value['predicted']:,} predicted, {value['refused']:,} without an answer"]
    if value["calibrated"]:
        lines[0] += f", {value['uncertain']:,} uncertain: show them to an expert"
    lines += [f"  {name}: {count:,}" for name, count in value["classes"].items()]
    lines += [f"  no answer: {reason}: {count:,}" for reason, count in value["reasons"].items()]
    if value["passed_over"]:
        lines.append(f"  not named like images, passed over: {value['passed_over']:,}")
    for part, count in (value["seen"] or {}).items():
        lines.append(f"  in the run's own {part} split, byte for byte: {count:,}")
    return [*lines, f"{value['images_per_s']:,.1f} images/s", f"table: {value['output']}"]


def _on_all_devices(parsed: argparse.Namespace, devices: int) -> tuple[dict[str, Any], list[str]]:
    """Predict on all GPUs of this machine through torchrun."""
    from jobs import launch

    with tempfile.NamedTemporaryFile(prefix="bloodcell-predict-", suffix=".txt") as lines:
        lines.writelines(line if line.endswith(b"\n") else line + b"\n" for line in _lines(parsed))
        lines.flush()
        flags: list[str] = [f"--output={parsed.output}", f"--list={lines.name}", f"--keep={parsed.keep}"]
        flags += [f"--{name}={getattr(parsed, name)}" for name in ("tta", "batch") if getattr(parsed, name)]
        flags += ["--device=cuda", *(["--overwrite"] if parsed.overwrite else [])]
        paths = [name for name in parsed.paths if name != "-"]
        value = launch.call(launch.torchrun(devices, "predict", str(parsed.run), *paths, *flags), "predict")
    return {name: found for name, found in value.items() if name not in ("schema", "exit")}, [f"table: {parsed.output}"]
