"""The run's report: what a reader must find, what may be missing, and names that could be code."""

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
import pytest
from PIL import Image, ImageDraw

from bloodcell.evaluation.predictions import Predictions, write_predictions
from bloodcell.evaluation.result import evaluate_predictions, write_evaluation
from bloodcell.report import write_run_report
from bloodcell.report.curves import curves, read_metrics
from bloodcell.report.results import confusions, result_of
from shards.errors import BadInput
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
    write_samples(folder, pa.Table.from_pylist(rows, schema=SAMPLES_SCHEMA))
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A set and a run with everything: (run, set)."""
    root = tmp_path_factory.mktemp("finished")
    info = write_set(root / "set")
    return write_run(root / "run", root / "set", info), root / "set"


class Page(HTMLParser):
    """What a browser would see: tags with attributes, and the text with single spaces."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.source = path.read_text(encoding="utf-8")
        self.pieces: list[str] = []
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", "".join(self.pieces))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every element of one kind."""
        return [attributes for name, attributes in self.tags if name == tag]

    def sections(self) -> list[str | None]:
        """Return the ids of the sections."""
        return [section.get("id") for section in self.all("section")]


def test_shows_everything_that_a_run_holds(finished: tuple[Path, Path]) -> None:
    run, folder = finished
    path = write_run_report(run, folder)
    assert path == run / "report.html"
    assert path.stat().st_size < 5_000_000
    page = Page(path)
    assert page.sections() == ["result-1", "result-2", "examples", "curves", "data", "run"]
    # 33 of 36 right; the lead names it with its interval, the validation split comes second.
    evaluation = json.loads((run / "evaluation.json").read_text())["splits"]["test"]
    low, high = (evaluation["metrics"]["accuracy"][key] * 100 for key in ("low", "high"))
    assert f"it was right in 91.7 % (95 % interval {low:.1f}–{high:.1f} %)" in page.text
    assert page.text.index("Test split 36 images") < page.text.index("Validation split 36 images")
    for said in (
        "cnn5 on smears",
        "bloodcell train cnn5 --data smears",
        "1,234,567",
        "3 min 12 s",
        "2.14.1",
        "data.size",
    ):
        assert said in page.text
    assert "on each of 2 ranks" in page.text
    assert "Research use only" in page.text
    assert "not finished" not in page.text
    assert len([svg for svg in page.all("svg") if svg.get("class") == "chart"]) == 4
    assert all(header.get("scope") for header in page.all("th"))


def test_surest_errors_come_first_with_their_images(finished: tuple[Path, Path]) -> None:
    page = Page(write_run_report(*finished))
    wrong = page.text[page.text.index("Wrong") : page.text.index("Right of each class")]
    assert re.findall(r"test_\d+", wrong) == ["test_0", "test_4", "test_3"]
    assert f"Benign → {EVIL}" in wrong
    assert "3 errors" in wrong
    assert len(page.all("img")) == 3 + 18
    assert all(image["alt"] for image in page.all("img"))


def test_fetches_and_runs_nothing(finished: tuple[Path, Path]) -> None:
    page = Page(write_run_report(*finished))
    assert EVIL in page.text
    assert not page.all("script")
    assert not page.all("link")
    assert not re.search(r"https?:|//\w|url\(|@import", re.sub(r'src="data:[^"]*"', "", page.source))
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert str(attributes.get("src", "data:image/jpeg;")).startswith("data:image/jpeg;")
        assert str(attributes.get("href", "#")).startswith("#")


def test_is_the_same_every_time(finished: tuple[Path, Path]) -> None:
    assert write_run_report(*finished).read_bytes() == write_run_report(*finished).read_bytes()


@pytest.mark.parametrize("source", ["set", "status", "config"])
def test_a_leak_stands_on_the_first_line(tmp_path: Path, source: str) -> None:
    info = write_set(tmp_path / "set", leaks=2 if source == "set" else 0)
    run = write_run(tmp_path / "run", tmp_path / "set", info, ("test",))
    if source in ("status", "config"):
        told = json.loads((run / f"{source}.json").read_text())
        (run / f"{source}.json").write_text(json.dumps({**told, "leaks": True}))
    page = Page(write_run_report(run, tmp_path / "set" if source == "set" else None))
    body = page.source[page.source.index("<main>") :]
    assert re.sub(r"<[^>]*>", "", body).strip().startswith("The set of this run leaks")
    assert [paragraph for paragraph in page.all("p") if paragraph.get("class") == "alarm"]


