"""Grad-CAM: where a convolutional network looks for a class (Selvaraju et al., Grad-CAM, ICCV 2017)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from shards.errors import BadInput

Mapper = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From images [n, 3, h, w] and classes int64 [n] to maps float32 [n, h, w] in 0..1, 1 where it matters most."""


def last_feature_map(model: nn.Module, image: torch.Tensor) -> tuple[str, nn.Module]:
    """Return the name and the module whose output is the last feature map [n, c, h, w] with h * w > 1.

    Adaptive pooling is passed over: it may blow a single place up to several that are all the same.

    Args:
        model: the network, in evaluation mode.
        image: one image of the right size, [1, 3, h, w].

    Raises:
        BadInput: the network makes no such map.
    """
    seen: list[tuple[str, nn.Module]] = []

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, torch.Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
                seen.append((name, module))

        return module.register_forward_hook(note)

    pooling = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
    hooks = [watch(name, module) for name, module in model.named_modules() if name and not isinstance(module, pooling)]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise BadInput("the network makes no feature map", type(model).__name__, "use --method occlusion")
    return seen[-1]


class GradCAM:
    """Grad-CAM maps of the last feature map of a network.

    Args:
        model: in evaluation mode, on its device.
        image: one image of the right size, to find the layer with.
    """

    def __init__(self, model: nn.Module, image: torch.Tensor) -> None:
        self.model = model
        self.name, self.layer = last_feature_map(model, image)

    def __call__(self, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Return the maps, float32 [n, h, w] in 0..1: the positive part of the gradient-weighted sum of channels."""
        held: list[torch.Tensor] = []
        hook = self.layer.register_forward_hook(lambda _, __, output: held.append(output))
        try:
            with torch.enable_grad():
                # The images ask for a gradient so that a wholly frozen network still has a graph.
                logits = self.model(images.detach().requires_grad_(True))
                score = logits.gather(1, classes[:, None]).sum()
                (gradient,) = torch.autograd.grad(score, held[0])
        finally:
            hook.remove()
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        raw = (weights * held[0].detach()).sum(dim=1, keepdim=True).clamp(min=0)
        grown = functional.interpolate(raw.float(), images.shape[2:], mode="bilinear", align_corners=False)
        return scaled(grown[:, 0])


def scaled(maps: torch.Tensor) -> torch.Tensor:
    """Return maps [n, h, w] divided by their largest value; a map of zeros stays one."""
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
