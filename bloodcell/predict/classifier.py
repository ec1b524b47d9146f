"""A trained network ready for use: images in, calibrated answers out."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from bloodcell.config import Config, decode
from bloodcell.data.pixels import Pixels
from bloodcell.engine.ddp import autocast
from bloodcell.engine.evaluate import MODEL_FILE, load_model
from bloodcell.engine.orientations import oriented_logits
from bloodcell.engine.resolve import resolve
from bloodcell.engine.setup import make_network, make_view
from bloodcell.evaluation.source import Source, digest
from bloodcell.models import weights
from bloodcell.predict.certainty import Certainty, certainty_of, unknown
from bloodcell.ranks import Ranks, choose_device, set_threads
from bloodcell.runfolder import RunFolder
from shards import images
from shards.errors import BadInput
from shards.images import UnusableImageError
from shards.parallel import mapped_ahead

Device = Literal["auto", "cpu", "cuda"]
ImageLike = str | os.PathLike[str] | bytes | np.ndarray | Image.Image
"""What predict() takes: a path, the bytes of an image file, RGB pixels uint8 [height, width, 3], or a PIL image."""

KEEP = 0.95
"""Share of the validation images that a network decides without a person, unless another is asked for."""

T = TypeVar("T")

ALONE = Ranks(0, 1, 0, 1, "single")


@dataclass(frozen=True, eq=False)
class Answer:
    """What a network says about one image, or why it says nothing.

    Attributes:
        label: the most likely class, "" without an answer.
        confidence: its calibrated probability.
        probabilities: class -> calibrated probability; empty without an answer.
        uncertain: whether a person should look; None if no threshold is known.
        plausible: classes that cannot be ruled out (a conformal set); None if that is not known.
        sha256: of the image's bytes; of its pixels' bytes where pixels were given.
        width, height: of the image, pixels; 0 without an answer.
        reason: why there is no answer, else "".
        logits: float32 [classes]; empty without an answer.
    """

    label: str
    confidence: float
    probabilities: dict[str, float]
    uncertain: bool | None
    plausible: list[str] | None
    sha256: str
    width: int
    height: int
    reason: str
    logits: np.ndarray


@dataclass(frozen=True, eq=False)
class Picture:
    """An image that was looked at: its pixels, or None and why there are none."""

    rgb: np.ndarray | None
    sha256: str
    reason: str = ""


class Classifier:
    """A trained network with all that using it needs; made by open_classifier().

    Attributes:
        config: of the run, resolved for this machine.
        classes: names, in the order of the logits.
        certainty: how far it is to be believed.
        weights: sha256 of its weights file.
        orientations: in how many of the eight orientations each image is shown.
    """

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        classes: list[str],
        certainty: Certainty,
        weights_digest: str,
        orientations: int,
        device: torch.device,
    ) -> None:
        self.config, self.classes, self.certainty = config, classes, certainty
        self.weights, self.orientations, self.device = weights_digest, orientations, device
        self.model = model.to(device).eval()
        self._threads = max(1, config.data.threads)
        self._pixels = Pixels(make_view(config), config.data.micro_batch, self._threads, device)

    def predict(self, images: Iterable[ImageLike]) -> list[Answer]:
        """Return one answer for each image, in order; an image that cannot be used gets its reason."""
        return list(self.stream(images, look))

    def stream(self, items: Iterable[T], see: Callable[[T], Picture]) -> Iterator[Answer]:
        """Yield one answer for each item, in order, while others are read ahead.

        Args:
            items: what `see` takes.
            see: returns the Picture of an item; it runs in threads and raises nothing.
        """
        batch: list[Picture] = []
        good = 0
        with ThreadPoolExecutor(self._threads) as pool:
            for picture in mapped_ahead(pool, see, items, 2 * self._pixels.batch):
                batch.append(picture)
                good += picture.rgb is not None
                if good == self._pixels.batch:
                    yield from self._answers(batch)
                    batch, good = [], 0
            yield from self._answers(batch)

    @property
    def batch(self) -> int:
        """Pictures that pass through the network at once."""
        return self._pixels.batch

    def shown(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """Return what the network sees, float32 [batch, 3, size, size], of 1 to `batch` pictures.

        Rows behind the last picture repeat it.
        """
        return self._pixels(pictures)

    def logits(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Return float32 [pictures, classes] of up to a batch of pictures, uint8 [height, width, 3] RGB."""
        if not pictures:
            return np.empty((0, len(self.classes)), dtype=np.float32)
        shown = self.shown(pictures)
        with torch.inference_mode(), autocast(self.device, self.config.engine.precision):
            found = oriented_logits(self.model, shown, self.orientations)
        return np.asarray(found[: len(pictures)].cpu().numpy())

    def _answers(self, pictures: Sequence[Picture]) -> Iterator[Answer]:
        logits = self.logits([picture.rgb for picture in pictures if picture.rgb is not None])
        probabilities = self.certainty.probabilities(logits)
        uncertain, plausible = self.certainty.uncertain(logits), self.certainty.plausible(logits)
        row = 0
        for picture in pictures:
            if picture.rgb is None:
                yield Answer("", 0.0, {}, None, None, picture.sha256, 0, 0, picture.reason, logits[:0].reshape(-1))
                continue
            named = dict(zip(self.classes, probabilities[row].tolist(), strict=True))
            best = self.classes[int(logits[row].argmax())]
            height, width = picture.rgb.shape[:2]
            yield Answer(
                label=best,
                confidence=named[best],
                probabilities=named,
                uncertain=None if uncertain is None else bool(uncertain[row]),
                plausible=None
                if plausible is None
                else [c for c, m in zip(self.classes, plausible[row], strict=True) if m],
                sha256=picture.sha256,
                width=width,
                height=height,
                reason="",
                logits=logits[row],
            )
            row += 1


