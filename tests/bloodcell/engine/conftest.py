"""What tests of training share: small networks, and finished runs of them that nothing has disturbed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.bloodcell.engine import held
from tests.bloodcell.engine.runs import FAST, SMALL_NET
from tests.conftest import bloodcell


@pytest.fixture(scope="session")
def small_net(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small network with BatchNorm and dropout, named as users name theirs: module:function."""
    folder = tmp_path_factory.mktemp("nets")
    (folder / "small_net.py").write_text(SMALL_NET)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return "small_net:build"


@pytest.fixture(scope="session")
def undisturbed_run(small_set: Path, small_net: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on two ranks; not to be changed."""
    run = tmp_path_factory.mktemp("undisturbed") / "whole"
    done = bloodcell("train", "cnn5", "--data", small_set, "--run", run, "--model.name", small_net, *FAST, ranks=2)
    assert done.code == 0, done.err
    return run


@pytest.fixture(scope="session")
def held_net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the network that waits at gates."""
    folder = tmp_path_factory.mktemp("held")
    (folder / "held_net.py").write_text(held.NET)
    return folder


@pytest.fixture(scope="session")
def calm(held_net: Path, small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two ranks that nothing disturbed."""
    run = tmp_path_factory.mktemp("calm") / "run"
    code, err = held.train(held_net, small_set, run)
    assert code == 0, err
    return run
