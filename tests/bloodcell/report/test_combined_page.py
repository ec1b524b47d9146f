"""The page of several runs judged as one: gain and members of an ensemble, fold by fold, leaks, missing pieces."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bloodcell.evaluation.combined import Combined, write_combined, write_told
from bloodcell.evaluation.ensemble import average, gain
from bloodcell.evaluation.judge import judge
from bloodcell.evaluation.paired import differences, measure
from bloodcell.evaluation.predictions import read_predictions, write_predictions
from bloodcell.evaluation.result import evaluate_predictions, write_evaluation
from bloodcell.report import write_combined_report
from shards.errors import BadInput
from shards.format import DatasetInfo
from tests.bloodcell.report.written import EVIL, Page, write_run, write_set


def pieces(tmp_path: Path, kind: str, leaks: int = 0) -> tuple[Path, Path, DatasetInfo]:
    """Write a set, two runs and the folder of their combination; return that folder, the set and its dataset.json."""
    info = write_set(tmp_path / "set", leaks=leaks)
    runs = [write_run(tmp_path / name, tmp_path / "set", info) for name in ("one", "two")]
    folder = tmp_path / f"{kind}-1234"
    names = [str(run) for run in runs]
    write_combined(
        folder, Combined(kind, names, ["1" * 64, "2" * 64], 1, str(tmp_path / "set"), "a" * 64, info.classes)
    )
    tables = [read_predictions(run / "predictions" / "test.parquet") for run in runs]
    tables[1] = replace(tables[1], logits=tables[1].logits[:, ::-1].copy())
    whole = average(tables, ["one", "two"], folder.name)
    validation = read_predictions(runs[0] / "predictions" / "val.parquet")
    write_predictions(folder / "predictions" / "test.parquet", whole)
    write_evaluation(folder / "evaluation.json", "test", judge(whole, validation, resamples=20))
    told: dict[str, Any] = {"kind": kind, "runs": ["one", "two"]}
    if kind == "ensemble":
        told |= gain(whole, tables, ["one", "two"])
        write_evaluation(folder / "evaluation.json", "val", judge(validation, resamples=5))
    else:
        alone = evaluate_predictions(whole, resamples=5)["metrics"]
        row = {"samples": 18, "groups": 18, "temperature": 1.25, "metrics": alone}
        told["folds"] = [{"fold": fold, "runs": [name], **row} for fold, name in enumerate(("one", "two"))]
        change = differences(measure(tables[0]), [measure(whole)], whole.classes)["overall"]
        told["calibrated"] = {"metrics": alone, "difference": change}
        write_evaluation(folder / "evaluation.json", "test-calibrated", judge(whole, resamples=5))
    write_told(folder, "test", told)
    return folder, tmp_path / "set", info


def test_an_ensemble_shows_members_and_gain(tmp_path: Path) -> None:
    folder, data, _ = pieces(tmp_path, "ensemble")
    page = Page(write_combined_report(folder, data))
    # The validation split went along for the calibration: it is no result.
    assert page.sections()[:3] == ["members", "result-1", "calibration"]
    assert page.sections()[-3:] == ["examples", "data", "run"]
    assert "result-2" not in page.sections()
    told = json.loads((folder / "together.json").read_text())["splits"]["test"]
    entry = told["gain"]["accuracy"]
    assert f"accuracy {entry['best']} {entry['over_best']['value']:+.4f}" in page.text
    assert f"{entry['over_best']['low']:+.4f} to {entry['over_best']['high']:+.4f}" in page.text
    for name in ("one", "two"):
        assert f"{name} cnn5 {told['members'][name]['accuracy'] * 100:.1f}" in page.text
    assert f"bloodcell evaluate {tmp_path / 'one'} {tmp_path / 'two'} --output {folder}" in page.text
    assert len(page.all("img")) > 3
    assert not page.all("script")
    assert EVIL in page.text
    assert not (folder / "model_card.md").exists()


def test_folds_show_each_fold_and_the_whole(tmp_path: Path) -> None:
    folder, data, _ = pieces(tmp_path, "folds")
    page = Page(write_combined_report(folder, data))
    assert page.sections()[:3] == ["members", "folds", "result-1"]
    assert "result-2" not in page.sections()
    assert "0 one 18 18" in page.text
    assert "1.250" in page.text
    assert "With each fold calibrated on its own validation part" in page.text
    assert "Folds together on smears" in page.source


def test_thin_classes_and_their_groups_are_told(tmp_path: Path) -> None:
    """Each class has twelve groups in a part; one class of a set that says it is thin is marked where it is judged."""
    folder, data, info = pieces(tmp_path, "folds")
    assert "few groups" not in Page(write_combined_report(folder, data)).text
    thin = {"name": "Pro", "images": 24, "groups": 1, "largest": "p1", "share": 1.0, "parts": {"val": 0, "test": 1}}
    stored = json.loads((data / "dataset.json").read_text())
    stored["split"]["thin_classes"] = [thin]
    (data / "dataset.json").write_text(json.dumps(stored))
    page = Page(write_combined_report(folder, data))
    assert "Pro few groups 12 12" in page.text
    assert "Class 'Pro' is one group: its figures say nothing about another patient or slide" in page.text
    assert info.classes[2] == "Pro"


@pytest.mark.parametrize("source", ["set", "member"])
def test_a_leak_stands_on_the_first_line(tmp_path: Path, source: str) -> None:
    folder, data, _ = pieces(tmp_path, "ensemble", leaks=1 if source == "set" else 0)
    if source == "member":
        told = json.loads((tmp_path / "two" / "config.json").read_text())
        (tmp_path / "two" / "config.json").write_text(json.dumps({**told, "leaks": True}))
    page = Page(write_combined_report(folder, data if source == "set" else None))
    main = page.text[page.text.index("bloodcell · ") - 200 : page.text.index("bloodcell · ")]
    assert "The set of these runs leaks" in main
    assert json.loads((folder / "report.json").read_text())["leaks"] is True


def test_data_beside_the_page_agree_with_the_evaluation(tmp_path: Path) -> None:
    folder, data, _ = pieces(tmp_path, "ensemble")
    write_combined_report(folder, data)
    facts = json.loads((folder / "report.json").read_text())
    assert facts["evaluation"] == json.loads((folder / "evaluation.json").read_text())["splits"]
    assert [member["weights"] for member in facts["members"]] == ["1" * 64, "2" * 64]
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = {(row["split"], row["metric"], row["class"]): row["value"] for row in csv.DictReader(file)}
    gained = facts["together"]["test"]["gain"]["accuracy"]["over_best"]["value"]
    assert float(rows["test", "together.gain.accuracy.over_best", ""]) == gained


def test_what_is_gone_is_left_out_and_what_is_none_is_refused(tmp_path: Path) -> None:
    folder, _, _ = pieces(tmp_path, "ensemble")
    (folder / "together.json").unlink()
    (tmp_path / "one" / "config.json").unlink()
    page = Page(write_combined_report(folder, None))
    assert "data" not in page.sections()
    assert "over the best" not in page.text
    (folder / "together.json").write_text("{")
    with pytest.raises(BadInput, match="evaluate the runs together again"):
        write_combined_report(folder, None)
    with pytest.raises(BadInput, match="no combined result here"):
        write_combined_report(tmp_path / "two", None)