def open_classifier(
    path: Path,
    device: Device = "auto",
    orientations: int = 1,
    keep: float = KEEP,
    batch: int | None = None,
    ranks: Ranks = ALONE,
) -> Classifier:
    """Open a run folder, or a lone model.safetensors (which knows nothing of its certainty).

    Args:
        path: the run folder or the weights file.
        device: auto, cpu or cuda.
        orientations: 1, 2, 4 or 8 views of each image, whose probabilities are averaged.
        keep: share of the validation images that shall not be called uncertain, in (0, 1].
        batch: images that pass through the network at once; None is the run's micro-batch.
        ranks: this process's place.

    Raises:
        BadInput: no run, not finished, damaged, or numbers that make no sense.
    """
    if not 0 < keep <= 1:
        raise BadInput(f"{keep} is no share", "keep", "give more than 0 and at most 1")
    if orientations not in (1, 2, 4, 8):
        raise BadInput(f"{orientations} orientations", "orientations", "choose 1, 2, 4 or 8")
    alone = path.is_file()
    stored = _stored(path) if alone else RunFolder(path).config()
    data = replace(stored.data, threads=0, micro_batch=batch or stored.data.micro_batch)
    engine = replace(stored.engine, device=device, threads=0, precision="fp32")
    config = resolve(replace(stored, engine=engine, data=data), ranks)
    set_threads(config.engine.threads)
    place = choose_device(ranks, config.engine.device)
    if alone:
        classes = list(json.loads(weights.read_metadata(path)["classes"]))
        model = make_network(config, len(classes))
        weights.load_weights(model, path, head="strict")
        certainty, file = unknown(keep, "a weights file knows no validation split; give its run folder"), path
    else:
        model, classes = load_model(RunFolder(path), config)
        file = path / MODEL_FILE
        certainty = _certainty(path, config, digest(file), orientations, keep)
    return Classifier(config, model, classes, certainty, digest(file), orientations, place)


def look(image: ImageLike) -> Picture:
    """Decode one image, fully and with the checks that packing makes."""
    try:
        if isinstance(image, np.ndarray | Image.Image):
            return _pixels_of(image)
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
    except OSError as error:
        return Picture(None, "", f"unreadable: {error.strerror}")
    return looked(data)


def looked(data: bytes) -> Picture:
    """Decode the bytes of an image file, fully and with the checks that packing makes."""
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        return Picture(images.decode(data)[0], sha256)
    except UnusableImageError as error:
        return Picture(None, sha256, f"{error.reason}: {error.detail}")


def _pixels_of(image: np.ndarray | Image.Image) -> Picture:
    if isinstance(image, Image.Image):
        with io.BytesIO() as file:
            image.save(file, "PNG")
            return looked(file.getvalue())
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        return Picture(None, "", f"pixels: uint8 [height, width, 3] is wanted, not {image.dtype} {list(image.shape)}")
    plain = np.ascontiguousarray(image)
    return Picture(plain, hashlib.sha256(plain.data).hexdigest())


def _stored(path: Path) -> Config:
    """Return the config in the metadata of a weights file that a run wrote."""
    about = weights.read_metadata(path)
    if about.get("format") != "bloodcell/1":
        raise BadInput("the file is no result of a run", path, "give a run folder or its model.safetensors")
    return decode(json.loads(about["config"]), path)


def _certainty(run: Path, config: Config, weights_digest: str, orientations: int, keep: float) -> Certainty:
    fold = config.data.fold
    split = "val" if fold < 0 else f"fold{fold}/val"
    wanted = Source(weights_digest, str(RunFolder(run).stored()["fingerprint"]), split, orientations)
    return certainty_of(run, run if orientations == 1 else run / f"tta{orientations}", wanted, keep)
