"""Balanced against natural sampling on real cells, every second class made rare: docs/results/balance-cpu.json."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.jobs.conftest import verb

RARE = 1049 / 2530
"""How many training images a rare class keeps of each one: the numbers of hem and ALL in a published fold."""


def thinned(images: Path, packed: Path, out: Path) -> list[str]:
    """Link 200, 40 and all other images of each class into train, val, test; return the classes made rare in train."""
    rows = pq.read_table(packed / "samples.parquet", columns=["source", "class"]).to_pylist()
    classes = sorted({row["class"] for row in rows})
    draw = random.Random(0)
    for name in classes:
        files = sorted(row["source"] for row in rows if row["class"] == name)
        draw.shuffle(files)
        kept = round(200 * RARE) if name in classes[::2] else 200
        for part, chosen in (("train", files[:kept]), ("val", files[200:240]), ("test", files[240:])):
            (out / part / name).mkdir(parents=True)
            for file in chosen:
                os.symlink(images / file, out / part / name / Path(file).name)
    return classes[::2]


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.timeout(3600)
def test_balanced_sampling_finds_more_of_the_rare_classes(real_data: Path, tmp_path: Path) -> None:
    weights = next((real_data / "weights").glob("mobilenet_v2*.safetensors"))
    verb("pack", real_data / "pbc8", tmp_path / "whole", "--dataset", "pbc8", "--split", "70/15/15")
    rare = thinned(real_data / "pbc8", tmp_path / "whole", tmp_path / "images")
    verb("pack", tmp_path / "images", tmp_path / "set", "--keep-splits")
    flags = ("--data.size", 96, "--train.sizes=", "--train.epochs", 4, "--train.evaluate_every", 2)
    flags = (*flags, "--model.weights", weights, "--engine.threads", 1, "--tracking.wandb", "off")
    for name in ("natural", "balanced"):
        run = tmp_path / name
        verb("train", "best-small", "--data", tmp_path / "set", "--run", run, "--data.sampling", name, *flags)
    runs = [f"{name}={tmp_path / name}" for name in ("natural", "balanced")]
    rows = verb("bench", "runs", *runs, "--pair", "balanced", "natural")["rows"]
    gains = {row["name"].rpartition(" of ")[2]: row["value"] for row in rows if "less natural: recall" in row["name"]}
    assert sum(gains[name] for name in rare) > 0
