"""The figures of runs as a file: those that the runs hold, with their commands, and no place of this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from shards.errors import BadInput
from tests.jobs.conftest import verb


def test_figures_are_those_of_the_runs_and_pairs_those_of_compare(runs: Path, tmp_path: Path) -> None:
    one, two = runs / "one", runs / "two"
    found = verb("bench", "runs", f"A={one}", f"B={two}", "--pair", "A", "B")
    rows = {row["name"]: row for row in found["rows"]}
    judged = json.loads((one / "evaluation.json").read_text())["splits"]["test"]
    for name in ("accuracy", "macro_f1", "nll"):
        entry = judged["metrics"][name]
        assert {key: rows[f"A: {name}"][key] for key in entry} == entry
    assert rows["B: CPU time"]["value"] > 0
    compared = verb("compare", one, two, "--output", tmp_path / "compared")["pairs"][0]["difference"]["overall"]
    row = rows["A less B: accuracy"]
    assert (row["value"], row["low"], row["high"]) == tuple(compared["accuracy"][k] for k in ("value", "low", "high"))
    told = found["runs"]["A"]
    assert told["samples"] == judged["samples"]
    assert told["config"]["train"]["seed"] == 0
    assert told["config"]["model"]["name"] == "judged_net:build"
    assert found["versions"]["torch"]
    assert str(runs) not in json.dumps(found)


def test_folds_are_taken_as_their_pool(cross: Path) -> None:
    found = verb("bench", "runs", f"all={cross}")
    pooled = json.loads((cross / "pooled" / "evaluation.json").read_text())["splits"]["test"]
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["all: accuracy"]["value"] == pooled["metrics"]["accuracy"]["value"]
    assert found["runs"]["all"]["folds"] == 3
    assert "all: CPU time of a fold (3 of 3 noted it)" in rows


def test_what_is_no_finished_run_is_refused(runs: Path, tmp_path: Path) -> None:
    half = shutil.copytree(runs / "one", tmp_path / "half")
    (half / "evaluation.json").unlink()
    for arguments, said in (
        ((f"A={half}",), "no result for split"),
        (("A",), "names no run"),
        ((f"A={runs / 'one'}", "--pair", "A", "B"), "none of the runs"),
    ):
        with pytest.raises(BadInput, match=said):
            verb("bench", "runs", *arguments)
