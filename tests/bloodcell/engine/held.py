"""Trainings that a test can hold at a chosen forward pass of a chosen rank, to signal, stop or kill them there."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.conftest import command, start
from tests.warm import Process

NET = """
import os
import signal
import time
from pathlib import Path

from torch import nn


class Gate(nn.Module):
    # While HOLD/train-5-1 exists, the fifth training forward of rank 1 waits; HOLD/die-train-5-1 kills it there.
    def __init__(self):
        super().__init__()
        self.passes = {"train": -1, "eval": 0}  # the second pass of the warm-up is the first that counts

    def forward(self, x):
        mode = "train" if self.training else "eval"
        self.passes[mode] += 1
        folder = Path(os.environ["HOLD"])
        name = f"{mode}-{self.passes[mode]}-{os.environ.get('RANK', '0')}"
        if (folder / f"die-{name}").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if (folder / name).exists():
            (folder / f"{name}.new").write_text(str(os.getpid()))
            os.rename(folder / f"{name}.new", folder / f"{name}.reached")
            while (folder / name).exists():
                time.sleep(0.01)
        return x


def build(classes, dropout=0.2):
    first = [Gate(), nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    second = [nn.Conv2d(16, 32, 3, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    last = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(dropout), nn.Linear(128, classes)]
    return nn.Sequential(*first, *second, *last)
"""

FLAGS = (
    *("--model.name", "held_net:build", "--data.size", 32, "--data.micro_batch", 8, "--train.micro_batches", 4),
    *("--train.epochs", 2, "--train.save_every", 3, "--tracking.log_every", 1, "--tracking.wandb", "off"),
    *("--optim.lr", 0.002),
)
"""Ten steps of two micro-batches on each of two ranks; validations after steps 5 and 10, saves after 3, 6 and 9 too."""


@dataclass
class Held:
    """A training under way.

    Attributes:
        process: the launcher, or the one process.
        hold: the folder of its gates.
    """

    process: Process | subprocess.Popen[str]
    hold: Path

    def wait_for(self, gate: str, seconds: float = 240) -> int:
        """Wait until a pass is reached; return the rank's process id."""
        reached = self.hold / f"{gate}.reached"
        deadline = time.monotonic() + seconds
        while not reached.exists():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, f"{gate} was not reached"
            time.sleep(0.02)
        return int(reached.read_text())

    def release(self) -> None:
        """Let every held pass go on."""
        for gate in self.hold.iterdir():
            if not gate.suffix:
                gate.unlink()

    def end(self, seconds: float = 240) -> tuple[int, str]:
        """Wait for the end; return exit code and stderr."""
        _, err = self.process.communicate(timeout=seconds)
        return self.process.returncode or 0, err


def environment(net: Path, hold: Path, **more: str) -> dict[str, str]:
    """Return the environment of a training of the held network."""
    path = os.pathsep.join([str(Path(__file__).resolve().parents[3]), str(net), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "HOLD": str(hold), **more}


@contextmanager
def held(
    net: Path,
    data: Path,
    run: Path,
    *gates: str,
    ranks: int = 2,
    flags: tuple[object, ...] = (),
    fresh: bool = False,
    **more: str,
) -> Iterator[Held]:
    """Start a training that waits at `gates`; whatever is left of it at the end of the block is killed.

    `fresh` as in tests.conftest.bloodcell.
    """
    hold = run.with_name(f"{run.name}-hold")
    hold.mkdir(exist_ok=True)
    for gate in gates:
        (hold / gate).touch()
    words = command("train", "cnn5", "--data", data, "--run", run, *FLAGS, *flags, ranks=ranks)
    process = start(words, environment(net, hold, **more), fresh=fresh)
    training = Held(process, hold)
    try:
        yield training
    finally:
        training.release()
        if process.poll() is None:
            process.kill()
            process.communicate()


def train(net: Path, data: Path, run: Path, *flags: object, ranks: int = 2) -> tuple[int, str]:
    """Train to the end; return exit code and stderr."""
    with held(net, data, run, ranks=ranks, flags=flags) as training:
        return training.end()


def status(run: Path) -> dict[str, Any]:
    """Return status.json."""
    return dict(json.loads((run / "status.json").read_text()))


def measured(run: Path) -> list[dict[str, Any]]:
    """Return metrics.jsonl without what depends on the clock."""
    clock = {"time", "train/images_per_s", "train/data_wait", "train/memory_mib"}
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in clock} for record in records]


def assert_same(run: Path, other: Path) -> None:
    """Assert that two runs ended alike: weights to the bit, lineage, every record of metrics.jsonl."""
    ours, theirs = load_file(run / "model.safetensors"), load_file(other / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert np.array_equal(ours[name], theirs[name]), name
    assert status(run)["lineage"] == status(other)["lineage"]
    assert status(run)["lineage_proven"] is True
    assert measured(run) == measured(other)
