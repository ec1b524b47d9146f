"""The whole judgement: every section, plain JSON, equal for equal input, right or refused where input is degenerate."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from bloodcell.evaluation import estimates, resample, selective
from bloodcell.evaluation.judge import judge
from bloodcell.evaluation.judged import Judged
from bloodcell.evaluation.result import evaluate_predictions
from bloodcell.evaluation.result import table as lines_of
from shards.errors import BadInput, Fault
from tests.bloodcell.evaluation.drawing import drawn, table, validation

SECTIONS = ("patients", "calibration", "operating_points", "selective", "conformal", "worst_groups")


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every number and text of a result, by its path."""
    if isinstance(value, dict):
        return {k: v for name, each in value.items() for k, v in leaves(each, f"{path}/{name}").items()}
    if isinstance(value, list):
        return {k: v for number, each in enumerate(value) for k, v in leaves(each, f"{path}/{number}").items()}
    return {path: value}


def check(found: dict[str, Any]) -> None:
    """Plain JSON, and every interval encloses its value."""
    assert found == json.loads(json.dumps(found, allow_nan=False))
    flat = leaves(found)
    for path, low in flat.items():
        stem, _, name = path.rpartition("/")
        if name == "low" and f"{stem}/value" in flat and low is not None:
            assert low <= flat[f"{stem}/value"] + 1e-9, stem
            assert flat[f"{stem}/value"] <= flat[f"{stem}/high"] + 1e-9, stem


@pytest.mark.parametrize("patients", [0, 30])
def test_every_section_beside_the_metrics(patients: int) -> None:
    judged, known = drawn(0, patients=patients), validation()
    found = judge(judged, known, {i: f"s{i % 3}" for i in range(300)}, resamples=100)
    plain = evaluate_predictions(judged, resamples=100)
    assert {name: found[name] for name in plain} == plain
    assert tuple(name for name in found if name not in plain) == SECTIONS
    check(found)
    again = judge(judged, known, {i: f"s{i % 3}" for i in range(300)}, resamples=100)
    assert json.dumps(found) == json.dumps(again)
    assert found != judge(judged, known, {i: f"s{i % 3}" for i in range(300)}, resamples=100, seed=1)


def test_without_validation_what_needs_it_says_why() -> None:
    found = judge(drawn(0), resamples=20, untuned="the run has no validation")
    check(found)
    assert found["calibration"]["after"] is None
    for reason in (
        found["calibration"]["temperature"]["left_out"],
        found["operating_points"]["left_out"],
        found["selective"]["thresholds"]["left_out"],
        found["conformal"]["left_out"],
    ):
        assert reason == "the run has no validation"


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", ["", "only"])
@pytest.mark.parametrize("tuned", [False, True])
def test_one_and_two_samples(rows: int, name: str, tuned: bool) -> None:
    p = drawn(0, rows)
    check(judge(table(p.logits, p.labels, [name] * rows), validation() if tuned else None, resamples=50))


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((30, 3)), np.arange(30) % 3),
        (np.zeros((30, 3)), np.zeros(30)),
        (np.eye(3)[np.arange(30) % 2], np.arange(30) % 2),
        (np.eye(3)[np.ones(30, int)], np.zeros(30)),
        (np.full((30, 3), 1e30) * np.eye(3)[np.arange(30) % 3], np.arange(30) % 3),
        (np.zeros((30, 1)), np.zeros(30)),
    ],
    ids=["ties", "ties of one class", "a class absent", "all wrong", "huge logits", "one class in all"],
)
@pytest.mark.parametrize("group", [0, 5])
def test_degenerate_tables_give_a_result(logits: np.ndarray, labels: np.ndarray, group: int) -> None:
    names = [f"p{i // group}" if group else "" for i in range(30)]
    known = table(logits[::-1], np.asarray(labels)[::-1], split="val", first=1000)
    found = judge(table(logits, labels, names), known, resamples=50)
    check(found)
    assert found["metrics"]["accuracy"]["value"] == pytest.approx((np.argmax(logits, axis=1) == labels).mean())


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(BadInput, match="no samples"):
        judge(table(np.empty((0, 2)), np.empty(0)))
    with pytest.raises(Fault, match="NaN or infinite"):
        table(np.full((3, 2), np.nan), np.zeros(3))
    for wrong in ({"level": 1.0}, {"level": 0.0}, {"resamples": 0}):
        with pytest.raises(Fault):
            judge(drawn(0), validation(), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("patients", [0, 6000, 40])
def test_large_splits_are_judged_as_small_ones_are(patients: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of groups and coarse scores change no value, and intervals by no more than resampling does."""
    judged, known = drawn(0, 24_000, patients=patients), validation(rows=2000)
    fast = judge(judged, known, resamples=400)
    for module in (resample, estimates, selective):
        monkeypatch.setattr(module, "LARGE", 10**9)
    exact = judge(judged, known, resamples=400)
    assert fast["interval"]["blocks"] == (None if patients == 40 else 4096)
    assert exact["interval"]["blocks"] is None
    one, two = leaves(fast), leaves(exact)
    assert one.keys() == two.keys()
    compared = 0
    for path, value in one.items():
        stem, _, name = path.rpartition("/")
        if name == "value":
            assert value == two[path]
        if name == "low" and value is not None and f"{stem}/value" in one and "worst" not in stem:
            widths = [flat[f"{stem}/high"] - flat[f"{stem}/low"] for flat in (one, two)]
            assert widths[0] == pytest.approx(widths[1], rel=0.3, abs=1e-6), stem
            compared += 1
    assert compared > 100


def test_blocks_hold_equal_numbers_of_groups() -> None:
    cluster = np.random.default_rng(0).permutation(np.repeat(np.arange(10_000), 3))
    blocks = resample.blocks_of(cluster)
    held = [len(np.unique(cluster[blocks == block])) for block in range(0, 4096, 97)]
    assert set(held) <= {2, 3}
    assert len(np.unique(blocks)) == 4096
    pairs = np.unique(np.stack([cluster, blocks]), axis=1)
    assert pairs.shape[1] == 10_000  # a group is never cut
    small = cluster[:200]
    assert resample.blocks_of(small) is small


def test_what_is_judged_is_computed_once() -> None:
    p = drawn(0, patients=7)
    judged = Judged.of(p, 10)
    assert judged.groups == 7
    assert judged.blocks is judged.cluster
    assert math.isclose(judged.probabilities.sum(), 300)


def test_the_lines_for_people_say_each_section() -> None:
    found = judge(drawn(0, patients=30), validation(), dict.fromkeys(range(300), "here"), resamples=50)
    lines = lines_of(found)[-6:]
    said = [line.split(":")[0] for line in lines]
    assert said == [
        *("calibration", "patients", "most confident samples", "conformal sets", "worst patient", "worst source")
    ]
    assert f"after temperature {found['calibration']['temperature']['values'][0]:.3f}" in lines[0]
    assert "no diagnosis: 30 of 30 patients" in lines[1]
    assert "LAC 90% holds" in lines[3]
    assert lines[4] == "worst patient: none of 30 has 20 samples"
    assert "of 300 samples" in lines[5]
    bare = lines_of(judge(drawn(0), resamples=50, untuned="nothing to tune on"))[-4:]
    assert bare[0].endswith("no temperature: nothing to tune on")
    assert bare[3] == "conformal sets: none: nothing to tune on"
    labels = np.repeat([0, 1], 20)
    names = [f"p{i // 5}" for i in range(40)]
    patients = lines_of(judge(table(np.eye(2)[labels], labels, names), resamples=50))[-4]
    assert patients.startswith("patients: 8, accuracy by mean probability 1.0000 [")
