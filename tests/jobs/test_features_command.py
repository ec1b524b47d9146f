"""`features` and `probe` as people run them: tables that scan takes, results that evaluate takes, folds as one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bloodcell.evaluation.predictions import read_predictions
from jobs.cli import run_verb
from shards.errors import BadInput
from shards.format import read_samples
from shards.network_features import read_features
from tests.conftest import bloodcell

NET = ("timm:resnet10t", "--weights", "none", "--size", 32)


def features_of(path: Path, names: list[str]) -> np.ndarray:
    return read_features(path, names)


def test_features_of_a_folder_serve_scan(drawn: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(drawn, images)
    classes = sorted(path for path in images.iterdir() if path.is_dir())
    (classes[0] / "broken.png").write_bytes(b"no image")
    table = tmp_path / "features.parquet"
    done = bloodcell("features", *NET, "--images", images, "--out", table, "--json")
    assert done.code == 0, done.err
    assert done.json["images"] == 240
    assert "1 images cannot be decoded" in done.err
    look = bloodcell("scan", images, "--features", table, "--out", tmp_path / "look", "--json")
    assert look.code == 0, look.err
    assert look.json["usable"] == 240


def test_features_of_a_set_are_the_same_on_two_ranks_and_as_of_the_folder(
    drawn: Path, small_set: Path, tmp_path: Path
) -> None:
    for name, ranks in (("one", 0), ("two", 2)):
        done = bloodcell("features", *NET, "--data", small_set, "--out", tmp_path / f"{name}.parquet", ranks=ranks)
        assert done.code == 0, done.err
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    samples, table = read_samples(small_set), pq.read_table(tmp_path / "one.parquet")
    for column in ("key", "split", "label", "class", "group", "source"):
        assert table.column(column).to_pylist() == samples.column(column).to_pylist()
    done = bloodcell("features", *NET, "--images", drawn, "--out", tmp_path / "folder.parquet")
    assert done.code == 0, done.err
    names = table.column("source").to_pylist()
    ours, theirs = features_of(tmp_path / "folder.parquet", names), features_of(tmp_path / "one.parquet", names)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def probed(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A linear probe of a network with random weights, and what it printed."""
    run = tmp_path_factory.mktemp("probes") / "linear"
    done = bloodcell("probe", *NET, "--data", small_set, "--run", run, "--features", run.parent / "f.parquet", "--json")
    assert done.code == 0, done.err
    return run, done.json


def test_a_linear_probe_is_a_run(probed: tuple[Path, dict[str, object]], small_set: Path, tmp_path: Path) -> None:
    run, told = probed
    for name in ("model.safetensors", "config.json", "environment.json", "evaluation.json", "report.html"):
        assert (run / name).stat().st_size > 0
    before = read_predictions(run / "predictions" / "test.parquet")
    again = bloodcell("evaluate", run, "--json")
    assert again.code == 0, again.err
    assert again.json["predictions"] == "used again"
    assert again.json["metrics"] == told["metrics"]["test"]  # type: ignore[index]
    made = bloodcell("evaluate", run, "--predict", ranks=2)
    assert made.code == 0, made.err
    after = read_predictions(run / "predictions" / "test.parquet")
    np.testing.assert_allclose(after.logits, before.logits, atol=1e-3 * np.abs(before.logits).max())
    out = bloodcell("features", run, "--split", "test", "--out", tmp_path / "own.parquet", "--json")
    assert out.code == 0, out.err
    everything = features_of(run.parent / "f.parquet", pq.read_table(tmp_path / "own.parquet")["source"].to_pylist())
    np.testing.assert_allclose(
        features_of(tmp_path / "own.parquet", pq.read_table(tmp_path / "own.parquet")["source"].to_pylist()),
        everything,
        atol=1e-5 * np.abs(everything).max(),
    )
    refused = bloodcell("train", "resnet10t", "--data", small_set, "--run", run)
    assert refused.code == 2


def test_kept_features_are_used_again_and_neighbours_leave_tables(
    probed: tuple[Path, dict[str, object]], small_set: Path, tmp_path: Path
) -> None:
    run, _ = probed
    kept = tmp_path / "f.parquet"
    shutil.copy(run.parent / "f.parquet", kept)
    neighbours = ("probe", *NET, "--data", small_set, "--method", "knn", "--run", tmp_path / "knn")
    done = bloodcell(*neighbours, "--features", kept, "--json")
    assert done.code == 0, done.err
    assert done.json["features"] == "used again"
    assert not (tmp_path / "knn" / "model.safetensors").exists()
    assert json.loads((tmp_path / "knn" / "evaluation.json").read_text())["splits"].keys() == {"val", "test"}
    beside = bloodcell("compare", run, tmp_path / "knn", "--output", tmp_path / "compared")
    assert beside.code == 0, beside.err
    other = bloodcell("probe", *NET[:3], "--size", 48, "--data", small_set, "--run", tmp_path / "b", "--features", kept)
    assert other.code == 0, other.err
    assert "computed anew" in other.err
    assert pq.read_table(kept).num_rows == 240


