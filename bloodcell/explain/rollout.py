"""Attention rollout: what the class token of a vision transformer attends to (Abnar and Zuidema, ACL 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bloodcell.explain.gradcam import scaled
from shards.errors import BadInput


def has_attention(model: nn.Module) -> bool:
    """Whether attention rollout knows this network: timm's or torchvision's vision transformers."""
    return bool(_timm_layers(model) or _torch_layers(model))


class Rollout:
    """Rollout maps. They are the same for every class: they say what is looked at, not what for.

    Args:
        model: a vision transformer, in evaluation mode, on its device.

    Raises:
        BadInput: the network is none that is known.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._timm, self._torch = _timm_layers(model), _torch_layers(model)
        if not self._timm and not self._torch:
            raise BadInput("no attention to roll out", type(model).__name__, "use --method gradcam or occlusion")

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Return the maps, float32 [n, h, w] in 0..1; `classes` are not used."""
        attentions = self._attentions(images)
        tokens = attentions[0].shape[-1]
        rolled = torch.eye(tokens, device=images.device).expand(len(images), -1, -1)
        for attention in attentions:
            # Half the signal passes by the attention, through the residual connection.
            mixed = attention.float().mean(dim=1) / 2 + torch.eye(tokens, device=images.device) / 2
            rolled = mixed / mixed.sum(dim=-1, keepdim=True) @ rolled
        side = int(((tokens - 1) ** 0.5) + 1e-6)  # the patches come last, behind class and register tokens
        patches = side * side
        first = rolled[:, 0] if tokens > patches else rolled.mean(dim=1)
        grid = first[:, tokens - patches :].reshape(len(images), 1, side, side)
        grown = functional.interpolate(grid, images.shape[2:], mode="bilinear", align_corners=False)
        return scaled(grown[:, 0])

    def _attentions(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the attention of every layer, each [n, heads, tokens, tokens]."""
        held: list[torch.Tensor] = []
        fused = [layer.fused_attn for layer in self._timm]
        hooks: list[Any] = []
        for layer in self._timm:
            layer.fused_attn = False  # the fused kernel keeps no attention matrix
            hooks.append(layer.attn_drop.register_forward_pre_hook(lambda _, inputs: held.append(inputs[0])))
        for layer in self._torch:
            hooks.append(layer.register_forward_pre_hook(_ask_weights, with_kwargs=True))
            hooks.append(layer.register_forward_hook(lambda _, __, output: held.append(output[1])))
        try:
            self.model(images)
        finally:
            for hook in hooks:
                hook.remove()
            for layer, was in zip(self._timm, fused, strict=True):
                layer.fused_attn = was
        return held


def _ask_weights(_: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return inputs, {**options, "need_weights": True, "average_attn_weights": False}


def _timm_layers(model: nn.Module) -> list[Any]:
    blocks = getattr(model, "blocks", None)
    layers = [getattr(block, "attn", None) for block in blocks.children()] if isinstance(blocks, nn.Module) else []
    whole = bool(layers) and all(hasattr(layer, "attn_drop") and hasattr(layer, "fused_attn") for layer in layers)
    # Windowed attention (Swin and others) is no matrix over all tokens.
    return layers if whole and hasattr(model, "pos_embed") else []


def _torch_layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
