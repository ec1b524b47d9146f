"""Worst groups: the worst first, small ones not called the worst, sources judged over their patients."""

from __future__ import annotations

import numpy as np
import pytest

from bloodcell.evaluation.intervals import wilson
from bloodcell.evaluation.judge import judge
from bloodcell.evaluation.predictions import Predictions
from shards.errors import BadInput
from tests.bloodcell.evaluation.drawing import drawn, table


def planted(bad: str = "p3", rows: int = 400, patients: int = 10) -> Predictions:
    """Every tenth sample wrong, and half of one patient's; a patient of three samples that are all wrong."""
    labels = np.arange(rows) // patients % 2
    names = [f"p{i % patients}" for i in range(rows)]
    wrong = np.array([i // 10 % 10 == 0 or (name == bad and i // 20 % 2 == 0) for i, name in enumerate(names)])
    names[:3] = ["tiny"] * 3
    wrong[:3] = True
    return table(np.eye(2)[np.where(wrong, 1 - labels, labels)], labels, names)


def test_the_planted_patient_is_the_worst() -> None:
    p = planted()
    found = judge(p, resamples=100)["worst_groups"]
    patient = found["patient"]
    assert found["source"] is None
    assert (patient["groups"], patient["large_enough"]) == (11, 10)
    assert patient["worst"]["name"] == "p3"
    assert patient["rows"][0]["name"] == "tiny"
    assert [row["name"] for row in patient["rows"]][1] == "p3"
    values = [row["accuracy"]["value"] for row in patient["rows"]]
    assert values == sorted(values)
    here = np.array([name == "p3" for name in p.groups])
    right = p.predicted() == p.labels
    row = patient["worst"]
    assert row["samples"] == here.sum()
    assert row["accuracy"]["value"] == pytest.approx(right[here].mean())
    expected = wilson(right[here].mean(), here.sum(), 1.959963984540054)
    assert row["accuracy"]["low"] == pytest.approx(expected.low)
    recalls = [right[here & (p.labels == label)].mean() for label in (0, 1)]
    assert row["macro_recall"] == pytest.approx(np.mean(recalls))
    assert row["simultaneous"]["low"] < row["accuracy"]["low"]
    assert row["simultaneous"]["high"] > row["accuracy"]["high"]


def test_sources_are_judged_over_their_patients() -> None:
    p = planted()
    sources = {i: "far" if name == "p3" else f"near{i % 2}" for i, name in enumerate(p.groups)}
    found = judge(p, sources=sources, resamples=200)["worst_groups"]["source"]
    assert found["groups"] == 3
    assert found["worst"]["name"] == "far"
    rows = {row["name"]: row["accuracy"] for row in found["rows"]}
    # One patient says little about a source, however many cells it has.
    assert rows["far"]["high"] - rows["far"]["low"] > 0.7
    assert rows["near0"]["high"] - rows["near0"]["low"] < 0.35


def test_every_sample_needs_a_source() -> None:
    with pytest.raises(BadInput, match="299 samples have no source, such as test1"):
        judge(drawn(0), sources={0: "x"}, resamples=20)


def test_where_no_group_is_named_there_is_none() -> None:
    found = judge(drawn(0), resamples=20)["worst_groups"]
    assert found["patient"] is None
    assert found["source"] is None


def test_few_samples_everywhere_name_no_worst() -> None:
    found = judge(drawn(0, 40, patients=10), resamples=20)["worst_groups"]["patient"]
    assert (found["groups"], found["large_enough"], found["worst"]) == (10, 0, None)
    assert len(found["rows"]) == 10
