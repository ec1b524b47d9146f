"""`evaluate`: tables used again or made, ensembles, pooled folds, orientations, other sets, any number of ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloodcell.evaluation.predictions import read_predictions
from shards.errors import BadInput
from tests.conftest import bloodcell
from tests.jobs.conftest import FLAGS, verb


@pytest.fixture
def one(runs: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that a test may damage."""
    return Path(shutil.copytree(runs / "one", tmp_path / "one", symlinks=True))


@pytest.fixture(scope="module")
def other_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other drawn images, of which one class has another name, for a test only."""
    from shards.pack import PackOptions, pack
    from shards.synth import SynthOptions, synthesise

    folder = tmp_path_factory.mktemp("elsewhere")
    synthesise(folder / "images", SynthOptions(images=60, size=40, patients=12, seed=9))
    (folder / "images" / "pro").rename(folder / "images" / "stranger")
    pack(folder / "images", folder / "clinic", PackOptions(split="0/0/100", workers=1))
    return folder / "clinic"


def test_a_table_of_these_weights_is_used_again_without_the_set(one: Path, tmp_path: Path) -> None:
    made = verb("evaluate", one, "--predict")
    stored = json.loads((one / "config.json").read_text())
    stored["config"]["data"]["set"] = str(tmp_path / "gone")
    (one / "config.json").write_text(json.dumps(stored))
    before = (one / "evaluation.json").read_bytes()
    again = verb("evaluate", one)
    assert (made.pop("predictions"), again.pop("predictions")) == ("made", "used again")
    assert made == again
    assert (one / "evaluation.json").read_bytes() == before


def test_a_damaged_table_or_other_weights_make_it_anew(one: Path) -> None:
    table = one / "predictions" / "test.parquet"
    whole = table.read_bytes()
    table.write_bytes(whole[: len(whole) // 2])
    assert verb("evaluate", one)["predictions"] == "made"
    assert table.read_bytes() == whole
    shutil.copy(one.parent / "one" / "model.safetensors", one / "kept")
    data = bytearray((one / "model.safetensors").read_bytes())
    data[-1] ^= 1  # the last bit of some weight
    (one / "model.safetensors").write_bytes(data)
    assert verb("evaluate", one)["predictions"] == "made"


def test_several_splits_are_told_each(one: Path) -> None:
    found = verb("evaluate", one, "--split", "val,test")
    assert list(found["splits"]) == ["val", "test"]
    assert found["run"] == str(one)


def test_two_seeds_are_an_ensemble(runs: Path, tmp_path: Path) -> None:
    found = verb("evaluate", runs / "one", runs / "two", "--output", tmp_path / "both")
    assert (found["kind"], found["runs"], found["run"]) == ("ensemble", ["one", "two"], str(tmp_path / "both"))
    tables = [read_predictions(runs / name / "predictions" / "test.parquet") for name in ("one", "two")]
    whole = read_predictions(tmp_path / "both" / "predictions" / "test.parquet")
    np.testing.assert_allclose(whole.probabilities(), np.mean([t.probabilities() for t in tables], axis=0), atol=1e-6)
    accuracy = float((whole.predicted() == whole.labels).mean())
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(accuracy)
    best = max(member["accuracy"] for member in found["members"].values())
    entry = found["gain"]["accuracy"]["over_best"]
    assert entry["value"] == pytest.approx(accuracy - best, abs=1e-9)
    assert entry["low"] <= entry["value"] <= entry["high"]
    assert (tmp_path / "both" / "predictions" / "val.parquet").exists(), "for calibration"
    page = tmp_path / "both" / "report.html"
    assert found["report"] == str(page)
    assert "What the ensemble gains" in page.read_text()
    before = page.read_bytes()
    page.unlink()
    again = verb("evaluate", tmp_path / "both")
    assert again["metrics"] == found["metrics"]
    assert page.read_bytes() == before
    assert verb("report", tmp_path / "both")["metrics"] == str(tmp_path / "both" / "metrics.csv")
    assert page.read_bytes() == before


def test_the_same_runs_find_their_result_again(runs: Path) -> None:
    first = verb("evaluate", runs / "one", runs / "two")["run"]
    assert verb("evaluate", runs / "one", runs / "two")["run"] == first
    assert Path(first).parent == runs


def test_folds_give_one_prediction_for_each_sample_of_the_set(cross: Path, fold_set: Path, tmp_path: Path) -> None:
    """The pooled accuracy is that of all samples, not the mean of the folds; fold k's own run predicted each."""
    found = verb("evaluate", *(cross / f"fold{k}" for k in (2, 0, 1)), "--output", tmp_path / "pooled")
    pooled = read_predictions(tmp_path / "pooled" / "predictions" / "test.parquet")
    info = json.loads((fold_set / "dataset.json").read_text())
    assert found["samples"] == len(pooled.ids) == sum(sum(part.values()) for part in info["samples"].values())
    right = sum(row["metrics"]["accuracy"]["value"] * row["samples"] for row in found["folds"])
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(right / found["samples"])
    for fold in range(3):
        part = read_predictions(cross / f"fold{fold}" / "predictions" / "test.parquet")
        rows = np.searchsorted(pooled.ids, part.ids)
        np.testing.assert_array_equal(pooled.logits[rows], part.logits)
        assert [pooled.keys[i] for i in rows] == part.keys
    assert found["calibrated"]["metrics"]["accuracy"] == found["metrics"]["accuracy"]
    assert "Fold by fold" in (tmp_path / "pooled" / "report.html").read_text()
    again = verb("evaluate", tmp_path / "pooled")
    assert again["folds"] == found["folds"]
    by_training = json.loads((cross / "pooled" / "evaluation.json").read_text())["splits"]["test"]
    assert by_training["metrics"] == found["metrics"]


