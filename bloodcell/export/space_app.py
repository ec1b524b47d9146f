"""The page of a Hugging Face Space: one cell image in, the probability of every class out; model.onnx does the rest.

This file stands alone: beside model.onnx it needs gradio, onnxruntime, numpy and pillow.
`python app.py` starts the page; `python app.py IMAGE...` answers here and prints a line of JSON for each image (`-`:
of those whose names stand on stdin).
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
MAX_PIXELS = 25_000_000
RESEARCH = "Research use only: not a medical device, not for diagnosis."


class Unusable(ValueError):  # noqa: N818 - it names the image
    """The file is no image that can be answered."""


@lru_cache(maxsize=1)
def network() -> tuple[Any, list[str], float]:
    """Return the graph, its classes, and the confidence below which an expert should look (nan: not known)."""
    session = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    return session, list(json.loads(about["classes"])), float(about["uncertain_below"])


def pixels(path: str) -> np.ndarray:
    """Return an image as RGB, uint8 [height, width, 3], turned as its EXIF says; alpha is dropped.

    Raises:
        Unusable: it is no image, is damaged, or has more than MAX_PIXELS.
    """
    try:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Unusable(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):  # 16-bit grey
                grey = (np.clip(np.asarray(image).astype(np.int64), 0, 65535) + 128) // 257
                return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
            if image.mode in ("RGBA", "LA", "PA") or (image.mode == "P" and "transparency" in image.info):
                return np.ascontiguousarray(np.asarray(image.convert("RGBA"))[..., :3])
            return np.asarray(image.convert("RGB"))
    except Unusable:
        raise
    except Exception as error:  # decoders raise many kinds of error on damaged files
        raise Unusable(f"the file is no image that can be read ({type(error).__name__})") from error


def answer(path: str) -> tuple[dict[str, float], bool | None]:
    """Return class -> calibrated probability of an image, and whether an expert should look (None: not known)."""
    session, classes, threshold = network()
    logits, probabilities = session.run(["logits", "probabilities"], {"images": pixels(path)[None]})
    plain = np.exp(logits[0].astype(np.float64) - logits[0].max())
    sure = float((plain / plain.sum()).max())
    return dict(
        zip(classes, probabilities[0].tolist(), strict=True)
    ), None if threshold != threshold else sure < threshold


def page() -> Any:
    """Return the Gradio page."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    def classify(path: str | None) -> tuple[dict[str, float], str]:
        if path is None:
            return {}, ""
        try:
            found, unsure = answer(path)
        except Unusable as problem:
            raise gr.Error(str(problem)) from problem
        said = {None: "Nothing is known of its certainty.", True: "**Uncertain: show to an expert.**", False: ""}
        return found, said[unsure]

    card = (HERE / "model_card.md").read_text(encoding="utf-8")
    with gr.Blocks(title="Blood cells", analytics_enabled=False) as blocks:
        gr.Markdown(f"# Blood cells\n{RESEARCH}\n\nGive the picture of a single cell.")
        with gr.Row():
            image = gr.Image(type="filepath", image_mode=None, label="Cell", sources=["upload", "clipboard"])
            with gr.Column():
                label = gr.Label(label="Probability of each class", num_top_classes=12)
                note = gr.Markdown()
        gr.Examples([str(path) for path in sorted((HERE / "examples").iterdir())], image, cache_examples=False)
        with gr.Accordion("Model card", open=False):
            gr.Markdown(card, latex_delimiters=[])
        image.change(classify, image, [label, note], api_name="classify")
    return blocks


def main(paths: list[str]) -> None:
    """Answer the images that are named, or start the page."""
    if not paths:
        page().launch()
    for path in (line.rstrip("\n") for line in sys.stdin) if paths == ["-"] else paths:
        try:
            found, unsure = answer(path)
            print(json.dumps({"file": path, "probabilities": found, "uncertain": unsure}), flush=True)
        except Unusable as problem:
            print(json.dumps({"file": path, "error": str(problem)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
