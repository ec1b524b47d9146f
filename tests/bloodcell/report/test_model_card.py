"""The model card: what it must hold, that nothing is made up, that names cannot become markup."""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from safetensors.numpy import save_file

from bloodcell.evaluation.judge import judge
from bloodcell.evaluation.result import write_evaluation
from bloodcell.report import write_run_report
from bloodcell.report.files import WEIGHTS
from bloodcell.report.markdown import code, table, text
from shards.definitions import read_definition
from shards.format import write_dataset
from tests.bloodcell.evaluation.drawing import drawn, validation
from tests.bloodcell.report.test_judged_page import explain
from tests.bloodcell.report.written import EVIL, write_run, write_set


@pytest.fixture
def card(tmp_path: Path) -> tuple[Path, str]:
    """A run whose set a definition knows, with weights, a full judgement and a shortcut; and its card."""
    info = write_set(tmp_path / "set")
    write_dataset(tmp_path / "set", dataclasses.replace(info, options={"source": "smears", "dataset": "raabin5"}))
    run = write_run(tmp_path / "run", tmp_path / "set", info)
    metadata = {"size": "64", "mean": "[0.5, 0.5, 0.5]", "std": "[0.25, 0.25, 0.25]"}
    save_file({"a": np.zeros(3, np.float32)}, run / WEIGHTS, metadata)
    machine = json.loads((run / "environment.json").read_text())
    initial = {"file": "/home/somebody/weights/cnn5.safetensors", "sha256": "c" * 64}
    machine |= {"weights": initial, "device": "cpu", "threads": {"torch": 2, "loader": 1}, "host": "secret-host"}
    (run / "environment.json").write_text(json.dumps(machine))
    result = judge(drawn(1, patients=10), validation(), resamples=20)
    write_evaluation(run / "evaluation.json", "test", result)
    explain(run, "")
    write_run_report(run, tmp_path / "set")
    return run, (run / "model_card.md").read_text(encoding="utf-8")


def test_a_card_holds_what_whoever_gets_the_weights_must_know(card: tuple[Path, str]) -> None:
    run, said = card
    heads = [line[3:] for line in said.splitlines() if line.startswith("## ")]
    assert heads == [
        "Model",
        "Intended use",
        "Data",
        "Results",
        "Calibration",
        "Limits that were found",
        "Cost of the training",
        "How to load it",
        "Licence and citation",
    ]
    assert "Research use only: not a medical device, not for diagnosis." in said
    assert hashlib.sha256((run / WEIGHTS).read_bytes()).hexdigest() in said
    assert f"`cnn5.safetensors`, sha256 `{'c' * 64}`" in said
    assert "mean `[0.5, 0.5, 0.5]`, standard deviation `[0.25, 0.25, 0.25]`" in said
    result = json.loads((run / "evaluation.json").read_text())["splits"]["test"]
    accuracy = result["metrics"]["accuracy"]
    low, high = accuracy["low"] * 100, accuracy["high"] * 100
    assert f"| accuracy | {accuracy['value'] * 100:.1f}\u202f% | {low:.1f}–{high:.1f}\u202f% |" in said
    worst = result["worst_groups"]["patient"]["worst"]["name"]
    assert f"The worst patient or slide is {worst}" in said
    assert "Possible shortcut: 50.0" in said
    assert "Fingerprint of the set: `" + "a" * 64 in said
    known = read_definition("raabin5")
    assert text(known.citation) in said
    assert text(known.notes[0]) in said
    assert "secret-host" not in said
    assert "/home/" not in said
    assert str(run) not in said


def test_names_cannot_become_markup(card: tuple[Path, str]) -> None:
    """Read by a Markdown parser, the card shows names as they are and holds every table as a table."""
    shown = MarkdownIt().enable("table").render(card[1])
    assert "<script" not in shown
    assert html.escape(EVIL) in shown
    assert shown.count("<table>") == sum(line.startswith("| ---") for line in card[1].splitlines()) == 5
    assert shown.count("<pre>") == 1
    assert "| ---" not in shown


def test_the_card_is_markdown_with_whole_tables(card: tuple[Path, str]) -> None:
    lines = card[1].splitlines()
    assert lines[0].startswith("# ")
    assert card[1].count("```") == 2
    for number, line in enumerate(lines):
        if line.startswith("| ---"):
            width = line.count("|")
            assert lines[number - 1].replace("\\|", "").count("|") == width
            assert lines[number - 2] == "", "a table begins a block"
            below = number + 1
            while lines[below].startswith("|"):
                assert lines[below].replace("\\|", "").count("|") == width
                below += 1
            assert lines[below] == ""
            assert below > number + 1


def test_what_is_unknown_is_not_made_up(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_run_report(run, None)
    said = (run / "model_card.md").read_text(encoding="utf-8")
    assert "counts and audit are unknown" in said
    assert "sha256 of the weights | unknown" in said
    assert "It has not been evaluated" in said
    assert "Licence and citation of the data: unknown" in said
    assert "Shortcuts were not looked for" in said
    assert "How to load" not in said
    assert "Cost" not in said


def test_a_leak_comes_before_everything_in_the_card(tmp_path: Path) -> None:
    info = write_set(tmp_path / "set", leaks=1)
    run = write_run(tmp_path / "run", tmp_path / "set", info)
    write_run_report(run, tmp_path / "set")
    said = (run / "model_card.md").read_text(encoding="utf-8")
    assert said.startswith("**Warning: the set of this run leaks.")
    assert "found **1 leak**" in said


def test_text_code_and_tables_are_escaped() -> None:
    assert text("a|b *c* _d_\n<e> #1") == r"a\|b \*c\* \_d\_ \<e\> \#1"
    assert code("a`b") == "`` a`b ``"
    assert code("a|b") == r"`a\|b`"
    assert code("plain") == "`plain`"
    assert table(["a"], []) == []
    assert table(["a", "b"], [["1", "2"]]) == ["| a | b |", "| --- | --- |", "| 1 | 2 |", ""]
