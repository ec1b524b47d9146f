"""The files that a run is exported to, and how each is used again for the check."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bloodcell.engine.evaluate import MODEL_FILE
from bloodcell.export.endings import FORMATS
from bloodcell.export.graph import Graph
from bloodcell.predict import Classifier, open_classifier
from shards.atomic import disk_errors, open_atomic
from shards.errors import BadInput, EnvironmentFault

OPSET = 20
EXAMPLE = (2, 61, 53, 3)
"""Images, height, width, channels that the graph is traced with; all but the channels may be others later."""

Pixels = np.ndarray
Use = Callable[[Pixels], np.ndarray]
"""Probabilities float32 [n, classes] of RGB images uint8 [n, height, width, 3]."""


def write(classifier: Classifier, run: Path, kind: str, output: Path) -> None:
    """Write a run in one of FORMATS, whole or not at all.

    Raises:
        BadInput: the format's packages are missing, or the file cannot be written.
        EnvironmentFault: the disk is full or fails, or no compiler is there (aot).
    """
    if kind == "space":
        from bloodcell.export.space import write_space

        write_space(classifier, run, output, lambda other, file: write(classifier, run, other, file))
        return
    if output.is_dir():
        raise BadInput("there is a folder of this name", output, "choose another file")
    writer = {"safetensors": _weights, "onnx": _onnx, "torch-export": _program, "aot": _compiled}[kind]
    with place_for(output), tempfile.TemporaryDirectory(prefix=".export-", dir=output.parent) as scratch:
        made = Path(scratch) / f"model{FORMATS[kind]}"
        writer(classifier, run, made)
        with open_atomic(output) as file, made.open("rb") as source:
            shutil.copyfileobj(source, file)


@contextlib.contextmanager
def place_for(output: Path) -> Iterator[None]:
    """Make the folder of a file that is written in the block.

    Raises:
        BadInput: the file cannot be written.
        EnvironmentFault: the disk is full or fails.
    """
    try:
        with disk_errors(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            yield
    except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise BadInput(f"the file cannot be written: {error.strerror}", output, "choose another one") from error


@contextlib.contextmanager
def use(kind: str, path: Path) -> Iterator[Use]:
    """Yield what applies an exported file to images, through the program that others will use for it."""
    if kind == "space":
        from bloodcell.export.space import running

        with running(path) as ask:
            yield ask
    else:
        yield _applied(kind, path)


def _applied(kind: str, path: Path) -> Use:
    if kind == "safetensors":
        return _network(path)
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda images: np.asarray(session.run(["probabilities"], {"images": images})[0])
    if kind == "aot":
        from torch._inductor import aoti_load_package

        runner: Any = aoti_load_package(str(path))
    else:
        runner = torch.export.load(str(path)).module()
    return lambda images: np.asarray(runner(torch.from_numpy(images))[1].detach().numpy())


def about(classifier: Classifier) -> dict[str, str]:
    """Return what a user of the file must know beside it, as texts."""
    known = classifier.certainty
    return {
        "classes": json.dumps(classifier.classes),
        "input": "images: uint8 [n, height, width, 3], RGB; scaling and normalisation are inside",
        "output": "logits and calibrated probabilities, float32 [n, classes]",
        "temperature": repr(known.temperature),
        "uncertain_below": repr(known.threshold),
        "uncertain_note": "largest softmax(logits) below which an expert should look; nan: not known",
        "weights_sha256": classifier.weights,
    }


def _weights(classifier: Classifier, run: Path, target: Path) -> None:
    shutil.copyfile(run if run.is_file() else run / MODEL_FILE, target)


def _network(path: Path) -> Use:
    graph = Graph(open_classifier(path, "cpu"))

    def probabilities(images: Pixels) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(torch.softmax(graph(torch.from_numpy(images))[0], dim=1).numpy())

    return probabilities


def _traced(classifier: Classifier) -> torch.export.ExportedProgram:
    free = torch.export.Dim.DYNAMIC
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = torch.zeros(EXAMPLE, dtype=torch.uint8)
        shapes = {"images": {0: free, 1: free, 2: free}}
        return torch.export.export(Graph(classifier), (example,), dynamic_shapes=shapes)


def _program(classifier: Classifier, run: Path, target: Path) -> None:
    texts = {f"bloodcell_{name}": value for name, value in about(classifier).items()}
    torch.export.save(_traced(classifier), str(target), extra_files=texts)


def check_onnx() -> None:
    """Raise BadInput if a package that ONNX files need is not installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):  # the check needs the last one: better to say so now
        if importlib.util.find_spec(name) is None:
            raise BadInput(f"{name} is not installed", "--format onnx", "pip install 'bloodcell[export]'")


def _onnx(classifier: Classifier, run: Path, target: Path) -> None:
    check_onnx()
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            _traced(classifier),
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            output_names=["logits", "probabilities"],
        )
    assert made is not None
    model = made.model_proto
    for name, value in about(classifier).items():
        model.metadata_props.append(onnx.StringStringEntryProto(key=name, value=value))
    onnx.save(model, str(target))


def _compiled(classifier: Classifier, run: Path, target: Path) -> None:
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise EnvironmentFault("there is no C++ compiler", "--format aot", "install g++, or set CXX")
    from torch._inductor import aoti_compile_and_package

    aoti_compile_and_package(_traced(classifier), package_path=str(target))
