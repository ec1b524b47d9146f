"""Does a model work here: built, trained a step, given another head, run in bf16, saved and loaded again?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from bloodcell.models import zoo
from bloodcell.models.heads import HEADS, replace_head
from bloodcell.models.weights import load_weights, save_weights

STEPS = ("build", "train", "bf16", "save", "swap", "dense")
"""What is tried: build it; forward and backward; bf16 autocast; save and load; a head of other classes; dense heads."""

CLASSES = 4
UNKNOWN = 64
"""Side of the images where a model's smallest is not known, in pixels; its native size if it cannot take them."""


def examine(name: str) -> dict[str, Any]:
    """Try a model at the smallest size that it takes.

    Returns:
        {"name", "size": pixels, "passed": steps, "failed": the first step that failed or None, "error", "seconds"}
    """
    begin, passed, size = time.monotonic(), [], 0
    failed, problem = None, ""
    try:
        size = smallest(name)
        for step, attempt in _attempts(name, size):
            failed = step
            attempt()
            passed.append(step)
        failed = None
    except Exception as error:  # whatever it is, it is the finding
        failed = failed or STEPS[0]
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return {
        "name": name,
        "size": size,
        "passed": passed,
        "failed": failed,
        "error": problem,
        "seconds": round(time.monotonic() - begin, 2),
    }


def smallest(name: str) -> int:
    """Return the side of the images that a model is tried with, in pixels."""
    known = zoo.spec(name)
    if known.minimum is not None:
        return known.minimum
    try:
        zoo.check_size(name, UNKNOWN)
        return UNKNOWN
    except Exception:
        return known.size


def _attempts(name: str, size: int) -> Iterator[tuple[str, Callable[[], None]]]:
    models: list[nn.Module] = []
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
    yield "build", lambda: models.append(zoo.build(name, CLASSES, size=size))
    yield "train", lambda: train_a_step(models[0], images)
    yield "bf16", lambda: run_in_bf16(models[0], images)
    yield "save", lambda: save_and_load(models[0], zoo.build(name, CLASSES, size=size), images)
    yield "swap", lambda: swap_head(models[0], images)
    yield "dense", lambda: give_dense_heads(name, size, images)


def train_a_step(model: nn.Module, images: torch.Tensor) -> None:
    """Send images forward and back; every parameter must get a finite gradient, and some of it not be zero."""
    logits = model.train()(images)
    _must(logits.shape == (len(images), CLASSES), f"logits have shape {tuple(logits.shape)}")
    nn.functional.cross_entropy(logits, torch.arange(len(images)) % CLASSES).backward()
    for name, parameter in model.named_parameters():
        _must(parameter.grad is not None and bool(parameter.grad.isfinite().all()), f"no finite gradient in {name}")
    _must(any(bool(p.grad.any()) for p in model.parameters() if p.grad is not None), "every gradient is zero")
    model.zero_grad(set_to_none=True)


def run_in_bf16(model: nn.Module, images: torch.Tensor) -> None:
    """Send images forward under bf16 autocast."""
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        logits = model.train()(images)
    _must(logits.dtype == torch.bfloat16 and bool(logits.isfinite().all()), "the logits are not finite bf16 numbers")


def save_and_load(model: nn.Module, fresh: nn.Module, images: torch.Tensor) -> None:
    """Save the model and load it into a fresh one: both must say the same of the images, bit for bit."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_weights(model.state_dict(), path, {})
        report = load_weights(fresh, path, head="strict")
    _must(report.complete and not report.unexpected, "not every tensor was loaded")
    with torch.no_grad():
        _must(torch.equal(model.eval()(images), fresh.eval()(images)), "the loaded model gives other logits")


def swap_head(model: nn.Module, images: torch.Tensor) -> None:
    """Give the model a head for more classes."""
    with torch.no_grad():
        logits = replace_head(model, CLASSES + 3).eval()(images)
    _must(logits.shape == (len(images), CLASSES + 3), f"logits have shape {tuple(logits.shape)}")


def give_dense_heads(name: str, size: int, images: torch.Tensor) -> None:
    """Build the model with each head of dense layers."""
    for head in HEADS:
        if head != "linear":
            with torch.no_grad():
                logits = zoo.build(name, CLASSES, dropout=0.3, head=head, size=size)(images)
            _must(logits.shape == (len(images), CLASSES), f"with {head} logits have shape {tuple(logits.shape)}")


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)