def test_augmented_views_are_shown_to_the_fit_alone(
    probed: tuple[Path, dict[str, object]], small_set: Path, tmp_path: Path
) -> None:
    run, _ = probed
    kept = shutil.copy(run.parent / "f.parquet", tmp_path / "f.parquet")
    words = (*NET, "--data", small_set, "--views", 2, "--policy", "rotate", "--features", kept)
    arguments = [str(word) for word in words]
    done = run_verb("probe", [*arguments, "--run", str(tmp_path / "one")])[0]
    assert (done["views"], done["features"]) == (2, "computed")
    shown = [pq.read_table(tmp_path / name) for name in ("f.parquet", "f-view1.parquet", "f-view2.parquet")]
    plain, *views = ({row["id"]: row["features"] for row in table.to_pylist()} for table in shown)
    trained = [row["id"] for row in shown[0].to_pylist() if row["split"] == "train"]
    for view in views:
        assert list(view) == trained  # nothing that is judged is augmented
        assert sum(view[sample] != plain[sample] for sample in trained) > 0.9 * len(trained)
    assert sum(views[0][sample] != views[1][sample] for sample in trained) > 0.9 * len(trained)
    told = json.loads((tmp_path / "one" / "probe.json").read_text())
    assert [view["policy"] for view in told["views"]] == ["rotate", "rotate"]
    again = run_verb("probe", [*arguments, "--run", str(tmp_path / "two")])[0]
    assert again["features"] == "used again"
    assert again["metrics"] == done["metrics"]


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_folds_are_judged_as_one(drawn: Path, tmp_path: Path, method: str) -> None:
    from shards.pack import PackOptions, pack

    options = PackOptions(folds=3, table=str(drawn / "truth.csv"), group_column="patient", workers=1)
    pack(drawn, tmp_path / "set", options)
    arguments = ("probe", *NET, "--data", tmp_path / "set", "--method", method, "--folds", "all")
    done = bloodcell(*arguments, "--run", tmp_path / "run", "--json", ranks=2 if method == "linear" else 0)
    assert done.code == 0, done.err
    assert done.json["samples"] == 240
    assert [fold["fold"] for fold in done.json["folds"]] == [0, 1, 2]
    pooled = read_predictions(tmp_path / "run" / "pooled" / "predictions" / "test.parquet")
    single = read_predictions(tmp_path / "run" / "fold1" / "predictions" / "test.parquet")
    rows = np.searchsorted(pooled.ids, single.ids)
    assert np.array_equal(pooled.logits[rows].argmax(1), single.logits.argmax(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("features", "resnet10x", "--data", "SET", "--out", "f.parquet"), "no such model"),
        (("features", "mobilenet_v2", "--out", "f.parquet"), "add --data SET or --images DIR"),
        (("features", *NET, "--data", "SET", "--split", "tset", "--out", "f.parquet"), "tset"),
        (("features", *NET, "--data", "SET", "--table", "x.csv", "--out", "f.parquet"), "are for --images"),
        (("features", *NET[:3], "--size", 2, "--data", "SET", "--out", "f.parquet"), "give 8 or more"),
        (("probe", *NET, "--data", "SET", "--fold", 1), "no folds"),
        (("probe", *NET, "--data", "SET", "--folds", "all"), "no folds"),
        (("probe", *NET, "--data", "SET", "--policy", "light"), "add --views N"),
        (("probe", *NET, "--data", "SET", "--views", -1), "give 0 or more"),
        (("probe", *NET, "--data", "SET", "--views", 1, "--policy", "lihgt"), "light"),
        (("probe", *NET, "--data", "SET", "--run", "SET"), "something else lies"),
        (("probe", *NET, "--data", "SET", "--features", "SET/dataset.json"), "not a table of features"),
        (("probe", "timm:resnet10t", "--weights", "gone.safetensors", "--data", "SET"), "no such file"),
    ],
)
def test_bad_input_is_told(
    small_set: Path, tmp_path: Path, arguments: tuple[object, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    verb, *words = [str(word).replace("SET", str(small_set)) for word in arguments]
    with pytest.raises(BadInput, match=message):
        run_verb(verb, words)
    assert not list(tmp_path.iterdir())
