"""Real sweeps of real trainings: killed and gone on with, paused and promoted, refused and failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from bloodcell.config import override
from jobs.sweep import draws
from jobs.sweep.settings import read_settings
from jobs.sweep.stored import settle
from jobs.train import find_recipe
from shards.errors import BadInput, EnvironmentFault
from shards.format import read_dataset
from tests.conftest import bloodcell, command
from tests.jobs.conftest import verb

RECIPE = """
[model]
name = "judged_net:build"
[data]
size = 32
micro_batch = 8
[train]
micro_batches = 6
seed = 3
[engine]
threads = 1
[tracking]
wandb = "off"
log_every = 1
[sweep]
objective = "val/macro_recall"
method = "asha"
trials = 3
epochs = 3
[sweep.space]
"model.dropout" = { choices = [0.0, 0.4] }
"optim.lr" = { low = 1e-4, high = 1e-1, log = true }
"""


@pytest.fixture
def recipe(tmp_path: Path, judged_net: None) -> Path:
    path = tmp_path / "searched.toml"
    path.write_text(RECIPE)
    return path


def journal(folder: Path) -> list[dict[str, Any]]:
    path = folder / "journal.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def attempts(folder: Path) -> list[int]:
    return [json.loads(path.read_text())["attempt"] for path in sorted(folder.glob("trials/*/status.json"))]


def children_of(folder: Path) -> list[int]:
    return [
        p.pid for p in psutil.process_iter(["cmdline"]) if str(folder / "trials") in " ".join(p.info["cmdline"] or [])
    ]


def test_killed_and_started_again_no_trial_is_done_twice(recipe: Path, small_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    arguments = ("sweep", recipe, "--data", small_set, "--out", out, "--workers", 2)
    process = subprocess.Popen(command(*arguments), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(record["event"] == "reached" for record in journal(out)):
        time.sleep(0.02)
    with pytest.raises(BadInput, match="another process is at work"):
        verb(*arguments)
    time.sleep(1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    assert not children_of(out), "a trial outlived its sweep and would write beside the next one"
    done = bloodcell(*arguments, "--json")
    assert done.code == 0, done.err
    assert "going on with" in done.err

    records, settings = journal(out), read_settings(recipe)
    assert settings is not None
    values = {record["trial"]: record["values"] for record in records if record["event"] == "sent"}
    assert values == {number: draws.draw(settings, number) for number in range(3)}
    reached = Counter((record["trial"], record["epochs"]) for record in records if record["event"] == "reached")
    assert set(reached.values()) == {1}
    assert sum(record.get("finished", False) for record in records) == done.json["finished"] == 1
    assert done.json["paused"] == 2, "ASHA paused nobody"
    paused = [json.loads(path.read_text()) for path in out.glob("trials/*/status.json")]
    assert sorted(status["state"] for status in paused) == ["done", "stopped", "stopped"]
    assert {status["epoch"] for status in paused if status["state"] == "stopped"} == {1.0}

    before, page = attempts(out), (out / "report.html").read_bytes()
    again = verb(*arguments)
    assert attempts(out) == before
    assert again["best"] == done.json["best"]
    assert (out / "report.html").read_bytes() == page
    for part in (b"Parallel coordinates", b"<polyline", b"in colour the winner"):
        assert part in page
    the_winner_is_what_train_makes_of_best_toml(out, done.json["best"], small_set, tmp_path / "whole")


def the_winner_is_what_train_makes_of_best_toml(out: Path, best: dict[str, Any], data: Path, run: Path) -> None:
    """Bit for bit: a pause and a promotion leave no trace."""
    trained = verb("train", out / "best.toml", "--data", data, "--run", run)
    paused, whole = (load_file(folder / "model.safetensors") for folder in (Path(best["run"]), run))
    assert all(np.array_equal(paused[name], whole[name]) for name in whole)
    assert trained["metrics"]["val"]["macro_recall"]["value"] == pytest.approx(best["value"])


@pytest.mark.slow
def test_what_a_trial_may_die_of(recipe: Path, small_set: Path, tmp_path: Path) -> None:
    """A loss that is not finite costs the trial; settings that are refused, or a kill, end the sweep with one line."""
    text = RECIPE[: RECIPE.index("[sweep]")]
    search = '[sweep]\ntrials = 3\nepochs = 1\n[sweep.space]\n"optim.lr" = {choices=[0.01, 1e38]}\n'
    recipe.write_text(text + search)
    found = verb("sweep", recipe, "--data", small_set, "--out", tmp_path / "one", "--optim.name", "sgd")
    assert found["failed"] >= 1
    assert found["finished"] >= 1
    assert found["best"]["values"] == {"optim.lr": 0.01}
    assert "not finite" in (tmp_path / "one" / "report.html").read_text()
    more = verb("sweep", recipe, "--data", small_set, "--out", tmp_path / "one", "--optim.name", "sgd", "--trials", 4)
    assert more["trials"] == 4
    recipe.write_text(text + '[sweep]\nepochs = 1\n[sweep.space]\n"model.dropout" = {choices=[1.0]}\n')
    with pytest.raises(BadInput, match=r"trial 0 cannot train: .*model\.dropout = 1\.0"):
        verb("sweep", recipe, "--data", small_set, "--out", tmp_path / "two")
    recipe.write_text(text + '[sweep]\nepochs = 1\n[sweep.space]\n"optim.lr" = {choices=[0.01]}\n')
    process = subprocess.Popen(
        command("sweep", recipe, "--data", small_set, "--out", tmp_path / "three", "--json"), stdout=-1
    )
    while not (alive := children_of(tmp_path / "three")):
        assert process.poll() is None, "the sweep has ended before its first trial"
        time.sleep(0.02)
    os.kill(alive[0], signal.SIGKILL)
    assert json.loads(process.communicate()[0])["exit"] == EnvironmentFault.code


def test_bad_input_is_one_clear_line(recipe: Path, small_set: Path, fold_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    sweep = ("sweep", recipe, "--data", small_set, "--out", out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for arguments, said in (
        (("sweep", "cnn5", "--data", small_set, "--out", out), "no table [sweep]"),
        (("sweep", recipe, "--out", out), "add --data SET"),
        (("sweep", recipe, "--data", small_set, "--out", tmp_path / "full"), "something else lies"),
        ((*sweep, "--objective", "test/accuracy"), "validation split alone"),
        ((*sweep, "--method", "grid"), "choose one of random"),
        ((*sweep, "--optim.lr", 0.1), "--optim.lr is searched"),
        ((*sweep, "--train.epochs", 3), "give --epochs"),
        ((*sweep, "--data.sise", 32), "did you mean --data.size?"),
        ((*sweep, "--workers", 0), "1 or more"),
    ):
        with pytest.raises(BadInput) as problem:
            verb(*arguments)
        assert said in str(problem.value)
        assert "\n" not in str(problem.value)
    assert not out.exists()
    recipe.write_text(RECIPE.replace("sweep.space", "sweep.spaces"))
    with pytest.raises(BadInput, match="unknown key 'spaces'"):
        verb("train", recipe, "--data", small_set, "--run", tmp_path / "run")


def test_a_folder_belongs_to_one_sweep(recipe: Path, small_set: Path, fold_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    out.mkdir()
    settings = read_settings(recipe)
    assert settings is not None
    config = override(find_recipe(str(recipe))[0], {"train.epochs": 3, "train.monitor": "val/macro_recall"})
    for more in (0, 5):  # a second start, and a longer one, are the same sweep
        wanted = settings.changed("", trials=3 + more)
        settle(out, config, wanted, small_set, read_dataset(small_set).fingerprint, 1)
    for change, said in (
        (("--optim.warmup", 0.5), "optim.warmup: 0.1 there, 0.5 here"),
        (("--method", "random"), "sweep.method: 'asha' there, 'random' here"),
        (("--trials", 2), "sweep.trials: 8 there, 2 here"),
        (("--data", fold_set), "another set"),
    ):
        with pytest.raises(BadInput) as problem:
            verb("sweep", recipe, "--data", small_set, "--out", out, *change)
        assert said in str(problem.value)
