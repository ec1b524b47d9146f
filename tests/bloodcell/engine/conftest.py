"""What the tests of signals and stuck ranks share: a network with a gate, and an undisturbed run of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bloodcell.engine import held


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