def test_folds_that_do_not_fit_are_refused(cross: Path, fold_set: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="fold 2 of 3 has no run"):
        verb("evaluate", cross / "fold0", cross / "fold1", "--output", tmp_path / "never")
    odd = Path(shutil.copytree(cross / "fold2", tmp_path / "fold2", symlinks=True))
    stored = json.loads((odd / "config.json").read_text())
    stored["config"]["optim"]["lr"] = 0.5
    (odd / "config.json").write_text(json.dumps(stored))
    with pytest.raises(BadInput, match=r"other recipes \(optim.lr\)"):
        verb("evaluate", cross / "fold0", cross / "fold1", odd, "--output", tmp_path / "never")
    with pytest.raises(BadInput, match="test parts"):
        verb("evaluate", *(cross / f"fold{k}" for k in range(3)), "--split", "val", "--output", tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_folds_times_seeds_are_averaged_in_each_fold(cross: Path, tmp_path: Path) -> None:
    copies = [Path(shutil.copytree(cross / f"fold{k}", tmp_path / f"fold{k}", symlinks=True)) for k in range(3)]
    found = verb("evaluate", *(cross / f"fold{k}" for k in range(3)), *copies, "--output", tmp_path / "all")
    assert [len(row["runs"]) for row in found["folds"]] == [2, 2, 2]
    alone = json.loads((cross / "pooled" / "evaluation.json").read_text())["splits"]["test"]
    assert found["metrics"]["accuracy"]["value"] == alone["metrics"]["accuracy"]["value"]


def test_the_worst_source_is_told_by_training_and_by_evaluating(drawn: Path, judged_net: None, tmp_path: Path) -> None:
    from shards.pack import PackOptions, pack
    from shards.synth import SynthOptions, synthesise

    synthesise(tmp_path / "north", SynthOptions(images=80, size=40, patients=16, seed=4))
    pack(drawn, tmp_path / "set", PackOptions(also=(str(tmp_path / "north"),), split="60/20/20", workers=1))
    verb("train", "cnn5", "--data", tmp_path / "set", "--run", tmp_path / "run", *FLAGS)
    stored = tmp_path / "run" / "evaluation.json"
    made = json.loads(stored.read_text())["splits"]["test"]
    assert {row["name"] for row in made["worst_groups"]["source"]["rows"]} == {"images", "north"}
    verb("evaluate", tmp_path / "run")
    assert json.loads(stored.read_text())["splits"]["test"] == made
    pair = verb("evaluate", tmp_path / "run", shutil.copytree(tmp_path / "run", tmp_path / "twin", symlinks=True))
    assert pair["worst_groups"]["source"]["groups"] == 2
    assert "By source" in (tmp_path / "run" / "report.html").read_text()


def test_training_all_folds_needs_a_set_with_folds(small_set: Path, fold_set: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (("--data", small_set), "no folds"),
        (("--data", fold_set, "--data.fold", 1), "choose one"),
    ):
        with pytest.raises(BadInput, match=said):
            verb("train", "cnn5", "--folds", "all", "--run", tmp_path / "never", *arguments, *FLAGS)
    assert not (tmp_path / "never").exists()


def test_eight_orientations_and_what_they_gain(one: Path) -> None:
    found = verb("evaluate", one, "--tta", "d4")
    assert found["tta"]["orientations"] == 8
    plain, turned = (read_predictions(one / place / "predictions" / "test.parquet") for place in (".", "tta8"))
    assert not np.array_equal(plain.logits, turned.logits)
    gained = float((turned.predicted() == turned.labels).mean() - (plain.predicted() == plain.labels).mean())
    assert found["tta"]["gain"]["overall"]["accuracy"]["value"] == pytest.approx(gained, abs=1e-9)
    assert verb("evaluate", one, "--tta", "8")["predictions"] == "used again"
    assert list(json.loads((one / "evaluation.json").read_text())["splits"]) == ["test", "val"]


def test_another_set_under_a_label_map(one: Path, other_set: Path, tmp_path: Path) -> None:
    labels = tmp_path / "map.csv"
    labels.write_text("label,class\nbenign,benign\nearly,early\npre,pre\n")
    found = verb("evaluate", one, "--data", other_set, "--labels", labels)
    info = json.loads((other_set / "dataset.json").read_text())["samples"]["test"]
    assert found["shift"]["left_out"] == {"stranger": info["stranger"]}
    assert found["samples"] == sum(info.values()) - info["stranger"]
    assert found["per_class"]["pro"]["recall"]["value"] is None
    table = read_predictions(one / "external" / "clinic" / "predictions" / "test.parquet")
    assert table.classes == ["benign", "early", "pre", "pro"]
    assert found["shift"]["quantities"]["width"]["own"] == 48
    assert found["shift"]["quantities"]["width"]["other"] == 40
    features = found["shift"]["features"]
    assert (features["own"], features["other"]) == (verb("evaluate", one)["samples"], found["samples"])
    assert 0 < features["p"] <= 1
    own = json.loads((one / "evaluation.json").read_text())["splits"]["test"]["metrics"]["accuracy"]["value"]
    lost = found["metrics"]["accuracy"]["value"] - own
    assert found["shift"]["drop"]["overall"]["accuracy"]["value"] == pytest.approx(lost, abs=1e-9)
    assert json.loads((one / "external" / "clinic" / "shift-test.json").read_text()) == found["shift"]
    assert verb("evaluate", one, "--data", other_set, "--labels", labels)["predictions"] == "used again"
    labels.write_text("label,class\nbenign,early\nearly,benign\n")
    assert verb("evaluate", one, "--data", other_set, "--labels", labels)["predictions"] == "made"


def test_another_set_of_the_same_name_gets_a_folder_of_its_own(one: Path, other_set: Path, tmp_path: Path) -> None:
    from shards.pack import PackOptions, pack

    labels = tmp_path / "map.csv"
    labels.write_text("label,class\nbenign,benign\nearly,early\n")
    verb("evaluate", one, "--data", other_set, "--labels", labels)
    pack(other_set.parent / "images", tmp_path / "clinic", PackOptions(split="0/50/50", workers=1))
    verb("evaluate", one, "--data", tmp_path / "clinic", "--labels", labels)
    assert len(list((one / "external").iterdir())) == 2


def test_all_of_another_set_by_several_runs(runs: Path, other_set: Path, tmp_path: Path) -> None:
    labels = tmp_path / "map.csv"
    labels.write_text("label,class\nbenign,benign\nearly,early\npre,pre\nstranger,pro\n")
    arguments = ("--data", other_set, "--labels", labels, "--split", "all", "--output", tmp_path / "both")
    found = verb("evaluate", runs / "one", runs / "two", *arguments)
    assert (found["kind"], found["samples"]) == ("ensemble", 60)


@pytest.mark.slow
def test_ranks_do_not_change_a_byte_of_orientations(one: Path) -> None:
    """Real gloo ranks; the plain tables are compared in test_training."""
    kept: dict[int, list[bytes]] = {}
    for ranks in (1, 2, 3):
        done = bloodcell("evaluate", one, "--predict", "--tta", "2", "--json", ranks=ranks)
        assert done.code == 0, done.err
        assert done.json["predictions"] == "made"
        files = ("predictions/test.parquet", "tta2/predictions/test.parquet", "tta2/evaluation.json")
        kept[ranks] = [(one / name).read_bytes() for name in files]
    assert kept[1] == kept[2] == kept[3]


def edited(path: Path, change: Any) -> None:
    stored = json.loads((path / "config.json").read_text())
    change(stored)
    (path / "config.json").write_text(json.dumps(stored))


def test_bad_input_is_one_clear_line(one: Path, runs: Path, cross: Path, other_set: Path, tmp_path: Path) -> None:
    unfinished = Path(shutil.copytree(one, tmp_path / "unfinished", symlinks=True))
    (unfinished / "model.safetensors").unlink()
    other = Path(shutil.copytree(one, tmp_path / "classes", symlinks=True))
    edited(other, lambda stored: stored.update(classes=["a", "b"]))
    for arguments, said in (
        ((tmp_path,), "no run here"),
        ((unfinished,), "finish the training first"),
        ((one, "--split", "tset"), "no split 'tset'"),
        ((one, "--split", ","), "no split is named"),
        ((one, "--output", tmp_path / "x"), "leave --output out"),
        ((one, "--labels", tmp_path / "map.csv"), "another set"),
        ((one, "--data", other_set), "--labels MAP.csv"),
        ((one, "--data", tmp_path / "none"), "no shard set here"),
        ((one, one), "given twice"),
        ((one, other), "classes differ"),
        ((one, cross / "fold0"), "different sets"),
    ):
        with pytest.raises(BadInput) as problem:
            verb("evaluate", *arguments)
        assert said in str(problem.value)
        assert "\n" not in str(problem.value)
    both = verb("evaluate", runs / "one", runs / "two", "--output", tmp_path / "both")["run"]
    with pytest.raises(BadInput, match="cannot be part of another"):
        verb("evaluate", both, one)
    with pytest.raises(BadInput, match="takes no --tta"):
        verb("evaluate", both, "--tta", "2")
    done = bloodcell("evaluate", unfinished, "--json")
    assert done.code == 2
    assert done.json["error"]["what"] == "the run has no model.safetensors"
    assert len(done.err.strip().splitlines()) == 1
