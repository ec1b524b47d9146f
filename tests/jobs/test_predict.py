"""`predict`: the pixels and logits of an evaluation, a row for every image whatever it is, and nothing done twice."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import bloodcell as package
from bloodcell.evaluation.predictions import read_predictions
from bloodcell.predict import inputs as listing
from bloodcell.predict import job
from shards.errors import BadInput
from tests.conftest import bloodcell, command
from tests.jobs.conftest import verb


def predict(run: Path, *arguments: object, output: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run the verb here; return its summary and the rows."""
    return verb("predict", run, *arguments, "--output", output, "--device", "cpu"), pq.read_table(output).to_pylist()


@pytest.fixture
def one(runs: Path) -> Path:
    """A finished run."""
    return runs / "one"


def pictures(drawn: Path, count: int) -> list[Path]:
    """Return some of the drawn images."""
    return sorted(drawn.rglob("*.jpg"))[:count] or sorted(drawn.rglob("*.png"))[:count]


def test_probabilities_are_those_of_the_evaluation(one: Path, drawn: Path, small_set: Path, tmp_path: Path) -> None:
    summary, rows = predict(one, drawn, output=tmp_path / "all.parquet")
    assert summary["images"] == summary["predicted"] == 240
    by_source = {str(Path(row["source"]).relative_to(drawn)): row for row in rows}
    test, classifier = read_predictions(one / "predictions" / "test.parquet"), package.load(one, device="cpu")
    table = package.open_set(small_set).table(columns=["key", "source", "split", "sha256"]).to_pylist()
    judged = dict(zip(test.keys, classifier.certainty.probabilities(test.logits), strict=True))
    met = {record["source"]: record["split"] for record in table}
    for record in table:
        row = by_source[record["source"]]
        assert (row["seen"], row["sha256"]) == (met[record["source"]], record["sha256"])
        if record["key"] in judged:
            given = [row[f"p_{name}"] for name in test.classes]
            np.testing.assert_allclose(given, judged[record["key"]], atol=1e-6)
            assert row["prediction"] == test.classes[int(judged[record["key"]].argmax())]
    assert summary["seen"]["train"] == sum(record["split"] == "train" for record in table)
    share = [row["uncertain"] for row in rows if row["seen"] == "val"]
    assert np.mean(share) <= 0.05 + 1 / len(share)


def test_the_pixels_are_those_of_the_readers(one: Path, small_set: Path) -> None:
    from dataclasses import replace

    import torch

    from bloodcell.data.loader import Loader, evaluation_requests
    from bloodcell.data.order import EvaluationOrder
    from bloodcell.data.pixels import Pixels
    from bloodcell.data.policies import POLICIES
    from bloodcell.data.shardset import ShardSet
    from bloodcell.engine.setup import make_view
    from bloodcell.runfolder import RunFolder
    from shards.images import decode

    shards = ShardSet.open(small_set)
    view = replace(make_view(RunFolder(one).config()), policy=POLICIES["none"], size=40)
    order = EvaluationOrder(np.array([[0, 21]]), 8)
    opened = package.open_set(small_set)
    with Loader(shards, evaluation_requests(order, 1, 0), view, 8, 1, torch.device("cpu")) as loader:
        pixels = Pixels(view, 8, 1, torch.device("cpu"))
        for batch in loader:
            ids = batch.request.ids[batch.request.valid]
            mine = pixels([decode(opened.bytes(int(sample)))[0] for sample in ids])
            assert torch.equal(mine[: len(ids)], batch.images[: len(ids)])


def plant(folder: Path, whole: bytes) -> dict[str, str]:
    """Put files that cannot be used into a folder; return name -> what the reason begins with."""
    odd = io.BytesIO()
    Image.new("P", (9, 9)).save(odd, "GIF")
    bad = {
        "empty.jpg": b"",
        "text.png": b"no image at all",
        "short.jpg": whole[: len(whole) // 2],
        "head.jpg": whole[:20],
        "gif.gif": odd.getvalue(),
        "zeros.bmp": bytes(5000),
        "with blank \n and ü.jpg": b"\xff\xd8\xff",
    }
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "notes.txt").write_text("no image, and not named like one")
    return dict.fromkeys([*bad, "pipe.jpg", "gone.jpg", "loop.jpg"], "") | {"pipe.jpg": "not a file"}


