"""Tuning: nothing is chosen on judged samples, and folds keep their own temperatures and thresholds."""

from __future__ import annotations

import numpy as np
import pytest

from bloodcell.evaluation.judge import judge
from bloodcell.evaluation.temperature import fit_temperature
from bloodcell.evaluation.tuning import Tuning
from shards.errors import BadInput, Fault
from tests.bloodcell.evaluation.drawing import drawn, table, validation


def test_judged_samples_choose_nothing() -> None:
    judged = drawn(0, 50)
    with pytest.raises(BadInput, match="50 judged samples would also choose"):
        judge(judged, judged)
    with pytest.raises(BadInput, match="1 judged samples would also choose"):
        Tuning.of(judged, [drawn(1, 50, split="val", first=49)])
    # The same numbers in another set are other samples.
    assert Tuning.of(judged, [drawn(1, 50, split="val", fingerprint="f01")]).about()[0]["fingerprint"] == "f01"


def test_tables_that_do_not_fit_are_refused() -> None:
    judged = drawn(0, 50)
    with pytest.raises(BadInput, match="are empty"):
        Tuning.of(judged, [validation(rows=0)])
    with pytest.raises(BadInput, match="classes are"):
        Tuning.of(judged, [validation(classes=4)])
    for part in (None, np.zeros(49), np.full(50, 2), np.full(50, -1)):
        with pytest.raises(Fault):
            Tuning.of(judged, [validation(), validation(7)], part)


def test_each_fold_has_its_own_temperature() -> None:
    """Two networks, one too sure and one not sure enough; what one is tested on chooses for the other."""
    first, second = drawn(1, 3000, temperature=2.0), drawn(2, 3000, temperature=0.5, first=3000)
    pooled = table(np.concatenate([first.logits, second.logits]), np.concatenate([first.labels, second.labels]))
    part = np.repeat([0, 1], 3000)
    known = [
        drawn(3, 3000, temperature=2.0, split="fold0/val", first=3000),
        drawn(4, 3000, temperature=0.5, split="fold1/val", first=0),
    ]
    tuning = Tuning.of(pooled, known, part)
    found = judge(pooled, tuning, resamples=100)
    assert found["calibration"]["temperature"]["values"] == pytest.approx([fit_temperature(t) for t in known])
    assert [each["split"] for each in found["calibration"]["temperature"]["fitted_on"]] == ["fold0/val", "fold1/val"]
    assert found["calibration"]["before"]["ece"]["low"] > 0.02
    assert found["calibration"]["after"]["ece"]["value"] < 0.03
    for sets in found["conformal"]["sets"]:
        assert sets["coverage"]["value"] == pytest.approx(sets["level"], abs=0.025) or sets["method"] == "aps"
        assert len(sets["quantiles"]) == 2
    point = found["operating_points"]["per_class"]["a"]["points"][0]
    assert point["specificity"]["value"] == pytest.approx(0.95, abs=0.02)
    assert point["thresholds"][0] > point["thresholds"][1]
    with pytest.raises(BadInput, match="3,000 judged samples"):
        Tuning.of(pooled, known, 1 - part)
