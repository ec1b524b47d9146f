"""A run as a folder that is a ready Hugging Face Space: the graph, a page that needs neither torch nor this package."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bloodcell.predict import Classifier
from bloodcell.report.card import RESEARCH, card_of
from shards.atomic import new_folder
from shards.errors import BadInput, CheckFailed
from shards.examplecells import draw_examples

NEEDS = ("onnxruntime>=1.22", "numpy>=2", "pillow>=11,<13")
"""What app.py imports besides Gradio, whose version the Space itself names."""

APP = "space_app.py"

README = """\
---
title: {quoted}
emoji: 🔬
colorFrom: purple
colorTo: red
sdk: gradio
sdk_version: {gradio}
app_file: app.py
pinned: false
---

# {title}

{research}

Give the picture of a single cell; the page names the probability of each of {count} classes ({classes}), calibrated
on the validation images of the run, and says when an expert should look. Every image is called one of them, also one
that shows none of them. What is known of the network stands in [model_card.md](model_card.md).

| file | what it is |
| --- | --- |
| `app.py` | the page; `python app.py IMAGE...` answers without it |
| `model.onnx` | the network with its preprocessing: RGB uint8 [n, height, width, 3] in, probabilities out |
| `model.safetensors` | the weights alone |
| `examples/` | drawn cells: nobody's blood |

Here: `pip install gradio=={gradio} -r requirements.txt`, then `python app.py`. As a Space: push this folder to the
Space's repository, `*.onnx`, `*.safetensors` and `*.png` through Git LFS (`.gitattributes` says so).
"""

ATTRIBUTES = "".join(f"*.{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in ("onnx", "safetensors", "png"))


def write_space(classifier: Classifier, run: Path, output: Path, one: Callable[[str, Path], None]) -> None:
    """Write the folder, whole or not at all.

    Args:
        classifier: the run, on the CPU.
        run: its folder, or a lone weights file.
        output: folder to make; an empty one may be there.
        one: writes the run in another format to a file.

    Raises:
        BadInput: Gradio is not installed, or the folder holds something.
        EnvironmentFault: the disk is full or fails.
    """
    try:
        gradio = version("gradio")
    except PackageNotFoundError as error:
        raise BadInput("Gradio is not installed", "--format space", "pip install 'bloodcell[app,export]'") from error
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput("exists and is not an empty folder", output, "give a new folder")
    title = f"Blood cells, {classifier.config.model.name}"
    names = {
        "title": title,
        "gradio": gradio,
        "research": RESEARCH,
        "count": len(classifier.classes),
        "quoted": json.dumps(title),
    }
    readme = README.format(**names, classes=", ".join(classifier.classes))
    with new_folder(output, durable=False, replace=True) as folder:
        for kind, name in (("onnx", "model.onnx"), ("safetensors", "model.safetensors")):
            one(kind, folder / name)
        shutil.copyfile(Path(__file__).with_name(APP), folder / "app.py")
        draw_examples(folder / "examples")
        texts = {"README.md": readme, "requirements.txt": "\n".join(NEEDS) + "\n", ".gitattributes": ATTRIBUTES}
        for name, text in {**texts, "model_card.md": card_of(run)}.items():
            (folder / name).write_text(text, encoding="utf-8")


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Run the Space's own app.py in an interpreter apart from this one; yield what asks it.

    That takes an image uint8 [1, height, width, 3], which travels as a PNG file, and gives float32 [1, classes].
    """
    words = [sys.executable, "-I", str(folder.resolve() / "app.py"), "-"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with (
        tempfile.TemporaryDirectory(prefix="bloodcell-space-") as scratch,
        subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=scratch, env=environment
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        asked, told = process.stdin, process.stdout

        def ask(images: np.ndarray) -> np.ndarray:
            file = Path(scratch) / "image.png"
            Image.fromarray(images[0]).save(file, compress_level=1)
            with contextlib.suppress(BrokenPipeError):
                asked.write(f"{file}\n")
                asked.flush()
            line = told.readline()
            said: dict[str, Any] = json.loads(line) if line else {"error": "it ended"}
            if "error" in said:
                raise CheckFailed(f"the Space's app.py does not answer: {said['error']}", folder, "do not use it")
            return np.array([list(said["probabilities"].values())], dtype=np.float32)

        try:
            yield ask
        finally:
            with contextlib.suppress(BrokenPipeError):
                asked.close()
            process.terminate()
