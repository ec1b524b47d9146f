"""Small training runs in real processes, and what tests look at in their folders."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.numpy import load_file

from tests import conftest
from tests.conftest import command
from tests.warm import Process

Running = Process | subprocess.Popen[str]

FAST = (
    *("--data.size", 32, "--data.micro_batch", 8, "--train.micro_batches", 4, "--train.epochs", 3),
    *("--train.save_every", 2, "--tracking.log_every", 1, "--tracking.wandb", "off", "--optim.lr", 0.002),
)

SMALL_NET = """
from torch import nn

def build(classes, dropout=0.2):
    first = [nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    second = [nn.Conv2d(16, 32, 3, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    last = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(dropout), nn.Linear(128, classes)]
    return nn.Sequential(*first, *second, *last)
"""


def start(*arguments: object, ranks: int, fresh: bool = False) -> Running:
    """Start `bloodcell ...`; `fresh` as in tests.conftest.bloodcell."""
    return conftest.start(command(*arguments, ranks=ranks), dict(os.environ), fresh=fresh)


def kill(process: Running) -> None:
    """End all its processes at once, as the loss of a node does; those that have ended by themselves stay so."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()  # torchrun's ranks have sessions of their own
    process.kill()
    process.communicate()


def weights(run: Path) -> dict[str, np.ndarray]:
    """Return the run's result."""
    return dict(load_file(run / "model.safetensors"))


def same(a: Path, b: Path) -> bool:
    """Whether two runs ended with the same weights, bit for bit."""
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def records(run: Path) -> list[dict[str, Any]]:
    """Return the complete lines of metrics.jsonl, none while there is no such file."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def losses(run: Path) -> list[tuple[int, float]]:
    """Return (step, loss) of every record of training."""
    return [(r["step"], r["train/loss"]) for r in records(run) if "train/loss" in r]


def told(run: Path) -> list[dict[str, Any]]:
    """Return all records without what differs from run to run: times, rates and memory."""
    passing = ("time", "train/images_per_s", "train/data_wait", "train/memory_mib")
    return [{name: value for name, value in record.items() if name not in passing} for record in records(run)]


def status(run: Path) -> dict[str, Any]:
    """Return status.json."""
    return dict(json.loads((run / "status.json").read_text()))
