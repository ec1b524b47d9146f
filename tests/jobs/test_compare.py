"""`compare` and `soup`: runs side by side, and runs averaged into one."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bloodcell.evaluation.predictions import read_predictions
from shards.errors import BadInput
from tests.jobs.conftest import FLAGS, verb


def test_two_runs_side_by_side(runs: Path, tmp_path: Path) -> None:
    found = verb("compare", runs / "one", runs / "two", "--output", tmp_path / "c")
    tables = [read_predictions(runs / name / "predictions" / "test.parquet") for name in ("one", "two")]
    right = [table.predicted() == table.labels for table in tables]
    pair = found["pairs"][0]
    assert (pair["first"], pair["second"]) == ("one", "two")
    gap = pair["difference"]["overall"]["accuracy"]["value"]
    assert gap == pytest.approx(float(right[0].mean() - right[1].mean()), abs=1e-9)
    assert pair["mcnemar"]["only_first"] == int((right[0] & ~right[1]).sum())
    assert pair["mcnemar"]["grouped"] is True
    evaluated = json.loads((runs / "one" / "evaluation.json").read_text())["splits"]["test"]
    assert found["runs"]["one"]["metrics"] == evaluated["metrics"]
    with open(tmp_path / "c" / "disagreements.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    differ = np.flatnonzero(tables[0].predicted() != tables[1].predicted())
    assert {row["key"] for row in rows} == {tables[0].keys[i] for i in differ}
    assert found["disagreements"] == len(rows)
    page = (tmp_path / "c" / "compare.html").read_text()
    assert page.count("data:image/jpeg") == min(len(rows), 96)
    assert len(page) < 5_000_000
    stored = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert stored["pairs"] == found["pairs"]


def test_the_same_comparison_gives_the_same_bytes(runs: Path, tmp_path: Path) -> None:
    for name in ("c", "d"):
        verb("compare", runs / "one", runs / "two", "--output", tmp_path / name)
    for file in ("comparison.json", "compare.html", "disagreements.csv", "disagreements.parquet"):
        assert (tmp_path / "c" / file).read_bytes() == (tmp_path / "d" / file).read_bytes()


def test_ensembles_orientations_and_pooled_folds_are_compared_alike(runs: Path, cross: Path, tmp_path: Path) -> None:
    both = verb("evaluate", runs / "one", runs / "two", "--output", tmp_path / "both")["run"]
    one = Path(shutil.copytree(runs / "one", tmp_path / "one", symlinks=True))
    verb("evaluate", one, "--tta", "2")
    found = verb("compare", one, both, one / "tta2", "--output", tmp_path / "c")
    assert list(found["runs"]) == ["one", "both", "tta2"]
    assert len(found["pairs"]) == 3
    folds = [cross / f"fold{k}" for k in range(3)]
    verb("evaluate", *folds, "--output", tmp_path / "again")
    pooled = verb("compare", cross / "pooled", tmp_path / "again", "--output", tmp_path / "d")
    assert pooled["disagreements"] == 0
    assert pooled["samples"] == 240


def test_other_samples_are_refused_with_the_counts(runs: Path, cross: Path, tmp_path: Path) -> None:
    ours = len(read_predictions(runs / "one" / "predictions" / "test.parquet").ids)
    theirs = len(read_predictions(cross / "fold0" / "predictions" / "test.parquet").ids)
    with pytest.raises(BadInput, match=rf"of {ours} are only in the first, \d+ of {theirs} only in the second"):
        verb("compare", runs / "one", cross / "fold0", "--output", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_what_cannot_be_compared_is_one_line(runs: Path, small_set: Path, tmp_path: Path) -> None:
    one = Path(shutil.copytree(runs / "one", tmp_path / "one", symlinks=True))
    table = one / "predictions" / "test.parquet"
    whole = table.read_bytes()
    table.write_bytes(whole[:-9])
    with pytest.raises(BadInput, match="not the one that was written"):
        verb("compare", one, runs / "two")
    table.write_bytes(whole)
    for arguments, said in (
        ((one,), "one run cannot be compared"),
        ((one, small_set), "neither a run nor a result"),
        ((one, runs / "two", "--split", "tset"), "did you mean 'test'"),
        ((one, runs / "two", "--split", "train"), "--split train"),
        ((one, runs / "two", "--output", small_set), "something else"),
    ):
        with pytest.raises(BadInput) as problem:
            verb("compare", *arguments)
        assert said in str(problem.value)
    (one / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="finish the training"):
        verb("compare", one, runs / "two")


def test_without_the_set_the_images_are_named(runs: Path, tmp_path: Path) -> None:
    one = Path(shutil.copytree(runs / "one", tmp_path / "one", symlinks=True))
    stored = json.loads((one / "config.json").read_text())
    stored["config"]["data"]["set"] = str(tmp_path / "gone")
    (one / "config.json").write_text(json.dumps(stored))
    found = verb("compare", one, runs / "two", "--output", tmp_path / "c")
    page = (tmp_path / "c" / "compare.html").read_text()
    assert "data:image" not in page
    assert found["disagreements"] == 0 or "not at hand" in page


def test_a_uniform_soup_is_the_mean_and_a_run_like_any_other(runs: Path, tmp_path: Path) -> None:
    found = verb("soup", runs / "one", runs / "two", "--output", tmp_path / "soup")
    assert found["kept"] == ["one", "two"]
    mixed, *parts = (load_file(path / "model.safetensors") for path in (tmp_path / "soup", runs / "one", runs / "two"))
    for name, value in mixed.items():
        mean = (parts[0][name].astype(np.float64) + parts[1][name]) / 2
        if "running" in name:
            assert not np.allclose(value, mean), "estimated again, not averaged"
        elif "tracked" not in name:
            np.testing.assert_allclose(value, mean, rtol=1e-6, atol=1e-7)
    assert (tmp_path / "soup" / "report.html").exists()
    judged = verb("evaluate", tmp_path / "soup")
    assert judged["predictions"] == "used again"
    assert judged["metrics"] == found["splits"]["test"]["metrics"]
    entry = found["splits"]["val"]["gain"]["accuracy"]
    assert entry["over_best"]["low"] <= entry["over_best"]["value"] <= entry["over_best"]["high"]
    assert verb("compare", tmp_path / "soup", runs / "one", "--output", tmp_path / "c")["samples"] == judged["samples"]
    with pytest.raises(BadInput, match="another recipe"):
        verb("train", "cnn5", "--run", tmp_path / "soup", *FLAGS)


def test_statistics_of_a_soup_of_one_run_are_those_of_its_own_images(runs: Path, tmp_path: Path) -> None:
    """A run averaged with itself keeps its weights; its statistics, estimated again, stay near those of training."""
    again = Path(shutil.copytree(runs / "one", tmp_path / "again", symlinks=True))
    verb("soup", runs / "one", again, "--output", tmp_path / "soup")
    mixed, own = load_file(tmp_path / "soup" / "model.safetensors"), load_file(runs / "one" / "model.safetensors")
    np.testing.assert_array_equal(mixed["0.weight"], own["0.weight"])
    assert np.corrcoef(mixed["1.running_mean"], own["1.running_mean"])[0, 1] > 0.9
    assert (mixed["1.running_var"] > 0).all()
    verb("soup", runs / "one", again, "--output", tmp_path / "twice")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("soup", "twice")]
    assert files[0] == files[1]


def test_a_greedy_soup_is_no_worse_on_validation_than_its_best(runs: Path, tmp_path: Path) -> None:
    found = verb("soup", runs / "one", runs / "two", "--greedy", "--output", tmp_path / "soup")
    values = [
        json.loads((runs / name / "evaluation.json").read_text())["splits"]["val"]["metrics"]["macro_f1"]["value"]
        for name in ("one", "two")
    ]
    assert found["tried"][0]["value"] == pytest.approx(max(values))
    reached = found["splits"]["val"]["metrics"]["macro_f1"]["value"]
    assert reached >= max(values) - 1e-9
    if len(found["kept"]) == 1:
        best = runs / found["kept"][0]
        assert (
            json.loads((tmp_path / "soup" / "evaluation.json").read_text())["splits"]["test"]["metrics"]
            == (json.loads((best / "evaluation.json").read_text())["splits"]["test"]["metrics"])
        )


def test_what_cannot_be_averaged_is_one_line(runs: Path, cross: Path, small_set: Path, tmp_path: Path) -> None:
    for arguments, said in (
        ((runs / "one",), "one run cannot be averaged"),
        ((runs / "one", cross / "fold0"), "differ in set, fold"),
        ((runs / "one", runs / "two", "--output", small_set), "something else"),
    ):
        with pytest.raises(BadInput) as problem:
            verb("soup", *arguments)
        assert said in str(problem.value)