def test_every_bad_file_is_a_row_with_its_reason(one: Path, drawn: Path, tmp_path: Path) -> None:
    good = pictures(drawn, 19)
    folder = tmp_path / "mixed"
    folder.mkdir()
    for path in good:
        shutil.copy(path, folder / f"{path.parent.name}-{path.name}")
    Image.open(good[0]).save(folder / "whole.jpg", quality=95)
    planted = plant(folder, (folder / "whole.jpg").read_bytes())
    summary, rows = predict(one, folder, output=tmp_path / "mixed.parquet")
    refused = {Path(row["source"]).name: row["reason"] for row in rows if row["reason"]}
    assert set(refused) == set(planted)
    assert all(refused[name].startswith(reason) for name, reason in planted.items())
    assert (summary["predicted"], summary["refused"], summary["passed_over"]) == (20, len(planted), 1)
    assert all(row["prediction"] is None and row["p_pro"] is None for row in rows if row["reason"])
    alone = predict(one, *good, output=tmp_path / "alone.parquet")[1]
    known = {row["sha256"]: row["confidence"] for row in rows}
    assert all(known[row["sha256"]] == row["confidence"] for row in alone), "neighbours change nothing"


@pytest.mark.realdata
def test_650_real_images_are_right_beside_20_bad_files(one: Path, real_data: Path, tmp_path: Path) -> None:
    cells = sorted((real_data / "raabin5").rglob("*.jpg"))
    assert len(cells) == 650
    planted: dict[str, str] = {}
    for name in ("first", "second"):
        folder = tmp_path / "bad" / name
        folder.mkdir(parents=True)
        planted |= {str(folder / bad): reason for bad, reason in plant(folder, cells[0].read_bytes()).items()}
    summary, rows = predict(one, real_data / "raabin5", tmp_path / "bad", output=tmp_path / "all.parquet")
    assert (summary["images"], summary["predicted"], summary["refused"]) == (670, 650, 20)
    good = {row["source"]: row for row in rows if row["reason"] is None}
    bad = {row["source"]: row["reason"] for row in rows if row["reason"] is not None}
    assert set(good) == {str(path) for path in cells}
    assert set(bad) == set(planted)
    assert all(bad[name] and bad[name].startswith(reason) for name, reason in planted.items())
    for path in cells:
        assert good[str(path)]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    classifier = package.load(one, device="cpu")
    for path, answer in zip(cells[::20], classifier.predict(cells[::20]), strict=True):
        row = good[str(path)]
        assert (row["prediction"], row["width"], row["height"]) == (answer.label, answer.width, answer.height)
        given = [row[f"p_{name}"] for name in classifier.classes]
        np.testing.assert_allclose(given, [answer.probabilities[name] for name in classifier.classes], atol=1e-6)


def test_tars_tables_lists_and_stdin_name_the_same_images(one: Path, drawn: Path, tmp_path: Path) -> None:
    paths = pictures(drawn, 12)
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        for number, path in enumerate(paths):
            tar.add(path, f"cells/{number:02}{path.suffix}")
            tar.add(__file__, f"cells/{number:02}.json")
    (tmp_path / "some.csv").write_text("file,age\n" + "".join(f"{path},7\n" for path in paths))
    text = "".join(f"{path}\n" for path in paths)
    (tmp_path / "some.txt").write_text(text)
    plain = [row["confidence"] for row in predict(one, *paths, output=tmp_path / "plain.parquet")[1]]
    for number, words in enumerate(
        ([tmp_path / "some.tar"], [tmp_path / "some.csv"], ["--list", tmp_path / "some.txt"])
    ):
        rows = predict(one, *words, output=tmp_path / f"{number}.parquet")[1]
        assert [row["confidence"] for row in rows] == plain
    piped = subprocess.run(
        command("predict", one, "-", "--output", tmp_path / "piped.jsonl", "--device", "cpu", ranks=2),
        input=text.encode(),
        capture_output=True,
        check=False,
    )
    assert piped.returncode == 0, piped.stderr.decode()
    lines = [json.loads(line) for line in (tmp_path / "piped.jsonl").read_text().splitlines()]
    assert [line["confidence"] for line in lines] == plain
    predict_csv = verb("predict", one, *paths, "--output", tmp_path / "plain.csv", "--device", "cpu")
    with Path(predict_csv["output"]).open() as file:
        assert [float(row["confidence"]) for row in csv.DictReader(file)] == plain
    assert max(lines[0]["probabilities"].values()) == plain[0]


