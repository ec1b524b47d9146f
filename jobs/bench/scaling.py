"""How long a training step takes on 1 to 512 GPUs, what it waits for, what memory its state needs: a model on paper.

A step of N GPUs that each take b images lasts

    (b / rate + fixed + what is left of the all-reduce) * (1 + spread * log2 N), or as long as the loader needs

An all-reduce of S bytes takes 2 (n - 1) / n * S / bandwidth inside a node (NVIDIA/nccl-tests, doc/PERFORMANCE.md), the
same between nodes, and a latency that grows with log2 N; it hides behind the backward pass but for the last bucket
(Li et al., PyTorch Distributed, VLDB 2020). scale.toml holds the constants, their sources, and published figures.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from shards.errors import BadInput, nearest

NODE = 8
"""GPUs of a node."""
REFERENCE = "rtx3090"


@cache
def constants() -> dict[str, Any]:
    """Return scale.toml."""
    return tomllib.loads(Path(__file__).with_name("scale.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Work:
    """What is trained on what.

    Attributes:
        rate: images/s of one GPU with large batches.
        parameters: of the network.
        gpu: which one, a key of scale.toml.
        node_input: images/s that a node's loader can give; 0: as many as are wanted.
        network: GB/s between nodes; 0: the GPU's usual.
        gradient_bytes: of each parameter in the all-reduce: 4, or 2 with engine.compress = bf16.
    """

    rate: float
    parameters: float
    gpu: str = "h200"
    node_input: float = 0
    network: float = 0
    gradient_bytes: int = 4


@dataclass(frozen=True)
class Step:
    """Seconds of one step: its parts, and the whole with the wait for the slowest or for the loader."""

    compute: float
    fixed: float
    exchange: float
    spread: float
    input_wait: float

    @property
    def seconds(self) -> float:
        """The whole."""
        return self.compute + self.fixed + self.exchange + self.spread + self.input_wait

    @property
    def limit(self) -> str:
        """What takes most of it beside computing, or "compute"."""
        parts = {"compute": self.compute, "fixed": self.fixed, "all-reduce": self.exchange, "input": self.input_wait}
        return max(parts, key=lambda name: parts[name])


def gpu(name: str) -> dict[str, Any]:
    """Return what is known of a GPU; raises BadInput."""
    known = constants()["gpu"]
    if name not in known:
        raise BadInput(f"no GPU {name!r}", "--gpu", nearest(name, list(known)) or f"there are {', '.join(known)}")
    return dict(known[name])


def all_reduce(size: float, gpus: int, work: Work) -> float:
    """Return the seconds of an all-reduce of `size` bytes over `gpus` GPUs, first inside the nodes, then between."""
    if gpus == 1:
        return 0.0
    there, inside, nodes = gpu(work.gpu), min(gpus, NODE), math.ceil(gpus / NODE)
    within = 2 * (inside - 1) / inside * size / (there["link"] * 1e9)
    between = 2 * (nodes - 1) / nodes * size / ((work.network or there["network"]) * 1e9)
    return within + between + math.log2(gpus) * constants()["step"]["latency_us"] * 1e-6


def step(work: Work, gpus: int, batch: float) -> Step:
    """Return a step in which each of `gpus` GPUs takes `batch` images."""
    known = constants()["step"]
    compute, fixed = batch / work.rate, known["fixed_ms"] / 1e3
    size = work.parameters * work.gradient_bytes
    whole = all_reduce(size, gpus, work)
    last = all_reduce(min(size, known["bucket_mb"] * 2**20), gpus, work)
    exchange = max(last, whole - known["overlap"] * compute)
    own = compute + fixed + exchange
    spread = own * known["spread"] * math.log2(gpus)
    feeding = batch * min(gpus, NODE) / work.node_input if work.node_input else 0.0
    return Step(compute, fixed, exchange, spread, max(0.0, feeding - own - spread))


def throughput(work: Work, gpus: int, batch: float) -> float:
    """Return images/s of all GPUs together."""
    return gpus * batch / step(work, gpus, batch).seconds


def large_batch_rate(one: float, batch: float) -> float:
    """Return the rate without the fixed part, from the images/s of one GPU at a batch size."""
    return 1 / (1 / one - constants()["step"]["fixed_ms"] / 1e3 / batch)


def zoo_rate(model: str, size: int, gpu_name: str) -> tuple[float, bool]:
    """Return the images/s of a model of the zoo on one GPU with large batches, and whether that is an estimate.

    The rate measured on one GPU is carried over by memory bandwidth or arithmetic, whichever bounds it, and to another
    input size by the operations.
    """
    from bloodcell.models import zoo

    known, spec = constants(), zoo.spec(model)
    if spec.name not in known["rate"] and spec.name not in known["like"]:
        names = sorted({*known["rate"], *known["like"]} & set(zoo.names()))
        raise BadInput(
            f"no measured rate for {model!r}", "--models", nearest(model, names) or f"known: {', '.join(names)}"
        )
    row = known["rate"][known["like"].get(spec.name, spec.name)]
    assert spec.flops is not None
    gflops = spec.flops / 1e9 * (size / spec.size) ** 2
    factor = gpu(gpu_name)[row["bound"]] / known["gpu"][REFERENCE][row["bound"]]
    return row["images_s"] * row["gflops"] / gflops * factor, spec.name in known["like"]


@dataclass(frozen=True)
class Run:
    """A whole training: images of the training and validation split, epochs, images of a global batch."""

    images: int
    validation: int
    epochs: int
    batch: int


def run_seconds(work: Work, gpus: int, run: Run) -> float:
    """Return the seconds of a run, with one global batch on any number of GPUs: start, steps, validations, saves."""
    training = max(1, run.images // run.batch) * step(work, gpus, run.batch / gpus).seconds
    epoch = training + validation_seconds(work, gpus, run.validation) + save_seconds(work)
    return float(constants()["step"]["start_s"]) + run.epochs * epoch


def validation_seconds(work: Work, gpus: int, images: int) -> float:
    """Return the seconds of a validation: a forward pass is a third of a training step, and ranks meet at its end."""
    return images / (3 * work.rate * gpus) + float(constants()["step"]["validation_s"])


def save_seconds(work: Work) -> float:
    """Return how long training waits for a checkpoint: until it is copied to host memory; a thread writes it."""
    return state_bytes(work.parameters, 0, 1) / (float(constants()["step"]["copy_gb_s"]) * 1e9)


def worth(work: Work, run: Run, gain: float) -> int:
    """Return how many GPUs (up to 512) a run is worth: each doubling leaves at most `gain` of the time."""
    gpus = 1
    while gpus < min(512, run.batch) and run_seconds(work, 2 * gpus, run) <= gain * run_seconds(work, gpus, run):
        gpus *= 2
    return gpus


def state_bytes(parameters: float, stage: int, gpus: int) -> float:
    """Return the bytes of weights, gradients and Adam's two moments on each GPU, all fp32, under ZeRO's stage 0 to 3.

    Rajbhandari et al., ZeRO, SC 2020, arXiv:1910.02054, figure 1, with 4 bytes for each.
    """
    kept, shared = {0: (16, 0), 1: (8, 8), 2: (4, 12), 3: (0, 16)}[stage]
    return parameters * (kept + shared / gpus)
