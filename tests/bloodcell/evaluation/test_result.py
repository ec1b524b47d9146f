"""The result of an evaluation: the promised schema, JSON-native, byte-stable, readable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bloodcell.evaluation import result
from bloodcell.evaluation.predictions import Predictions
from bloodcell.evaluation.result import evaluate_predictions, table, write_evaluation
from shards.errors import BadInput, Fault

CLASSES = ["a", "b", "absent"]


def predictions(rows: int = 120, group_size: int = 4, split: str = "test", noise: float = 1.0) -> Predictions:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, rows).astype(np.int32)
    logits = (random.normal(size=(rows, 3)) * noise + np.eye(3)[labels] * 3).astype(np.float32)
    return Predictions(
        np.arange(rows),
        [f"k{i}" for i in range(rows)],
        labels,
        [f"p{i // group_size}" for i in range(rows)] if group_size > 1 else [""] * rows,
        logits,
        CLASSES,
        "run",
        "set",
        split,
        "f00",
    )


def test_the_schema() -> None:
    found = evaluate_predictions(predictions())
    assert list(found) == [
        *("run", "data", "split", "samples", "groups", "classes", "metrics", "per_class", "confusion", "interval")
    ]
    assert (found["run"], found["data"], found["split"], found["samples"], found["groups"]) == (
        *("run", "set", "test"),
        *(120, 30),
    )
    assert list(found["metrics"]) == list(result.OVERALL)
    for entry in found["metrics"].values():
        assert list(entry) == ["value", "low", "high"]
        assert entry["low"] <= entry["value"] <= entry["high"]
    assert list(found["per_class"]) == CLASSES
    assert sum(entry["support"] for entry in found["per_class"].values()) == 120
    assert np.sum(found["confusion"]) == 120
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(np.trace(found["confusion"]) / 120, abs=1e-9)
    assert found["interval"]["level"] == 0.95
    assert (found["interval"]["resamples"], found["interval"]["seed"]) == (2000, 0)
    assert found == json.loads(json.dumps(found, allow_nan=False))


def test_undefined_is_null() -> None:
    absent = evaluate_predictions(predictions(noise=0.1))["per_class"]["absent"]
    nothing = {"value": None, "low": None, "high": None}
    assert absent["recall"] == absent["auroc"] == absent["precision"] == absent["f1"] == nothing
    assert absent["specificity"]["value"] == 1


def test_one_sample_and_one_class_give_a_result() -> None:
    found = evaluate_predictions(predictions(rows=1))
    assert found["metrics"]["mcc"]["value"] is None
    assert found["metrics"]["macro_auroc"]["value"] is None
    assert found["metrics"]["nll"]["low"] is None
    assert found["metrics"]["accuracy"]["high"] - found["metrics"]["accuracy"]["low"] > 0.7


def test_equal_predictions_give_equal_bytes_beside_other_splits(tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    for path, order in ((one, ("test", "val")), (two, ("val", "test", "test"))):
        for split in order:
            write_evaluation(path, split, evaluate_predictions(predictions(split=split), resamples=100))
    assert one.read_bytes() == two.read_bytes()
    content = json.loads(one.read_text())
    assert content["schema"] == "bloodcell/evaluation/1"
    assert list(content["splits"]) == ["test", "val"]


def test_another_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    for text in ("{", "[]", '{"schema": "bloodcell/evaluation/9", "splits": {}}', '{"schema": "other"}'):
        path.write_text(text)
        with pytest.raises(BadInput):
            write_evaluation(path, "test", {})
        assert path.read_text() == text


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(BadInput, match="no samples"):
        evaluate_predictions(predictions(rows=0))
    for wrong in ({"level": 1.0}, {"level": 0.0}, {"resamples": 0}):
        with pytest.raises(Fault):
            evaluate_predictions(predictions(), **wrong)  # type: ignore[arg-type]


def test_a_higher_level_gives_wider_intervals() -> None:
    narrow, wide = (evaluate_predictions(predictions(), level=level)["metrics"] for level in (0.8, 0.99))
    for name in result.OVERALL:
        assert wide[name]["low"] < narrow[name]["low"]
        assert wide[name]["high"] > narrow[name]["high"] or narrow[name]["high"] == 1


def test_the_interval_says_how_it_was_drawn() -> None:
    interval = evaluate_predictions(predictions(), resamples=50)["interval"]
    assert (interval["resamples"], interval["resamples_auroc"], interval["blocks"]) == (50, 50, None)
    large = evaluate_predictions(predictions(rows=21_000, group_size=1), resamples=50)["interval"]
    assert large["blocks"] == 4096


def test_the_method_says_whether_groups_were_resampled() -> None:
    grouped, single = (evaluate_predictions(predictions(group_size=size), resamples=50) for size in (4, 1))
    assert "over groups" in grouped["interval"]["method"]
    assert "Wilson score for accuracy" in single["interval"]["method"]


def test_the_table_for_people_is_aligned() -> None:
    lines = table(evaluate_predictions(predictions(noise=0.1), resamples=50))
    assert lines[0] == "test: 120 samples in 30 groups, 95% intervals"
    metrics = lines[2 : 2 + len(result.OVERALL)]
    assert len({line.index("[") for line in metrics}) == 1
    assert [line.split()[0] for line in lines[-3:]] == CLASSES
    assert "undefined" in lines[-1]
    assert all(line == line.rstrip() for line in lines)
