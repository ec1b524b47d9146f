"""Sets and runs that are written without training, for the tests of the reports; and a page as a browser sees it."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from bloodcell.evaluation.predictions import Predictions, write_predictions
from bloodcell.evaluation.result import evaluate_predictions, write_evaluation
from shards.format import SAMPLES_SCHEMA, DatasetInfo, ShardInfo, read_samples, write_dataset, write_samples
from shards.tar import ShardWriter

EVIL = "<script>alert(1)</script>"
CLASSES = ["Benign", EVIL, "Pro"]
PER_CLASS = 12
SIDE = 64


def write_set(folder: Path, leaks: int = 0, classes: list[str] | None = None) -> DatasetInfo:
    """Write a shard set with the parts val and test: a disc of another size for each class."""
    classes = classes or CLASSES
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    shards = []
    for place, part in enumerate(("val", "test")):
        first = len(rows)
        with ShardWriter(folder / f"{part}-000000.tar") as writer:
            for number in range(PER_CLASS * len(classes)):
                label, buffer = number % len(classes), io.BytesIO()
                image = Image.new("RGB", (SIDE, SIDE), (240, 225, 215))
                ImageDraw.Draw(image).ellipse((10, 10, 40 + 4 * label, 41 + number % 9), fill=(110, 60 + number, 150))
                image.save(buffer, "PNG")
                data, key = buffer.getvalue(), f"{part}_{number}"
                offset = writer.add(key, [("png", data), ("cls", str(label).encode())])[0].offset
                named = {"key": key, "split": part, "label": label, "class": classes[label], "group": f"{part}{number}"}
                place_ = {"shard": place, "offset": offset, "size": len(data), "source": f'{EVIL}/"{key}.png'}
                kind = {"width": SIDE, "height": SIDE, "mode": "RGB", "format": "PNG", "crc32": zlib.crc32(data)}
                rows.append({**named, **place_, **kind, "sha256": hashlib.sha256(data).hexdigest()})
            done = writer.close()
        shards.append(ShardInfo(f"{part}-000000.tar", part, done.samples, done.bytes, done.sha256, first))
    write_samples(folder, [pa.RecordBatch.from_pylist(rows, schema=SAMPLES_SCHEMA)], len(rows))
    info = DatasetInfo(
        classes=classes,
        shards=shards,
        splits={part: [f"{part}-000000.tar"] for part in ("val", "test")},
        samples={part: dict.fromkeys(classes, PER_CLASS) for part in ("val", "test")},
        split={"fractions": {"val": 0.5, "test": 0.5}},
        audit={"leaks": leaks, "method": "pixels"},
        options={"source": "smears"},
        images_in=len(rows),
        rejected=0,
        fingerprint="a" * 64,
    )
    write_dataset(folder, info)
    return info


def predict(folder: Path, info: DatasetInfo, run: Path, split: str) -> None:
    """Write predictions and metrics of a split: right but for three images, one of them quite surely wrong."""
    table = read_samples(folder)
    rows = [(i, row) for i, row in enumerate(table.to_pylist()) if row["split"] == split]
    labels = np.array([row["label"] for _, row in rows], dtype=np.int32)
    logits = np.random.default_rng(0).normal(0, 0.1, (len(rows), len(info.classes))).astype(np.float32)
    logits[np.arange(len(rows)), labels] += 3
    for number, strength in ((0, 9.0), (3, 4.0), (4, 5.0)):
        logits[number, (labels[number] + 1) % len(info.classes)] += strength
    predictions = Predictions(
        np.array([i for i, _ in rows], dtype=np.int64),
        [row["key"] for _, row in rows],
        labels,
        [row["group"] for _, row in rows],
        logits,
        info.classes,
        run.name,
        "smears",
        split,
        info.fingerprint,
    )
    write_predictions(run / "predictions" / f"{split}.parquet", predictions)
    write_evaluation(run / "evaluation.json", split, evaluate_predictions(predictions, resamples=50))


def write_run(run: Path, folder: Path, info: DatasetInfo, splits: tuple[str, ...] = ("val", "test")) -> Path:
    """Write what a finished run leaves behind."""
    run.mkdir(parents=True)
    config = {"model": {"name": "cnn5", "weights": "none"}, "data": {"set": str(folder), "size": 64}}
    stored = {"config": config, "recipe": "cnn5", "fingerprint": info.fingerprint, "leaks": info.leaks}
    (run / "config.json").write_text(json.dumps(stored))
    machine = {"python": "3.12.1", "versions": {"torch": "2.14.1"}, "world": 2}
    (run / "environment.json").write_text(json.dumps(machine))
    status = {
        "state": "done",
        "outcome": {"code": 0, "what": "finished"},
        "step": 40,
        "steps": 40,
        "command": "bloodcell train cnn5 --data smears --train.epochs 4",
        "parameters": 1_234_567,
        "wall_seconds": 192.3,
        "images_per_s": 61.4,
    }
    (run / "status.json").write_text(json.dumps(status))
    with open(run / "metrics.jsonl", "w") as file:
        for step in range(1, 41):
            values = {"train/loss": 2 / step, "train/lr": 1e-3 / step, "train/images_per_s": 60.0}
            file.write(json.dumps({"step": step, "epoch": step / 10, "time": 0.0, **values}) + "\n")
            if step % 10 == 0:
                values = {"val/loss": 1 / step, "val/accuracy": 1 - 1 / step, "val/macro_f1": 1 - 2 / step}
                file.write(json.dumps({"step": step, "epoch": step / 10, "time": 0.0, **values}) + "\n")
        file.write('{"step": 41, "epo')
    for split in splits:
        predict(folder, info, run, split)
    return run


class Page(HTMLParser):
    """What a browser would see: tags with attributes, and the text with single spaces."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tags_and_ends: list[tuple[str, dict[str, str | None]]] = []
        self.source = path.read_text(encoding="utf-8")
        self.pieces: list[str] = []
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", "".join(self.pieces))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.tags_and_ends.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.pieces.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self.tags_and_ends.append((f"/{tag}", {}))

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every element of one kind."""
        return [attributes for name, attributes in self.tags if name == tag]

    def sections(self) -> list[str | None]:
        """Return the ids of the sections."""
        return [section.get("id") for section in self.all("section")]
