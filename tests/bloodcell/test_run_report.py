"""The run's report: what a reader must find, what may be missing, and names that could be code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from bloodcell.report import FILES, write_run_report
from bloodcell.report.curves import curves, read_metrics
from bloodcell.report.results import confusions, result_of
from shards.errors import BadInput
from shards.format import DatasetInfo, write_dataset
from tests.bloodcell.report.written import EVIL, Page, write_run, write_set


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A set and a run with everything: (run, set)."""
    root = tmp_path_factory.mktemp("finished")
    info = write_set(root / "set")
    return write_run(root / "run", root / "set", info), root / "set"


def test_shows_everything_that_a_run_holds(finished: tuple[Path, Path]) -> None:
    run, folder = finished
    path = write_run_report(run, folder)
    assert path == run / "report.html"
    assert path.stat().st_size < 5_000_000
    page = Page(path)
    assert page.sections() == ["result-1", "result-2", "examples", "curves", "data", "cost", "run"]
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
    assert page.sections() == ["result-1", "examples", "curves", "data", "cost", "run"]
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


def test_the_report_verb_finds_a_set_that_moved_and_refuses_another(tmp_path: Path) -> None:
    from jobs.cli import run_verb

    info = write_set(tmp_path / "packed")
    run = write_run(tmp_path / "run", tmp_path / "packed", info)
    (tmp_path / "packed").rename(tmp_path / "set")
    found, lines = run_verb("report", [str(run)])
    assert found == {name: str(run / file) for name, file in FILES.items()}
    assert lines[0] == f"report: {run / 'report.html'}"
    assert "data" not in Page(run / "report.html").sections()
    run_verb("report", [str(run), "--data", str(tmp_path / "set")])
    assert "data" in Page(run / "report.html").sections()
    write_dataset(tmp_path / "set", DatasetInfo(**{**vars(info), "fingerprint": "b" * 64}))
    with pytest.raises(BadInput, match="not the one of this result"):
        run_verb("report", [str(run), "--data", str(tmp_path / "set")])
    with pytest.raises(BadInput, match="no shard set here"):
        run_verb("report", [str(run), "--data", str(tmp_path / "nowhere")])
    with pytest.raises(BadInput, match="of that set alone"):
        run_verb("report", [str(tmp_path / "set"), "--data", str(tmp_path / "set")])
