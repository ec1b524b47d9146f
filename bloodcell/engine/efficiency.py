"""How well a run used its machine: operations and bytes a second, beside what the device was measured to do.

Training is taken as three forwards. Operations are those of convolutions and matrix products. Bytes are those of a
network whose every layer reads its input from memory and writes its output there, in the run's precision: fused layers
move fewer, so the share of the bandwidth is an upper bound on what was really moved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bloodcell.config import Config
from bloodcell.engine.sizes import parse_sizes
from bloodcell.models import zoo

PASSES = 3
"""Forwards that the training of an image costs: itself, gradients of activations, gradients of weights."""


def efficiency(config: Config, images_per_s: float, world: int, ceiling: dict[str, float] | None) -> dict[str, Any]:
    """Return {tflops, mfu, gb_per_s, bandwidth} of each rank; what is not known is None.

    Args:
        config: resolved.
        images_per_s: of all ranks, in training.
        world: ranks.
        ceiling: {tflops, gb_per_s} that the device reached in `measured_ceiling`.
    """
    known = zoo.spec(config.model.name)
    stages = parse_sizes(config.train.sizes, config.data.size)
    pixels = float(sum(share * size**2 for size, share in stages))
    rate = PASSES * images_per_s / world
    tflops = rate * known.flops * pixels / known.size**2 / 1e12 if known.flops else None
    size = config.data.size
    width = 4 if config.engine.precision == "fp32" else 2
    values = values_moved(zoo.outline(config.model.name, config.model.head, size), size)
    gb_per_s = rate * width * values * pixels / size**2 / 1e9 if values else None
    top = ceiling or {}
    return {
        "tflops": _short(tflops),
        "mfu": _short(tflops / top["tflops"]) if tflops is not None and "tflops" in top else None,
        "gb_per_s": _short(gb_per_s),
        "bandwidth": _short(gb_per_s / top["gb_per_s"]) if gb_per_s is not None and "gb_per_s" in top else None,
        "ceiling": ceiling,
    }


@torch.no_grad()
def values_moved(model: nn.Module, size: int) -> int | None:
    """Return how many values the layers of a network (on the meta device) read and write for one image.

    None for a network that looks at values on its way, which are not there.
    """
    moved = 0

    def count(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal moved
        moved += sum(value.numel() for value in (*inputs, output) if isinstance(value, torch.Tensor))

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(count) for module in leaves]
    try:
        model.eval()(torch.empty(2, 3, size, size, device="meta"))
    except Exception:  # whatever a network raises: the run is done, and this is a figure beside it
        return None
    finally:
        for hook in hooks:
            hook.remove()
    return moved // 2


def measured_ceiling(device: torch.device, precision: str) -> dict[str, float] | None:
    """Return {tflops, gb_per_s} that a GPU reaches now in a large matrix product and a large copy.

    None on a CPU, where other processes share the cores and what one measures is theirs too, and where the memory that
    this takes (3 GiB) is not free.
    """
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    try:
        return _ceiling(device, precision)
    except torch.OutOfMemoryError:
        return None


def _ceiling(device: torch.device, precision: str) -> dict[str, float]:
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    side, bytes_ = 8192, 1 << 30
    one, other = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    source = torch.empty(bytes_, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return {
        "tflops": _short(2 * side**3 / _seconds(lambda: torch.mm(one, other)) / 1e12) or 0.0,
        "gb_per_s": _short(2 * bytes_ / _seconds(lambda: target.copy_(source)) / 1e9) or 0.0,
    }


def _seconds(work: Callable[[], Any], repeats: int = 10) -> float:
    """Return the shortest time that a piece of work on a GPU took."""
    found = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return min(found)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
