"""`bloodcell explain` on real runs: the planted shortcut is found, mistakes are one line, the page needs nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from shards.pack import PackOptions, pack
from shards.synth import SynthOptions, synthesise
from tests.conftest import bloodcell


@pytest.fixture(scope="module")
def misled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A set whose lower right corner gives the class away, and a run that learned it."""
    place = tmp_path_factory.mktemp("misled")
    synthesise(place / "images", SynthOptions(images=240, size=48, patients=24, seed=5, shortcut=True))
    pack(place / "images", place / "set", PackOptions(split="60/20/20", near=False, workers=1))
    done = bloodcell(
        *("train", "cnn5", "--data", place / "set", "--run", place / "run", "--data.size", 48, "--train.epochs", 8),
        *("--data.policy", "none", "--data.micro_batch", 8, "--tracking.wandb", "off", "--train.micro_batches", 2),
    )
    assert done.code == 0, done.err
    return place / "set", place / "run"


def test_the_planted_shortcut_is_found(misled: tuple[Path, Path]) -> None:
    _, run = misled
    done = bloodcell("explain", run, "--json", "--errors", 4, "--samples", 48)
    assert done.code == 0, done.err
    regions = done.json["regions"]
    assert regions["lower right"]["flagged"] is True
    assert regions["lower right"]["accuracy_painted"] < regions["lower right"]["accuracy"] - 0.2
    assert [name for name, figures in regions.items() if figures["flagged"] and name.startswith("upper")] == []
    assert regions["lower right"]["ratio"] > max(regions[f"upper {side}"]["ratio"] for side in ("left", "right"))
    assert done.json["method"] == "gradcam"
    assert "correlation" in done.json["sanity"]


def test_it_leaves_figures_maps_features_and_a_page(misled: tuple[Path, Path]) -> None:
    data, run = misled
    bloodcell("explain", run, "--samples", 24, "--errors", 2)
    again = bloodcell("explain", run, "--samples", 24, "--errors", 2, "--json")
    assert again.code == 0, again.err
    folder = run / "explanation"
    figures = json.loads((folder / "explanation.json").read_text())
    assert {key: again.json[key] for key in figures if key != "schema"} == {
        key: value for key, value in figures.items() if key != "schema"
    }
    maps = np.load(folder / "maps.npz")
    assert maps["maps"].shape == (24, 48, 48)
    table = pq.read_table(folder / "embeddings.parquet")
    count = sum(json.loads((data / "dataset.json").read_text())["samples"]["test"].values())
    assert table.num_rows == count
    page = (folder / "explanation.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert "lower right" in page
    assert not list(run.glob("explanation.*"))
    errors = json.loads((folder / "errors.json").read_text())["errors"]
    assert [row["key"] for row in errors] == [row["key"] for row in figures["errors"]]
    report = (run / "report.html").read_text()
    assert '<section id="explanation">' in report
    assert all(row["map_true"] in report for row in errors)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--method", "lime"], "choose one of auto, gradcam"),
        (["--method", "rollout"], "no attention"),
        (["--split", "train"], "evaluate RUN --split train"),
        (["--samples", "0"], "--samples"),
    ],
)
def test_mistakes_are_one_line(misled: tuple[Path, Path], flags: list[str], said: str) -> None:
    done = bloodcell("explain", misled[1], *flags)
    assert done.code == 2
    assert said in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_another_set_is_refused(misled: tuple[Path, Path], small_set: Path) -> None:
    done = bloodcell("explain", misled[1], "--data", small_set)
    assert done.code == 2
    assert "another set" in done.err
