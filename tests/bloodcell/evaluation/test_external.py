"""Another set: label maps, and a shift report that sees what was changed and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

from bloodcell.evaluation import shift
from bloodcell.evaluation.external import read_label_map, same_classes
from shards.errors import BadInput
from tests.bloodcell.evaluation.tables import drawn

OF_SET, OF_RUN = ["blast", "dust", "lymph"], ["benign", "early"]


def write(folder: Path, text: str) -> Path:
    path = folder / "map.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_labels_become_classes_and_the_rest_is_counted(tmp_path: Path) -> None:
    found = read_label_map(write(tmp_path, "label,class\nlymph,benign\nblast,early\n"), OF_SET, OF_RUN)
    assert found.index.tolist() == [1, -1, 0]
    labels = np.array([0, 1, 1, 2])
    assert found.kept(labels).tolist() == [True, False, False, True]
    assert found.left_out(labels) == {"dust": 2}
    empty = read_label_map(write(tmp_path, "label,class\nblast,early\ndust,\n"), OF_SET, OF_RUN)
    assert empty.index.tolist() == [1, -1, -1]
    assert found.digest != empty.digest
    assert same_classes(OF_RUN).digest == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("label,klass\na,b\n", "no column 'class'"),
        ("label,class\nblust,early\n", "did you mean 'blast'"),
        ("label,class\nblast,erly\n", "did you mean 'early'"),
        ("label,class\nblast,early\nblast,benign\n", "twice"),
        ("label,class\n", "no label is mapped"),
    ],
)
def test_a_wrong_map_is_refused_by_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadInput) as problem:
        read_label_map(write(tmp_path, text), OF_SET, OF_RUN)
    assert said in str(problem.value)


def test_a_missing_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_label_map(tmp_path / "none.csv", OF_SET, OF_RUN)


def test_quantities_are_standardised() -> None:
    random = np.random.default_rng(0)
    own = {"red": random.normal(100, 10, 400), "width": np.full(400, 64.0)}
    other = {"red": random.normal(115, 10, 400), "width": np.full(400, 64.0)}
    found = shift.quantities(own, other)
    assert found["red"]["smd"] == pytest.approx(1.5, abs=0.15)
    assert found["red"]["ks"] == pytest.approx(ks_2samp(own["red"], other["red"]).statistic, abs=1e-9)
    assert (found["width"]["smd"], found["width"]["ks"]) == (0, 0)
    apart = shift.quantities({"width": np.full(9, 64.0)}, {"width": np.full(9, 32.0)})["width"]
    assert (apart["smd"], apart["ks"]) == (None, 1)


def test_features_of_one_source_do_not_differ_and_of_two_do() -> None:
    random = np.random.default_rng(0)
    own = random.normal(size=(80, 16))
    same = shift.feature_distance(own, random.normal(size=(80, 16)))
    moved = shift.feature_distance(own, random.normal(size=(60, 16)) + 0.5)
    assert same["p"] > 0.05
    assert moved["p"] < 0.01
    assert moved["mmd2"] > 0.02 > abs(same["mmd2"])
    assert (moved["own"], moved["other"]) == (80, 60)


def test_what_is_lost_by_class_is_told() -> None:
    own, other = drawn(300, skill=4), drawn(300, seed=1, skill=0.5, truth=9)
    found = shift.drop(own, other)
    assert found["overall"]["accuracy"]["high"] < 0
    assert found["overall"]["nll"]["low"] > 0
    assert found["per_class"]["early"]["recall"]["value"] < 0
    text = shift.lines({"left_out": {"dust": 2}, "quantities": None, "features": None, "drop": found})
    assert "dust 2" in text[0]
