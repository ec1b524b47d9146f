"""What tests of training share: a small network, and a finished run of it that nothing has disturbed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
