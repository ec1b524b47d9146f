"""What a network costs: parameters and floating-point operations, found without memory for weights or images."""

from __future__ import annotations

import torch
from torch import nn

from bloodcell.models.spec import ModelSpec

CLASSES = 1000
"""Classes for which parameters and operations are stated, as in the papers."""


def skeleton(known: ModelSpec, classes: int = 2, size: int | None = None) -> nn.Module:
    """Return the network with weights that have shapes but no values (on the meta device); costs no random numbers."""
    options = {"size": size} if known.sized and size is not None else {}
    try:
        with torch.device("meta"):
            return known.builder(classes=classes, **options)
    except Exception:  # some networks read values while they are made, which the meta device does not have
        with torch.random.fork_rng(devices=[]):
            return known.builder(classes=classes, **options).to("meta")


def output_shape(model: nn.Module, size: int) -> torch.Size:
    """Return the shape of what a skeleton makes of two images of `size` x `size`; raises what the network raises."""
    with torch.no_grad():
        return model.eval()(torch.empty(2, 3, size, size, device="meta")).shape


def measure(known: ModelSpec) -> tuple[int, int]:
    """Return the parameters with 1,000 classes and the operations of one image of the native size.

    Convolutions, matrix products and attention are counted, a multiply-add as two (twice what papers call MACs);
    everything else is small beside them.
    """
    from torch.utils.flop_counter import FlopCounterMode  # loads a compiler that training does not need

    model = skeleton(known, CLASSES, known.size).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, known.size, known.size, device="meta"))
    return sum(p.numel() for p in model.parameters()), int(counter.get_total_flops())
