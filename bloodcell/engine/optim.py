"""The optimizer from the config: weight decay on matrices and filters only, smaller steps for earlier layers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bloodcell.config import FUSABLE, OptimConfig
from shards.errors import BadInput, nearest

OWN = ("adamw", "adam", "sgd", "rmsprop")

_BLOCK = re.compile(
    r"(?:[^.]+\.)*?\d+(?=\.)"  # features.3, layer2.0
    r"|(?:[^.]+\.)+?(?:conv|norm|transition|\w*block|\w*layer)\d+(?=\.)"  # features.denseblock1
    r"|[^.]+"  # conv1, fc
)


def check_optimizer(config: OptimConfig) -> None:
    """Raise BadInput unless there is an optimizer of this name, in one kernel where that is asked for."""
    name = config.name
    if config.fused == "on" and name not in FUSABLE:
        raise BadInput(f"{name} has no such kernel", "optim.fused", f"set it to auto, or take {', '.join(FUSABLE)}")
    if name in OWN:
        return
    library, _, wanted = name.partition(":")
    if library != "timm":
        raise BadInput(f"no optimizer {name!r}", "optim.name", f"choose one of {', '.join(OWN)} or timm:NAME")
    from timm.optim import list_optimizers  # late: importing timm takes longer than all else that a start needs

    known = list_optimizers()
    if wanted not in known:
        raise BadInput(f"timm has no optimizer {wanted!r}", "optim.name", nearest(wanted, known) or "see timm.optim")


def is_fused(config: OptimConfig, device: torch.device) -> bool:
    """Return whether one kernel does the step of a whole group of weights: what optim.fused says, or auto means.

    On a CPU that halves the time of a training step of AlexNet and VGG16 and takes 5 to 8 % off those of networks with
    fewer weights (`bloodcell bench engine --setting fused`). But there the last bits of a weight depend on where in a
    tensor it lies, so that ZeRO, which lays them out anew, would not end with DDP's.
    """
    if config.fused == "auto":
        return device.type == "cuda" and config.name in FUSABLE
    return config.fused == "on"


def build_optimizer(model: nn.Module, config: OptimConfig, device: torch.device) -> torch.optim.Optimizer:
    """Return the optimizer over the trainable parameters.

    adamw is Loshchilov and Hutter, 2019; adam Kingma and Ba, 2015; sgd has Nesterov momentum; rmsprop is Tieleman and
    Hinton, 2012. Biases and the scales of norm layers (everything with fewer than two dimensions) are not decayed.

    Raises:
        BadInput: no such optimizer, every weight is frozen, or timm's lacks a package or option.
    """
    check_optimizer(config)
    groups = _groups(model, config)
    if not groups:
        raise BadInput("no weight can be trained: all are frozen", "model", "unfreeze some of them")
    fused = is_fused(config, device)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=fused)
    if config.name == "adam":
        return torch.optim.Adam(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=fused)
    if config.name == "sgd":
        nesterov = config.momentum > 0
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=fused)
    if config.name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=config.lr, momentum=config.momentum)
    from timm.optim import create_optimizer_v2

    name = config.name.partition(":")[2]
    try:
        # The groups carry the decay; a default beside them would decay biases too.
        return create_optimizer_v2(groups, opt=name, lr=config.lr, weight_decay=0.0, momentum=config.momentum)
    except (AssertionError, ImportError, TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"timm's {name} cannot be made: {error}", "optim.name", "choose another optimizer") from error


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group this learning rate, times the factor of its layer."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


@torch.no_grad()
def add_l1(optimizer: torch.optim.Optimizer, strength: float) -> None:
    """Add the gradient of strength * sum |w| to the gradients of all decayed weights (a subgradient: 0 at 0)."""
    for group in optimizer.param_groups:
        if strength and group["l1"]:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.grad.add_(weight.sign(), alpha=strength)


def clip_gradients(weights: list[torch.Tensor], largest: float) -> torch.Tensor:
    """Scale the gradients down to the norm `largest` if theirs is above it (0: never); return their norm before."""
    if largest:
        return nn.utils.clip_grad_norm_(weights, largest)
    return nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])


def _groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Return the parameter groups, one for each decay and layer factor, in a fixed order."""
    layer_of = layers_of(model) if config.layer_decay < 1 else lambda name: 0
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    last = max((layer_of(name) for name, _ in named), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in sorted(named, key=lambda pair: (layer_of(pair[0]), pair[1].ndim < 2)):
        layer, decays = layer_of(name), parameter.ndim >= 2
        decay = config.weight_decay if decays else 0.0
        scale = config.layer_decay ** (last - layer)
        group = groups.setdefault((layer, decays), {"params": [], "weight_decay": decay, "l1": decays})
        if scale != 1.0:
            group["lr_scale"] = scale
        group["params"].append(parameter)
    return list(groups.values())


def layers_of(model: nn.Module) -> Callable[[str], int]:
    """Return a function from a parameter's name to the number of its layer, counted from the input.

    timm's models say what their layers are; elsewhere a layer is a numbered block (`features.3`, `layer2.0`,
    `features.denseblock1`) or a module of the first level, in the order of definition.
    """
    if hasattr(model, "group_matcher"):
        from timm.models import group_parameters

        numbers: dict[str, int] = group_parameters(model, model.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
        return lambda name: numbers[name]
    blocks: dict[str, int] = {}
    for name, _ in model.named_parameters():
        blocks.setdefault(_block(name), len(blocks))
    return lambda name: blocks[_block(name)]


def _block(name: str) -> str:
    """Return the part of a parameter's name up to its first numbered block, or its first word."""
    found = _BLOCK.match(name)
    return found.group(0) if found else name
