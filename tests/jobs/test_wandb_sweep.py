"""`sweep --wandb-file`: W&B's own client takes the file, and a trial that its agent starts is the server's run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bloodcell.config import parse_flags
from bloodcell.tracking.wandb_view import run_id
from shards.errors import BadInput
from tests.bloodcell.wandb_server import Server
from tests.jobs.conftest import verb

RECIPE = """
[model]
name = "cnn5"

[sweep]
objective = "val/macro_f1"
method = "{method}"
trials = 4
epochs = 2

[sweep.space]
"optim.lr" = {{ low = 1e-4, high = 1e-1, log = true }}
"train.micro_batches" = {{ low = 2, high = 4 }}
"data.policy" = {{ choices = ["light", "none"] }}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe with a sweep that pauses poor trials."""
    file = tmp_path / "searched.toml"
    file.write_text(RECIPE.format(method="hyperband"))
    return file


def test_the_client_takes_the_file(recipe: Path, small_set: Path, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    verb("sweep", recipe, "--data", small_set, "--wandb-file", file, "--data.size", 32)
    found = yaml.safe_load(file.read_text())
    assert found["command"][:5] == ["bloodcell", "train", str(recipe), "--data", str(small_set.resolve())]
    shared = parse_flags(found["command"][5:-1])
    assert (shared["data.size"], shared["train.epochs"], shared["train.monitor"]) == (32, 2, "val/macro_f1")
    assert found["command"][-1] == "${args}"
    assert found["parameters"]["optim.lr"] == {"distribution": "log_uniform_values", "min": 1e-4, "max": 0.1}
    assert found["parameters"]["data.policy"] == {"values": ["light", "none"]}
    assert found["early_terminate"]["type"] == "hyperband"
    assert parse_flags(["--optim.lr=0.01"]) == {"optim.lr": 0.01}, "as an agent writes ${args}"
    with Server() as server:
        variables = {**os.environ, **server.variables, "HOME": str(tmp_path)}
        command = [str(Path(sys.executable).with_name("wandb")), "sweep", "--project", "cells", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        (kept,) = server.sweeps
    assert yaml.safe_load(kept["config"])["parameters"] == found["parameters"]


def test_a_trial_of_an_agent_has_the_id_that_the_server_drew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abcd1234")
    assert run_id(tmp_path / "alone") != "abcd1234", "a stray variable would join all runs into one"
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    assert run_id(tmp_path / "trial") == "abcd1234"
    monkeypatch.delenv("WANDB_SWEEP_ID")
    assert run_id(tmp_path / "trial") == "abcd1234"


def test_what_is_missing_is_named(recipe: Path, small_set: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is made from a recipe"):
        verb("sweep", "--wandb-file", tmp_path / "sweep.yaml")
    with pytest.raises(BadInput, match="no folder is named"):
        verb("sweep", recipe, "--data", small_set)
    assert json.dumps([path.name for path in tmp_path.iterdir()]) == '["searched.toml"]'
