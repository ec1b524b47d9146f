"""A small network in whole numbers: an ONNX file whose convolutions compute in int8, judged before it is called done.

Static quantisation by onnxruntime (QDQ): weights int8, a scale for each output channel; activations uint8, their
ranges taken from training images. What makes pixels into input stays in floating point, so only the network rounds.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from bloodcell.data.openset import OpenSet
from bloodcell.export.formats import about, place_for, write
from bloodcell.predict import Classifier
from bloodcell.runfolder import RunFolder
from shards.atomic import open_atomic
from shards.errors import BadInput

CALIBRATION = 200
"""Training images whose activations set the ranges."""

JUDGED = 2000
"""Images of a split that are judged at most, evenly spread."""

QUANTISED = ("Conv", "Gemm", "Add")
BATCH, ROUNDS = 16, 7


@dataclass(frozen=True)
class Share:
    """How many images of a split are right, by the run's network in floating point and in int8, of how many."""

    images: int
    float32: int
    int8: int
    alike: int


@dataclass(frozen=True)
class Int8Check:
    """What the comparison found.

    Attributes:
        splits: val and test, as far as the set has them.
        rates: images a second of the network's own size, 16 at once on one thread: float32 and int8, medians.
        ratio: int8 / float32, median of interleaved rounds.
        bytes: of both files.
        bound: percentage points that int8 may cost on all of them together: on few images one is a point and more.
    """

    splits: dict[str, Share]
    rates: tuple[float, float]
    ratio: float
    bytes: tuple[int, int]
    bound: float

    @property
    def lost(self) -> float:
        """Percentage points of accuracy that int8 costs; negative where it gains."""
        shares = self.splits.values()
        return 100 * sum(one.float32 - one.int8 for one in shares) / sum(one.images for one in shares)

    @property
    def passed(self) -> bool:
        """Whether no more is lost than the bound."""
        return self.lost <= self.bound


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # its package has no types
    """Hands training images to onnxruntime, one by one: they may differ in size."""

    def __init__(self, pictures: Iterator[np.ndarray]) -> None:
        self._pictures = pictures

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next image as the graph's input, None behind the last."""
        picture = next(self._pictures, None)
        return None if picture is None else {"images": picture[None]}


def write_int8(classifier: Classifier, run: Path, output: Path, bound: float) -> Int8Check:
    """Write a run as an int8 ONNX file, whole or not at all, and compare it with the same in floating point.

    Args:
        classifier: the run, on the CPU.
        run: its folder; its set must be at hand.
        output: the file.
        bound: percentage points of accuracy that may be lost on val and test together.

    Raises:
        BadInput: the set is not there, or has no val and test; the file cannot be written.
        EnvironmentFault: the disk is full or fails.
    """
    opened, fold = _set(run)
    with tempfile.TemporaryDirectory(prefix="bloodcell-int8-") as scratch:
        plain, small = Path(scratch) / "float.onnx", Path(scratch) / "int8.onnx"
        write(classifier, run, "onnx", plain)
        ids = _spread(opened.ids(opened.shards.split_name("train", fold)), CALIBRATION)
        _quantise(plain, small, (opened.image(int(sample)) for sample in ids))
        model = onnx.load(str(small))
        known = {prop.key for prop in model.metadata_props}
        notes = {"quantisation": f"int8 static QDQ, per channel, {len(ids)} training images", **about(classifier)}
        for name, value in notes.items():
            if name not in known:
                model.metadata_props.append(onnx.StringStringEntryProto(key=name, value=value))
        with place_for(output), open_atomic(output) as file:
            file.write(model.SerializeToString())
        return _compared(plain, output, opened, fold, classifier.config.data.size, bound)


def _set(run: Path) -> tuple[OpenSet, int]:
    if not run.is_dir():
        raise BadInput("a weights file knows no images to measure ranges on", run, "give the run's folder")
    config = RunFolder(run).config()
    try:
        return OpenSet(Path(config.data.set)), config.data.fold
    except BadInput as error:
        fix = "put the set back: int8 needs training images for its ranges and others to be judged"
        raise BadInput("the run's set is not at hand", config.data.set, fix) from error


def _quantise(source: Path, target: Path, pictures: Iterator[np.ndarray]) -> None:
    """Quantise what lies behind the first convolution: before it pixels are scaled, in double precision."""
    nodes = onnx.load(str(source)).graph.node
    first = next((place for place, node in enumerate(nodes) if node.op_type == "Conv"), None)
    if first is None:
        raise BadInput("the network has no convolution", "--int8", "export it without")
    chosen = [node.name for node in nodes[first:] if node.op_type in QUANTISED]
    logging.disable(logging.WARNING)  # it advises a step that the exporter has done: batch norms are folded
    try:
        quantize_static(
            str(source),
            str(target),
            _Calibration(pictures),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            nodes_to_quantize=chosen,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(logging.NOTSET)


def _compared(plain: Path, small: Path, opened: OpenSet, fold: int, size: int, bound: float) -> Int8Check:
    sessions = [_session(path) for path in (plain, small)]
    labels = opened.shards.index["label"]
    splits = {}
    for name in ("val", "test"):
        try:
            ids = _spread(opened.ids(opened.shards.split_name(name, fold)), JUDGED)
        except BadInput:
            continue
        if len(ids):
            splits[name] = _share(sessions, opened, ids, labels[ids])
    if not splits:
        raise BadInput("the set has neither val nor test", opened.shards.folder, "int8 is not judged on training")
    shown = np.random.default_rng(0).integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8)
    figures = _rates(sessions, shown)
    ratio = float(np.median([small / plain for plain, small in figures[1:]]))
    rates = [float(np.median(column)) for column in zip(*figures[1:], strict=True)]
    return Int8Check(splits, (rates[0], rates[1]), ratio, (plain.stat().st_size, small.stat().st_size), bound)


def _share(sessions: Sequence[Any], opened: OpenSet, ids: np.ndarray, labels: np.ndarray) -> Share:
    pictures = (opened.image(int(sample))[None] for sample in ids)
    said = np.array([[_apply(one, picture).argmax() for one in sessions] for picture in pictures])
    right = (said == labels[:, None]).sum(axis=0)
    return Share(len(ids), int(right[0]), int(right[1]), int((said[:, 0] == said[:, 1]).sum()))


def _rates(sessions: Sequence[Any], images: np.ndarray) -> list[list[float]]:
    """Return images a second of each, round by round, in turn."""
    figures = []
    for _ in range(ROUNDS):
        row = []
        for one in sessions:
            begin = time.process_time()
            _apply(one, images)
            row.append(len(images) / max(time.process_time() - begin, 1e-9))
        figures.append(row)
    return figures


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _apply(session: Any, images: np.ndarray) -> np.ndarray:
    return np.asarray(session.run(["probabilities"], {"images": images})[0])


def _spread(ids: np.ndarray, most: int) -> np.ndarray:
    return ids[np.linspace(0, len(ids) - 1, min(most, len(ids))).astype(np.int64)] if len(ids) else ids
