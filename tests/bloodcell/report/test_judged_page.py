"""The page of a run that was judged in full: every section, other sets, maps, weights that changed, its size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bloodcell.evaluation.judge import judge
from bloodcell.evaluation.predictions import Predictions, write_predictions
from bloodcell.evaluation.result import write_evaluation
from bloodcell.evaluation.shift import drop
from bloodcell.report import write_run_report
from bloodcell.report.charts import reliability, risk_coverage
from bloodcell.report.explained import MOST_BYTES, shown_errors
from bloodcell.report.files import WEIGHTS
from tests.bloodcell.evaluation.drawing import drawn, table, validation
from tests.bloodcell.report.written import EVIL, Page

JUDGED = ["calibration", "patients", "operating", "selective", "conformal", "groups"]
IMAGE = "data:image/jpeg;base64,AAAA"


def region(flagged: bool) -> dict[str, object]:
    """Figures of a region as an explanation holds them."""
    shares = {"area": 0.05, "map": 0.4, "ratio": 8.0, "changed": 0.5, "changed_low": 0.4, "changed_high": 0.6}
    return {**shares, "accuracy": 0.9, "accuracy_painted": 0.4, "flagged": flagged}


def explain(run: Path, weights: str, errors: int = 2) -> None:
    """Write an explanation of a run with a shortcut in one corner."""
    (run / "explanation").mkdir(exist_ok=True)
    found = {
        "weights": weights,
        "split": "test",
        "samples": 20,
        "regions": {"border": region(False), "lower right": region(True)},
        "sanity": {"passed": True, "correlation": 0.1, "limit": 0.5},
    }
    (run / "explanation" / "explanation.json").write_text(json.dumps(found))
    row = {"key": "test3", "true": EVIL, "predicted": "b", "probability": 0.9}
    pictures = {"picture": IMAGE, "map": IMAGE, "map_true": IMAGE}
    (run / "explanation" / "errors.json").write_text(json.dumps({"errors": [{**row, **pictures}] * errors}))


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """A run folder judged in full on its own set and on another one."""
    run = tmp_path / "run"
    run.mkdir()
    (run / WEIGHTS).write_bytes(b"weights")
    own, val = drawn(1, patients=20, temperature=3), validation(patients=20, temperature=3)
    sources = {int(i): f"clinic {int(i) % 2}" for i in own.ids}
    write_predictions(run / "predictions" / "test.parquet", own)
    write_evaluation(run / "evaluation.json", "test", judge(own, val, sources, resamples=50))
    write_evaluation(run / "evaluation.json", "val", judge(val, untuned="the validation split itself", resamples=50))
    other = drawn(2, rows=200, fingerprint="f01")
    place = run / "external" / "elsewhere"
    (place / "predictions").mkdir(parents=True)
    write_evaluation(place / "evaluation.json", "test", judge(other, val, resamples=50))
    quantities = {"sharpness": {"own": 3.5, "other": 1.25, "smd": -2.0, "ks": 0.75}}
    features = {"mmd2": 0.0625, "p": 0.002, "own": 100, "other": 90}
    told = {"left_out": {"mast": 4}, "quantities": quantities, "features": features, "drop": drop(own, other)}
    (place / "shift-test.json").write_text(json.dumps(told))
    return run


def test_every_section_of_the_evaluation_is_there(judged: Path) -> None:
    page = Page(write_run_report(judged, None))
    assert page.sections() == ["result-1", *JUDGED, "result-2", "examples", "others", "run"]
    result = json.loads((judged / "evaluation.json").read_text())["splits"]["test"]
    before, after = result["calibration"]["before"]["ece"]["value"], result["calibration"]["after"]["ece"]["value"]
    assert after < before
    assert f"{before:.3f}" in page.text
    assert f"{after:.3f}" in page.text
    for metric, title in (("macro_average_precision", "macro average precision"), ("macro_auroc", "macro AUROC")):
        assert f"{title} {result['metrics'][metric]['value']:.3f}" in page.text
    assert f"The worst of 2 with at least 20 images is {result['worst_groups']['source']['worst']['name']}" in page.text
    assert "specificity at least 95%" in page.text
    assert "LAC" in page.text
    assert "the blast fraction" in page.text
    assert len([svg for svg in page.all("svg") if svg.get("class") == "chart"]) >= 4
    assert all(f"#{name}" in [a.get("href") for a in page.all("a")] for name in JUDGED)


def test_every_table_scrolls_for_itself(judged: Path) -> None:
    """A phone shows the page without scrolling sideways: what is wide lies in a box that scrolls."""
    explain(judged, "")
    page = Page(write_run_report(judged, None))
    open_boxes, wrapped = 0, []
    depth: list[bool] = []
    for tag, attributes in page.tags_and_ends:
        if tag == "div":
            depth.append(attributes.get("class") == "scroll")
        elif tag == "/div":
            depth.pop()
        elif tag == "table":
            wrapped.append(any(depth))
        open_boxes = len(depth)
    assert open_boxes == 0
    assert len(wrapped) > 15
    assert all(wrapped)
    assert "@media print" in page.source
    assert "width=device-width" in page.source


def test_other_sets_show_what_is_lost_and_why(judged: Path) -> None:
    page = Page(write_run_report(judged, None))
    others = page.text[page.text.index("Other sets and orientations") :]
    assert "elsewhere" in others
    assert "mast 4" in others
    assert "sharpness 3.50 1.25 -2.00 0.75" in others
    assert "discrepancy 0.0625, p = 0.002" in others


def test_what_other_weights_made_is_left_out(judged: Path) -> None:
    explain(judged, "of other weights")
    (judged / "external" / "elsewhere" / "predictions" / "test.json").write_text('{"weights": "of other weights"}')
    page = Page(write_run_report(judged, None))
    assert "the test split was made by other weights" in page.text
    assert "explanation is of other weights" in page.text
    assert "Possible shortcut" not in page.text
    assert "sharpness" not in page.text
    facts = json.loads((judged / "report.json").read_text())
    assert facts["others"][0]["outdated"] == ["test"]
    assert not [row for row in (judged / "metrics.csv").read_text().splitlines() if row.startswith("external")]


def test_maps_and_shortcuts_stand_in_the_page(judged: Path) -> None:
    explain(judged, "")
    page = Page(write_run_report(judged, None))
    assert page.sections().index("explanation") == page.sections().index("examples") + 1
    assert "the network reacts to the lower right" in page.text
    assert "Possible shortcut: 50.0" in page.text
    assert len([image for image in page.all("img") if image["src"] == IMAGE]) == 6
    assert EVIL in page.text
    assert not page.all("script")


def test_pictures_of_an_explanation_stay_light_and_are_pictures(judged: Path) -> None:
    explain(judged, "", errors=3)
    path = judged / "explanation" / "errors.json"
    rows = json.loads(path.read_text())["errors"]
    rows[1]["map"] = "https://example.org/map.jpg"
    path.write_text(json.dumps({"errors": rows}))
    assert len(shown_errors(judged)) == 2
    rows[0]["map"] = IMAGE + "A" * MOST_BYTES
    path.write_text(json.dumps({"errors": rows}))
    assert shown_errors(judged) == []
    path.write_text("{")
    assert shown_errors(judged) == []


def test_many_classes_and_errors_stay_below_five_megabytes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    classes, rows = 120, 6000
    names = [f"class {i} {'long name ' * 4}" for i in range(classes)]
    logits = random.normal(size=(2 * rows, classes)).astype(np.float32)
    labels = random.integers(0, classes, 2 * rows).astype(np.int32)
    ids = np.arange(2 * rows)

    def part(kept: slice, split: str) -> Predictions:
        keys = [f"{split}{i}" for i in range(rows)]
        groups = [f"{split}-patient-{i % 400}" for i in range(rows)]
        return Predictions(ids[kept], keys, labels[kept], groups, logits[kept], names, "run", "set", split, "f00")

    many, val = part(slice(rows), "test"), part(slice(rows, None), "val")
    write_predictions(tmp_path / "predictions" / "test.parquet", many)
    write_evaluation(tmp_path / "evaluation.json", "test", judge(many, val, resamples=3))
    (tmp_path / "external" / "far").mkdir(parents=True)
    write_evaluation(tmp_path / "external" / "far" / "evaluation.json", "test", judge(many, val, resamples=3))
    explain(tmp_path, "", errors=500)
    assert write_run_report(tmp_path, None).stat().st_size < 5_000_000


def test_the_diagram_shows_bins_with_their_intervals_and_both_sides() -> None:
    own, val = drawn(1, temperature=3), validation(temperature=3)
    section = judge(own, val, resamples=50)["calibration"]
    curve = reliability(section)
    filled = [row for row in section["before"]["reliability"] if row["samples"]]
    assert curve.svg.count('class="spread"') == len(filled)
    assert [name for _, name, _ in curve.legend] == [
        "before scaling",
        "after scaling",
        "perfectly calibrated",
    ]
    alone = reliability(judge(own, resamples=5)["calibration"])
    assert len(alone.legend) == 2
    assert "nan" not in curve.svg


def test_the_risk_curve_bears_a_split_without_errors() -> None:
    right = table(np.eye(3)[np.arange(30) % 3] * 9, np.arange(30) % 3)
    curve = risk_coverage(judge(right, resamples=5)["selective"])
    assert "nan" not in curve.svg
    assert curve.legend[0][2] == "AURC 0.000"
