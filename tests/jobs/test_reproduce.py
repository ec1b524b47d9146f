"""Reproduction: rows as data, runs that are taken up, and a table that says what was published and what came out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bloodcell.config import override
from bloodcell.evaluation.predictions import read_predictions
from jobs.reproduce.cli import _weights
from jobs.reproduce.quick import draw_sets, quick_flags
from jobs.reproduce.rows import choose, read_rows
from jobs.reproduce.table import _over_seeds, cells, headings
from jobs.train import find_recipe
from shards.errors import BadInput
from tests.jobs.conftest import verb
from tests.jobs.test_zoo_recipes import SYSTEMS

TINY = (
    *("--model.name=judged_net:build", "--model.head=linear", "--data.size=32", "--data.micro_batch=8"),
    *("--train.micro_batches=2", "--train.epochs=1", "--tracking.wandb=off", "--engine.threads=1"),
)


def attempts(folder: Path) -> dict[str, int]:
    found = folder.glob("*/seed*/**/status.json")
    return {str(path.relative_to(folder)): json.loads(path.read_text())["attempt"] for path in found}


def told(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["row"]: row for row in json.loads((folder / "table.json").read_text())["rows"]}


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's weights are on this disk."""
    monkeypatch.delenv("BLOODCELL_WEIGHTS", raising=False)
    for name in ("HOME", "TORCH_HOME", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


def test_every_system_has_a_row_and_every_row_a_recipe() -> None:
    rows = read_rows()
    recipes = {row.recipe for row in rows.values() if row.recipe}
    assert recipes == set(SYSTEMS)
    for row in rows.values():
        assert row.classes in (2, 4, 8)
        assert bool(row.recipe) != bool(row.members)
        assert all(rows[member].classes == row.classes for member in row.members)
        if row.recipe:
            find_recipe(row.recipe)
    assert rows["efficientnet_v2_s"].published == "local accuracy 0.9875, hidden test 0.85"
    assert [row.name for row in choose(["ensemble"])] == [*rows["ensemble"].members, "ensemble"]
    assert [row.name for row in choose([])] == list(rows)


def test_quick_sizes_are_the_smallest_that_a_model_takes() -> None:
    assert quick_flags(find_recipe("alexnet")[0])["data.size"] == 63
    assert quick_flags(find_recipe("cnn5")[0])["data.size"] == 32
    assert quick_flags(override(find_recipe("cnn5")[0], {"model.name": "vit_small"}))["data.size"] % 14 == 0


def test_weights_are_left_out_only_where_they_are_not_to_be_found(
    no_weights: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = read_rows()
    assert _weights(rows["mobilenet_v2-head512"], {}) == "none"
    assert _weights(rows["handcrafted-resnet"], {}) == ""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "mobilenet_v2-imagenet.safetensors").write_bytes(b"")
    monkeypatch.setenv("BLOODCELL_WEIGHTS", str(tmp_path / "shared"))
    assert _weights(rows["mobilenet_v2-head512"], {}) == ""
    assert _weights(rows["xception"], {}) == "none"
    assert _weights(rows["xception"], {"model.weights": "mine.safetensors"}) == ""


def test_seeds_are_summed_up() -> None:
    one, two = ({"value": v, "low": v - 0.1, "high": v + 0.1} for v in (0.5, 0.7))
    assert _over_seeds([one]) == {"mean": 0.5, "sd": None, "low": 0.4, "high": 0.6}
    both = _over_seeds([one, None, two])
    assert both is not None
    assert (both["mean"], both["low"], both["high"]) == pytest.approx((0.6, 0.4, 0.8))
    assert both["sd"] == pytest.approx(0.02**0.5)
    assert _over_seeds([None]) is None


def test_three_rows_in_quick_mode(no_weights: None, tmp_path: Path) -> None:
    out = tmp_path / "all"
    arguments = ("reproduce", "cnn5", "handcrafted-tuned", "mobilenet_v2-head512", "--quick", "--out", out)
    found = verb(*arguments, "--workers", 2)
    assert found["exit"] == 0, found
    rows = told(out)
    assert list(rows) == ["handcrafted-tuned", "mobilenet_v2-head512", "cnn5"]
    assert rows["mobilenet_v2-head512"]["weights"] == "--model.weights none"
    assert rows["cnn5"]["weights"] == "random, as the recipe says"
    for row in rows.values():
        assert row["test"]["accuracy"]["low"] <= row["test"]["accuracy"]["mean"] <= row["test"]["accuracy"]["high"]
        assert row["parameters"] > 100_000
        assert row["images_per_s"] > 0
        assert row["kwh"] > 0
        assert len(cells(row)) == len(headings())
    text = (out / "table.md").read_text()
    for part in ("Quick mode", "validation accuracy and recall 0.987", "was trained from scratch", "is an estimate"):
        assert part in text
        assert part in (out / "table.html").read_text()
    before = attempts(out)
    assert len(before) == 3
    (out / "cnn5" / "seed0" / "evaluation.json").unlink()
    verb(*arguments, "--workers", 2)
    after = attempts(out)
    assert {name for name in after if after[name] != before[name]} == {"cnn5/seed0/status.json"}
    assert set(told(out)) == set(rows)


@pytest.mark.slow
def test_seeds_folds_and_the_average_of_three_models(no_weights: None, judged_net: None, tmp_path: Path) -> None:
    from shards.pack import PackOptions, pack

    draw_sets(tmp_path / "drawn", {8})
    folds = tmp_path / "folds"
    pack(tmp_path / "drawn" / "8-images", folds, PackOptions(folds=3, workers=1))
    out = tmp_path / "out"
    found = verb("reproduce", "ensemble", "--data", folds, "--folds", "--seeds", 2, "--out", out, "--workers", 2, *TINY)
    assert found["exit"] == 0, found
    rows = told(out)
    assert rows["ensemble"]["test"]["accuracy"]["sd"] is not None
    assert rows["ensemble"]["parameters"] == 3 * rows["xception"]["parameters"]
    assert rows["xception"]["seeds"] == [0, 1]
    members = [out / name / "seed1" / "pooled" for name in ("efficientnet_v2_s", "xception", "nasnet_mobile")]
    tables = [read_predictions(folder / "predictions" / "test.parquet") for folder in members]
    whole = read_predictions(out / "ensemble" / "seed1" / "predictions" / "test.parquet")
    assert len(whole.ids) == 96
    mean = sum(table.probabilities() for table in tables) / 3
    assert whole.probabilities() == pytest.approx(mean, abs=1e-5)
    before = attempts(out)
    verb("reproduce", "xception", "--data", folds, "--folds", "--out", out, *TINY)
    assert attempts(out) == before


def test_a_row_that_fails_is_told_and_the_others_run(no_weights: None, judged_net: None, tmp_path: Path) -> None:
    sets = draw_sets(tmp_path / "drawn", {4})
    small = [flag for flag in TINY if "model.name" not in flag and "size" not in flag]
    arguments = (
        "alexnet",
        "handcrafted-resnet",
        "--data",
        sets[4],
        "--out",
        tmp_path / "out",
        "--data.size=32",
        *small,
    )
    found = verb("reproduce", *arguments)
    assert found["exit"] == 1
    rows = told(tmp_path / "out")
    assert "too small" in rows["alexnet"]["failed"]
    assert rows["alexnet"]["test"]["accuracy"] is None
    assert rows["handcrafted-resnet"]["test"]["accuracy"] is not None
    assert "FAILED" in (tmp_path / "out" / "table.md").read_text()


def test_bad_input_is_one_clear_line(small_set: Path, fold_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for arguments, said in (
        (("alexnett", "--quick"), "did you mean 'alexnet'?"),
        (("160", "--quick"), "config flags need ="),
        (("alexnet",), "add --data SET"),
        (("alexnet", "--quick", "--data", small_set), "draws its own sets"),
        (("xception", "--data", small_set), "xception is for a set of 8 classes"),
        (("alexnet", "--data", small_set, small_set), "two sets of 4 classes"),
        (("alexnet", "--data", fold_set), "add --folds"),
        (("alexnet", "--data", small_set, "--folds"), "leave --folds out"),
        (("alexnet", "--data", small_set, "--train.seed=1"), "give --seeds"),
        (("alexnet", "--data", small_set, "--data.sise=32"), "did you mean --data.size?"),
        (("alexnet", "--quick", "--seeds", 0), "1 or more"),
        (("alexnet", "--quick", "--watts", 0), "above 0"),
    ):
        with pytest.raises(BadInput) as problem:
            verb("reproduce", *arguments, "--out", out)
        assert said in str(problem.value)
        assert "\n" not in str(problem.value)
    assert not out.exists()
    with pytest.raises(BadInput, match="something else lies"):
        verb("reproduce", "alexnet", "--data", small_set, "--out", tmp_path / "full")


def test_a_folder_belongs_to_one_reproduction(no_weights: None, small_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    held = {"quick": False, "folds": False, "flags": {"data.size": 32}, "sets": {"4": "another"}, "weights": {}}
    (out / "reproduce.json").write_text(json.dumps(held))
    with pytest.raises(BadInput, match=r"flags: .*32.* there, .*64.* here; set of 4 classes"):
        verb("reproduce", "alexnet", "--data", small_set, "--out", out, "--data.size=64")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_row_runs_in_quick_mode(no_weights: None, tmp_path: Path) -> None:
    found = verb("reproduce", "--quick", "--out", tmp_path / "all", "--workers", 2)
    assert found["exit"] == 0, [row["failed"] for row in found["rows"]]
    assert [row["row"] for row in found["rows"]] == list(read_rows())
    assert all(row["test"]["accuracy"] for row in found["rows"])
