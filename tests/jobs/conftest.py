"""Runs that the tests of judging share: two seeds on one split, and the three folds of a cross-validation."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import VERBS, Parser

SMALL_NET = """
from torch import nn

def build(classes, dropout=0.2):
    first = [nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    second = [nn.Conv2d(16, 32, 3, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    last = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(dropout), nn.Linear(128, classes)]
    return nn.Sequential(*first, *second, *last)
"""

FLAGS = (
    *("--model.name", "judged_net:build", "--data.size", 32, "--data.micro_batch", 8, "--train.micro_batches", 6),
    *("--train.epochs", 2, "--optim.lr", 0.003, "--tracking.wandb", "off", "--engine.threads", 1),
)


def verb(name: str, *arguments: object) -> dict[str, Any]:
    """Run a verb in this process; return its result."""
    from jobs.cli import run_verb

    return run_verb(name, [str(argument) for argument in arguments])[0]


def parsed(name: str, *arguments: object) -> argparse.Namespace:
    """Return the parsed arguments of a verb that takes config fields."""
    module = importlib.import_module(VERBS[name][0])
    parser = Parser()
    module.add_arguments(name, parser)
    given, flags = parser.parse_known_args([str(argument) for argument in arguments])
    given.flags = flags
    return given


@pytest.fixture(scope="session")
def judged_net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A small network with BatchNorm, where this process and its children find it."""
    folder = tmp_path_factory.mktemp("nets")
    (folder / "judged_net.py").write_text(SMALL_NET)
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "OMP_NUM_THREADS")}
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), before["PYTHONPATH"] or ""])
    yield
    sys.path.remove(str(folder))
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def runs(small_set: Path, judged_net: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished runs `one` and `two`, of two seeds on one set."""
    folder = tmp_path_factory.mktemp("judged")
    for seed, name in enumerate(("one", "two")):
        verb("train", "cnn5", "--data", small_set, "--run", folder / name, "--train.seed", seed, *FLAGS)
    return folder


@pytest.fixture(scope="session")
def fold_set(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn images in three folds by patient."""
    from shards.pack import PackOptions, pack

    target = tmp_path_factory.mktemp("folded") / "folds"
    options = PackOptions(folds=3, table=str(drawn / "truth.csv"), group_column="patient", workers=1)
    pack(drawn, target, options)
    return target


@pytest.fixture(scope="session")
def cross(fold_set: Path, judged_net: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three folds trained and pooled by one command."""
    folder = tmp_path_factory.mktemp("cross") / "all"
    verb("train", "cnn5", "--data", fold_set, "--run", folder, "--folds", "all", *FLAGS)
    return folder
