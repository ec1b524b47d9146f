"""report.json and metrics.csv: the same facts as evaluation.json, nothing lost, nothing twice; cost by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from bloodcell.evaluation.judge import judge
from bloodcell.evaluation.result import write_evaluation
from bloodcell.report import write_run_report
from bloodcell.report.cost import CORE_WATTS, board_watts, cost
from bloodcell.report.facts import COLUMNS, metric_rows
from tests.bloodcell.evaluation.drawing import drawn, validation
from tests.bloodcell.report.written import CLASSES, EVIL, write_run, write_set


def entries(value: Any) -> int:
    """How many {value, low, high} there are anywhere in a value."""
    if isinstance(value, dict):
        return int({"value", "low", "high"} <= value.keys()) + sum(entries(inner) for inner in value.values())
    return sum(entries(inner) for inner in value) if isinstance(value, list) else 0


def test_json_and_csv_say_what_the_evaluation_says(tmp_path: Path) -> None:
    info = write_set(tmp_path / "set")
    run = write_run(tmp_path / "run", tmp_path / "set", info)
    sources = {int(i): f"clinic, {int(i) % 2}" for i in range(300)}
    result = judge(drawn(1, patients=25), validation(), sources, resamples=20)
    write_evaluation(run / "evaluation.json", "test", result)
    write_run_report(run, tmp_path / "set")
    evaluation = json.loads((run / "evaluation.json").read_text())["splits"]
    facts = json.loads((run / "report.json").read_text())
    assert facts["evaluation"] == evaluation
    assert (facts["schema"], facts["kind"], facts["model"]) == ("bloodcell/report/1", "run", "cnn5")
    assert facts["set"]["fingerprint"] == info.fingerprint
    assert facts["set"]["samples"] == info.samples
    with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == entries(evaluation)
    found = {(row["split"], row["metric"], row["class"]): row for row in rows}
    assert len(found) == len(rows), "no two rows have one name"
    accuracy = evaluation["test"]["metrics"]["accuracy"]
    assert {key: float(found["test", "accuracy", ""][key]) for key in accuracy} == accuracy
    recall = evaluation["val"]["per_class"][EVIL]["recall"]
    assert float(found["val", "recall", EVIL]["value"]) == recall["value"]
    ece = evaluation["test"]["calibration"]["after"]["ece"]
    assert float(found["test", "calibration.after.ece", ""]["high"]) == ece["high"]
    point = evaluation["test"]["operating_points"]["per_class"]["a"]["points"][0]["sensitivity"]
    named = found["test", "operating_points.points.specificity 0.95.sensitivity", "a"]
    assert float(named["value"]) == point["value"]
    worst = evaluation["test"]["worst_groups"]["source"]["rows"][0]
    named = found["test", f"worst_groups.source.rows.{worst['name']}.accuracy", ""]
    assert float(named["value"]) == worst["accuracy"]["value"]


def test_undefined_figures_are_empty_cells() -> None:
    result = {"metrics": {"macro_auroc": {"value": None, "low": None, "high": None}}}
    assert list(metric_rows({"evaluation": {"test": result}})) == [("test", "macro_auroc", "", None, None, None)]


def test_facts_are_the_same_every_time(tmp_path: Path) -> None:
    info = write_set(tmp_path / "set")
    run = write_run(tmp_path / "run", tmp_path / "set", info)
    files = ("report.json", "metrics.csv", "model_card.md")
    write_run_report(run, tmp_path / "set")
    before = [(run / name).read_bytes() for name in files]
    write_run_report(run, tmp_path / "set")
    assert [(run / name).read_bytes() for name in files] == before
    assert json.loads(before[0])["classes"] == CLASSES


@pytest.mark.parametrize(
    ("device", "watts"),
    [
        ("NVIDIA H200", 700),
        ("NVIDIA H100 80GB HBM3", 700),
        ("NVIDIA H100 PCIe", 350),
        ("NVIDIA A100-SXM4-40GB", 400),
        ("NVIDIA A100-PCIE-40GB", 250),
        ("Tesla T4", 70),
        ("NVIDIA L4", 72),
        ("NVIDIA L40S", 350),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("Some GPU of 2031", None),
    ],
)
def test_power_limits_are_those_of_whole_known_boards(device: str, watts: float | None) -> None:
    assert board_watts(device) == watts


def test_cost_is_wall_times_devices() -> None:
    """Two hours on two H200, each rank with two threads that launch and six that decode."""
    machine = {"device": "NVIDIA H200", "world": 2, "threads": {"torch": 2, "loader": 6}}
    found = cost({"wall_seconds": 7200.0, "world": 2}, machine)
    assert found is not None
    assert (found["gpu_hours"], found["core_hours"]) == (4.0, 32.0)
    assert found["energy"]["kwh"] == pytest.approx((4 * 700 + 32 * CORE_WATTS) / 1000)
    assert "estimated, not measured" in found["energy"]["assumption"]
    alone = cost({"wall_seconds": 3600}, {"device": "cpu", "world": 1, "threads": {"torch": 4, "loader": 1}})
    assert alone is not None
    assert (alone["gpu_hours"], alone["core_hours"], alone["energy"]["kwh"]) == (0.0, 4.0, 0.04)


@pytest.mark.parametrize("machine", [{}, {"device": "Some GPU of 2031", "threads": {"torch": 1, "loader": 1}}])
def test_energy_that_is_not_known_is_not_told(machine: dict[str, Any]) -> None:
    found = cost({"wall_seconds": 60.0}, machine)
    assert found is not None
    assert found["energy"] is None
    assert cost({}, machine) is None
