"""`bloodcell export`: a run as a file for other programs, compared with the run before it is called done."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bloodcell.export.endings import FORMATS
from shards.errors import BadInput, CheckFailed

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
hand): a probability may differ by --bound from the run's on the same pixels. `whole` also counts that the readers'
own scaling is at most one level of 255 apart in a few pixels.

--json: {file, format, bytes, check: {images, of, difference, whole, other, bound}}; exit code 1 beyond the bound"""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of export."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or the model.safetensors of one")
    parser.add_argument("--format", choices=list(FORMATS), required=True, help="what to write")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", required=True, help="the file to write (space: the folder)"
    )
    parser.add_argument("--bound", type=float, default=1e-4, help="largest difference that counts as none (1e-4)")
    parser.epilog = EPILOG


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Write and compare; return the result and the lines for people."""
    ending = FORMATS[parsed.format]
    if ending and parsed.output.suffix != ending:
        raise BadInput(
            f"a file of this format ends in {ending}", parsed.output, f"call it {parsed.output.stem}{ending}"
        )
    from dataclasses import asdict

    from bloodcell.export.check import check
    from bloodcell.export.formats import write
    from bloodcell.predict import open_classifier
    from shards.console import warn

    classifier = open_classifier(parsed.run, "cpu")
    for note in classifier.certainty.notes:
        warn(note)
    write(classifier, parsed.run, parsed.format, parsed.output)
    found = check(classifier, parsed.run, parsed.format, parsed.output, parsed.bound)
    said = f"largest difference of a probability on {found.images} images ({found.of}): {found.difference:.1e}"
    if not found.passed:
        raise CheckFailed(f"the file is not the run: {said}, bound {found.bound:g}", parsed.output, "do not use it")
    lines = [said, f"with the readers' own scaling: {found.whole:.1e}, another most likely class: {found.other}"]
    value = {"file": str(parsed.output), "format": parsed.format, "bytes": _size(parsed.output)}
    return {**value, "check": asdict(found)}, [*lines, f"{'file' if ending else 'folder'}: {parsed.output}"]


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