def test_what_was_done_before_a_stop_is_not_done_again(
    one: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "CHUNK", 16)
    whole = predict(one, drawn, output=tmp_path / "whole.parquet")[1]
    looked: list[bytes] = []

    def see(entry: listing.Entry) -> Any:
        looked.append(entry.path)
        if len(looked) == 100:
            raise KeyboardInterrupt
        return job.looked(entry.read())

    monkeypatch.setattr(job, "_see", see)
    with pytest.raises(KeyboardInterrupt):
        predict(one, drawn, output=tmp_path / "again.parquet")
    done = sorted((tmp_path / "again.parquet.parts").glob("0*.parquet"))
    assert 3 <= len(done) <= 6
    assert not (tmp_path / "again.parquet").exists()
    with pytest.raises(BadInput, match="begun with other inputs"):
        predict(one, *pictures(drawn, 3), output=tmp_path / "again.parquet")
    summary, rows = predict(one, drawn, output=tmp_path / "again.parquet")
    assert len(looked) < 100 + 240 - 16 * (len(done) - 1) + 40
    assert summary["images"] == 240
    assert rows == whole
    assert not (tmp_path / "again.parquet.parts").exists()


@pytest.mark.slow
def test_killed_and_started_again_the_table_is_whole(one: Path, drawn: Path, tmp_path: Path) -> None:
    paths = pictures(drawn, 240) * 26
    (tmp_path / "many.txt").write_text("".join(f"{path}\n" for path in paths))
    words = ("predict", one, "--list", tmp_path / "many.txt", "--output", tmp_path / "many.csv", "--device", "cpu")
    process = subprocess.Popen(command(*words), stderr=subprocess.DEVNULL)
    parts = tmp_path / "many.csv.parts"
    while len(list(parts.glob("0*.parquet"))) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "many.csv").exists()
    done = bloodcell(*words)
    assert done.code == 0, done.err
    assert "chunks were done before" in done.err
    with (tmp_path / "many.csv").open() as file:
        assert [row["source"] for row in csv.DictReader(file)] == [str(path) for path in paths]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{drawn}", "--output", "{tmp}/a.xlsx"], "no format '.xlsx'"),
        (["{drawn}", "--output", "{tmp}/there.csv"], "the file exists"),
        (["--output", "{tmp}/a.csv"], "no images are named"),
        (["{tmp}/nothing", "--output", "{tmp}/a.csv"], "no such file or folder"),
        (["{tmp}", "--output", "{tmp}/a.csv"], "no images: none of 1 files"),
        (["{drawn}", "--output", "{tmp}/a.csv", "--keep", "0"], "0.0 is no share"),
        (["{drawn}", "--output", "{tmp}/a.csv", "--batch", "0"], "0 will not do"),
        (["{drawn}", "--output", "{tmp}/there.csv/a.csv"], "the table cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    one: Path, drawn: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    (tmp_path / "there.csv").write_text("mine")
    with pytest.raises(BadInput, match=said):
        verb("predict", one, *(word.format(drawn=drawn, tmp=tmp_path) for word in words))
    assert [path.name for path in tmp_path.iterdir()] == ["there.csv"]


def test_a_run_without_weights_is_named(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no run here"):
        verb("predict", tmp_path, drawn, "--output", tmp_path / "a.csv")


def test_from_python_images_come_in_any_form(one: Path, drawn: Path) -> None:
    path = pictures(drawn, 1)[0]
    with Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB"))
        answers = package.load(one, device="cpu").predict([path, path.read_bytes(), rgb, image, b"", rgb[..., :2]])
    probabilities = [answer.probabilities for answer in answers[:4]]
    assert all(found == probabilities[0] for found in probabilities)
    assert sum(probabilities[0].values()) == pytest.approx(1)
    assert answers[0].plausible is not None
    assert answers[0].label in answers[0].plausible
    assert [bool(answer.reason) for answer in answers] == [False] * 4 + [True] * 2


def test_weights_alone_answer_but_know_nothing_of_their_certainty(one: Path, drawn: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(one / "model.safetensors", tmp_path / "model.safetensors"))
    path = pictures(drawn, 1)[0]
    lone, run = (package.load(place, device="cpu").predict([path])[0] for place in (file, one))
    np.testing.assert_array_equal(lone.logits, run.logits)
    assert (lone.uncertain, lone.plausible) == (None, None)
