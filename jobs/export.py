"""`bloodcell export`: a run as a file for other programs, compared with the run before it is called done."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bloodcell.export.endings import FORMATS
from shards.errors import BadInput, CheckFailed

if TYPE_CHECKING:
    from bloodcell.predict import Classifier

EPILOG = """\
safetensors    the weights with classes, preprocessing and config in the metadata; those of a torchvision architecture
               load into the plain torchvision model, strict
onnx           a graph for onnxruntime and others; metadata_props hold classes, temperature and threshold
torch-export   a torch.export program (torch.export.load)
aot            compiled for this kind of machine (torch._inductor.aoti_load_package); takes minutes and a C++ compiler
space          a folder that is a ready Hugging Face Space: page, ONNX graph, weights, model card, drawn examples; it
               needs gradio, onnxruntime, numpy and pillow, neither torch nor bloodcell. Its own app.py is what is asked

onnx, torch-export and aot take RGB images as they are decoded, uint8 [n, height, width, 3] of any size: the central
square, scaling and normalisation are inside. They give logits and calibrated probabilities.

Before it is done the file is applied to up to 200 images of the run's test split (drawn ones where the set is not at
hand): a probability may differ by --bound from the run's on the same pixels. `whole` also counts the readers' own
scaling: the CPU backend's is followed exactly, DALI's but for one level of 255 in a few pixels.

--int8 quantises the ONNX graph behind its first convolution (static, per channel; ranges from up to 200 training
images). No two pixels are the same then, so accuracy decides: up to 2,000 images each of val and test are judged by
both files, and speed is measured by turns. Beyond --int8-bound points lost on both together: exit code 1.

--json: {file, format, bytes, check: {images, of, difference, whole, other, bound}}; exit code 1 beyond the bound;
with --int8 check: {splits: {split: {images, float32, int8, alike}}, rates, ratio, bytes, bound}"""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of export."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or the model.safetensors of one")
    parser.add_argument("--format", choices=list(FORMATS), required=True, help="what to write")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", required=True, help="the file to write (space: the folder)"
    )
    parser.add_argument("--bound", type=float, default=1e-4, help="largest difference that counts as none (1e-4)")
    parser.add_argument("--int8", action="store_true", help="onnx: convolutions in whole numbers, for small networks")
    parser.add_argument(
        "--int8-bound",
        type=float,
        default=1.0,
        help="points of accuracy that int8 may cost, val and test together (1.0)",
    )
    parser.epilog = EPILOG


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Write and compare; return the result and the lines for people."""
    ending = FORMATS[parsed.format]
    if ending and parsed.output.suffix != ending:
        raise BadInput(
            f"a file of this format ends in {ending}", parsed.output, f"call it {parsed.output.stem}{ending}"
        )
    if parsed.int8 and parsed.format != "onnx":
        raise BadInput("int8 is made of ONNX alone", f"--format {parsed.format}", "give --format onnx")
    from dataclasses import asdict

    from bloodcell.export.check import check
    from bloodcell.export.formats import write
    from bloodcell.predict import open_classifier
    from shards.console import warn

    classifier = open_classifier(parsed.run, "cpu")
    for note in classifier.certainty.notes:
        warn(note)
    if parsed.int8:
        return _int8(classifier, parsed)
    write(classifier, parsed.run, parsed.format, parsed.output)
    found = check(classifier, parsed.run, parsed.format, parsed.output, parsed.bound)
    said = f"largest difference of a probability on {found.images} images ({found.of}): {found.difference:.1e}"
    if not found.passed:
        raise CheckFailed(f"the file is not the run: {said}, bound {found.bound:g}", parsed.output, "do not use it")
    lines = [said, f"with the readers' own scaling: {found.whole:.1e}, another most likely class: {found.other}"]
    value = {"file": str(parsed.output), "format": parsed.format, "bytes": _size(parsed.output)}
    return {**value, "check": asdict(found)}, [*lines, f"{'file' if ending else 'folder'}: {parsed.output}"]


def _int8(classifier: Classifier, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Write and judge the quantised file."""
    from dataclasses import asdict

    from bloodcell.export.formats import check_onnx
    from bloodcell.export.int8 import write_int8

    check_onnx()
    found = write_int8(classifier, parsed.run, parsed.output, parsed.int8_bound)
    lines = [
        f"{name}: {share.float32 / share.images:.2%} right in floating point, {share.int8 / share.images:.2%} in int8"
        f" ({share.images:,} images, {share.alike:,} with the same class)"
        for name, share in found.splits.items()
    ]
    if not found.passed:
        raise CheckFailed(
            f"int8 costs {found.lost:.2f} points, more than {found.bound:g}: {'; '.join(lines)}",
            parsed.output,
            "do not use it",
        )
    slow, fast = found.rates
    lines.append(f"on one thread {fast:,.0f} images a CPU-second against {slow:,.0f}: {found.ratio:.2f} times")
    large, small = found.bytes
    lines.append(f"file: {parsed.output}, {small / 2**20:.1f} MiB against {large / 2**20:.1f}")
    value = {"file": str(parsed.output), "format": "onnx", "bytes": small}
    return {**value, "check": asdict(found)}, lines


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
