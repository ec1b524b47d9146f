"""What the documents tell people to type: every verb and flag is known, and every command of the README works."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from bloodcell.config import fields, parse_flags
from jobs.cli import VERBS, Parser
from tests.conftest import bloodcell
from tests.readme import PAGES, blocks, of_bloodcell, spans

NOT_RUN = {
    "make": "sets up an environment; CI runs it in a fresh clone",
    "bloodcell submit": "needs a Slurm: tests/jobs/slurm types it on one",
    "bloodcell doctor resnet10t --data SET --run RUNS --cluster": "needs a Slurm: tests/jobs/slurm",
    "bloodcell status RUN": "needs the job of a Slurm: tests/jobs/slurm types it",
    "bloodcell logs RUN": "needs the job of a Slurm",
    "bloodcell requeue RUN": "needs the job of a Slurm",
    "bloodcell cancel RUN": "needs the job of a Slurm",
}
"""How a command of a block begins -> why it is not run here."""

TRAINING = (
    *("--data.size", 32, "--data.micro_batch", 8, "--train.micro_batches", 2, "--train.epochs", 1),
    *("--tracking.wandb", "off", "--engine.threads", 1),
)
SMALLER = {"train": TRAINING, "bench scale": ("--index", 0), "explain": ("--samples", 8)}
"""Verb -> what is added, so that it is done soon."""


def parser_of(words: list[str]) -> tuple[Parser, str, list[str]]:
    """Return the parser of a command's verb, its module and the words behind the verb."""
    verb, rest = words[0], words[1:]
    if rest and f"{verb} {rest[0]}" in VERBS:
        verb, rest = f"{verb} {rest[0]}", rest[1:]
    assert verb in VERBS, f"no verb {verb!r}"
    parser = Parser(prog=f"bloodcell {verb}", allow_abbrev=False)
    importlib.import_module(VERBS[verb][0]).add_arguments(verb, parser)
    parser.add_argument("--json", action="store_true")
    return parser, VERBS[verb][0], rest


def known_flags(parser: argparse.ArgumentParser, words: list[str]) -> set[str]:
    """Return the flags of a parser and of the parts of it that the words choose."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name in set(words) & set(action.choices):
                found |= known_flags(action.choices[name], words)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_verb_and_flag_in_the_documents_is_known(page: str) -> None:
    for command in [*blocks(page), *spans(page)]:
        words = of_bloodcell(command)
        if not words or words[0].isupper():  # `bloodcell VERB`
            continue
        if words[0].startswith("-") or words[-1] == "--help":
            continue
        parser, module, rest = parser_of(words)
        takes_config = getattr(importlib.import_module(module), "TAKES_CONFIG", False)
        known = known_flags(parser, rest)
        for word in rest:
            flag = word.split("=")[0]
            if flag.startswith("--") and flag not in known:
                assert takes_config, f"{page}: {command}: {flag}"
                assert flag[2:].replace("-", "_") in fields(), f"{page}: {command}: {flag}"


def test_every_command_of_the_readme_parses_as_it_stands() -> None:
    count = 0
    for command in blocks("README.md"):
        words = of_bloodcell(command)
        if not words:
            continue
        parser, module, rest = parser_of(words)
        _, left = parser.parse_known_args(rest)
        if getattr(importlib.import_module(module), "TAKES_CONFIG", False):
            parse_flags(left)
        else:
            assert not left, command
        count += 1
    assert count >= 20


def test_what_is_not_run_is_still_there() -> None:
    commands = blocks("README.md")
    for begin in NOT_RUN:
        assert any(command.startswith(begin) for command in commands), f"{begin}: no longer in the README"


@pytest.fixture
def newcomer(
    drawn: Path, small_set: Path, runs: Path, cross: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with all that the README takes for granted, under the names that it uses."""
    import torch

    from bloodcell.models import zoo
    from bloodcell.models.weights import save_weights

    shutil.copytree(drawn, tmp_path / "images")
    (tmp_path / "SET").symlink_to(tmp_path / "set")
    shutil.copytree(small_set, tmp_path / "OTHER")
    judged = {"A": runs / "one", "B": runs / "two", **{f"FOLD{fold}": cross / f"fold{fold}" for fold in range(3)}}
    for name, run in judged.items():
        shutil.copytree(run, tmp_path / name, symlinks=True)
    torch.manual_seed(0)
    network = zoo.build("mobilenet_v2", 1000, channels_last=False)
    save_weights(network.state_dict(), tmp_path / "mobilenet_v2.safetensors", {})
    pictures = sorted(drawn.rglob("*.jpg"))[:4] or sorted(drawn.rglob("*.png"))[:4]
    with tarfile.open(tmp_path / "more.tar", "w") as tar:
        tar.add(pictures[0], pictures[0].name)
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{path}\n" for path in pictures))
    (tmp_path / "MAP.csv").write_text("label,class\nbenign,benign\nearly,early\npre,pre\npro,pro\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [*sys.path[:1], os.environ.get("PYTHONPATH", "")])))
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_newcomer_types_the_readme_from_top_to_bottom(newcomer: Path) -> None:
    typed = 0
    for command in blocks("README.md"):
        if any(command.startswith(begin) for begin in NOT_RUN):
            continue
        words = of_bloodcell(command.replace("FOLD1 ...", "FOLD1 FOLD2"))
        assert words, f"{command}: neither run nor listed in NOT_RUN"
        more = SMALLER.get(" ".join(words[:2]), SMALLER.get(words[0], ()))
        ranks = 2 if command.startswith("torchrun --nproc-per-node 2 ") else 0
        done = bloodcell(*words, *more, ranks=ranks, cwd=newcomer, timeout=1200)
        assert done.code == 0, f"{command}\n{done.out}\n{done.err}"
        typed += 1
    assert typed >= 14
    assert (newcomer / "table.parquet").exists()
    assert (newcomer / "cells.onnx").exists()
    assert (newcomer / "RUN" / "report.html").exists()