def test_without_the_set_images_are_named(finished: tuple[Path, Path]) -> None:
    page = Page(write_run_report(finished[0], None))
    assert "data" not in page.sections()
    assert not page.all("img")
    assert "test_0" in page.text
    assert "set was not at hand" in page.text


def test_another_set_is_not_shown_as_the_run_s_own(finished: tuple[Path, Path], tmp_path: Path) -> None:
    info = write_set(tmp_path / "other")
    write_dataset(tmp_path / "other", DatasetInfo(**{**vars(info), "fingerprint": "b" * 64}))
    page = Page(write_run_report(finished[0], tmp_path / "other"))
    assert "data" not in page.sections()
    assert not page.all("img")


def test_a_validation_split_alone_is_called_flattering(tmp_path: Path) -> None:
    info = write_set(tmp_path / "set")
    run = write_run(tmp_path / "run", tmp_path / "set", info, ("val",))
    page = Page(write_run_report(run, tmp_path / "set"))
    assert page.sections() == ["result-1", "examples", "curves", "data", "run"]
    assert "There is no result on a test split" in page.text


def test_bears_missing_pieces(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    page = Page(write_run_report(run, None))
    assert page.sections() == ["run"]
    assert "not been evaluated" in page.text
    (run / "status.json").write_text(json.dumps({"state": "training", "step": 3, "steps": 1000}))
    (run / "metrics.jsonl").write_text('{"step": 1, "train/loss": 0.5}\n{"step": 2, "train/loss": NaN}\n')
    page = Page(write_run_report(run, tmp_path / "nowhere"))
    assert page.sections() == ["curves", "run"]
    assert "at step 3 of 1,000" in page.text
    result = {"split": "test", "samples": 4, "classes": ["a", "b"], "metrics": {"accuracy": None}, "confusion": []}
    (run / "evaluation.json").write_text(json.dumps({"splits": {"test": result}}))
    assert "result-1" in Page(write_run_report(run, None)).sections()


def test_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no run here"):
        write_run_report(tmp_path / "nowhere", None)
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(BadInput, match="cannot be read"):
        write_run_report(tmp_path, None)
    (tmp_path / "status.json").write_text("[]")
    with pytest.raises(BadInput, match="holds no table"):
        write_run_report(tmp_path, None)


def test_many_classes_list_confusions_instead_of_a_matrix(tmp_path: Path) -> None:
    classes = [f"class {i}" for i in range(40)]
    confusion = np.diag(np.full(40, 9))
    confusion[3, 5], confusion[8, 1] = 4, 2
    result = {"samples": 366, "classes": classes, "metrics": {}, "confusion": confusion.tolist()}
    ready = result_of("test", result)
    assert ready["matrix"] == []
    assert [(item["true"], item["predicted"], item["count"]) for item in ready["confusions"]] == [
        ("class 3", "class 5", 4),
        ("class 8", "class 1", 2),
    ]
    (tmp_path / "evaluation.json").write_text(json.dumps({"splits": {"test": result}}))
    assert "Most common confusions" in write_run_report(tmp_path, None).read_text(encoding="utf-8")


def test_undefined_values_are_dashes() -> None:
    nothing = {"value": None, "low": None, "high": None}
    entry = {"support": 0, "recall": nothing, "precision": {"value": 0.5, "low": 0.25, "high": 0.75}}
    ready = result_of("test", {"classes": ["a"], "metrics": {"macro_f1": nothing}, "per_class": {"a": entry}})
    assert ready["macro_f1"] is None
    recall, precision = ready["per_class"]["rows"][0]["values"]
    assert (recall["text"], recall["interval"], recall["whisker"]) == ("–", "", "")
    assert (precision["text"], precision["interval"]) == ("50.0\u202f%", "25.0–75.0\u202f%")
    assert confusions([[0]], ["a"]) == []


def test_metrics_pass_over_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "val/accuracy": 0.5}\n7\n{"step": 2, "val/ac')
    records = read_metrics(path)
    assert records == [{"step": 1, "val/accuracy": 0.5}]
    assert [curve.title for curve in curves(records)] == ["On the validation split"]
    assert read_metrics(tmp_path / "none.jsonl") == []
