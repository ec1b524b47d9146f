"""Classifier heads: find the layer that maps features to the classes, replace it, set the dropout before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

import torch
from torch import nn
from torch.nn import functional

from shards.errors import BadInput

Head = nn.Linear | nn.Conv2d


class DropoutLinear(nn.Linear):
    """A linear layer that drops a share of its inputs while training (Srivastava et al. 2014, JMLR 15:1929).

    It lets a network without a dropout layer have one, with the names of its parameters unchanged.
    """

    rate: float = 0.0

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features [..., in_features] to [..., out_features]."""
        return functional.linear(functional.dropout(features, self.rate, self.training), self.weight, self.bias)


def head_of(model: nn.Module) -> tuple[str, Head]:
    """Return the name and the module of the classifier: the last linear layer or 1x1 convolution.

    A model that says which layer it is (`get_classifier()`, as all of timm's do) is believed.

    Raises:
        BadInput: the model has no such layer.
    """
    return _heads(model)[-1]


def head_parameters(model: nn.Module) -> set[str]:
    """Return the names of the classifier's parameters, as in `model.named_parameters()` and in the state dict.

    Raises:
        BadInput: the model has no classifier layer.
    """
    return {f"{name}.{part}" if name else part for name, head in _heads(model) for part, _ in head.named_parameters()}


def replace_head(model: nn.Module, classes: int) -> nn.Module:
    """Give `model` a new classifier for `classes` classes, in place, and return the model.

    The new layer has the kind, inputs, dtype and device of the old one; weights from N(0, 0.01²), bias zero.

    Raises:
        BadInput: the model has no classifier layer.
    """
    for name, head in _heads(model):
        fresh = _resized(head, classes)
        nn.init.normal_(fresh.weight, std=0.01)
        if fresh.bias is not None:
            nn.init.zeros_(fresh.bias)
        model = _put(model, name, fresh)
    if isinstance(getattr(model, "num_classes", None), int):
        model.num_classes = classes  # type: ignore[assignment]
    return model


def set_dropout(model: nn.Module, rate: float) -> nn.Module:
    """Set the dropout of the classifier to `rate` (0..1), in place, and return the model.

    The dropout layers beside the classifier get the rate; where there is none, the classifier drops its inputs.

    Raises:
        BadInput: the classifier is a convolution with no dropout layer beside it.
    """
    name, head = head_of(model)
    beside = [m for m in model.get_submodule(name.rpartition(".")[0]).children() if isinstance(m, nn.Dropout)]
    for layer in beside:
        layer.p = rate
    if beside:
        return model
    if not isinstance(head, nn.Linear):
        raise BadInput("this model takes no dropout", type(model).__name__, "leave the dropout unset")
    # On the meta device the new layer costs no random numbers; it takes the old tensors as they are.
    dropping = DropoutLinear(head.in_features, head.out_features, head.bias is not None, device="meta")
    dropping.rate, dropping.weight = rate, head.weight
    if head.bias is not None:
        dropping.bias = head.bias
    return _put(model, name, dropping)


def _heads(model: nn.Module) -> list[tuple[str, Head]]:
    """Return every classifier layer by name: one, but for networks with a second (distilled, auxiliary) head."""
    wanted = {id(_last(part)) for part in _declared(model)}
    heads = [(name, layer) for name, layer in model.named_modules() if _is_head(layer)]
    found = [(name, layer) for name, layer in heads if id(layer) in wanted] or heads[-1:]
    if not found:
        raise BadInput("no classifier layer found", type(model).__name__, "end the model with a linear layer")
    return found


def _declared(model: nn.Module) -> list[nn.Module]:
    """Return the modules that a model itself calls its classifiers, in the two ways of timm together."""
    config = getattr(model, "pretrained_cfg", None)
    names = config.get("classifier") if isinstance(config, Mapping) else None
    modules = dict(model.named_modules())
    named = [modules[name] for name in ((names,) if isinstance(names, str) else names or ()) if name in modules]
    getter = getattr(model, "get_classifier", None)
    part = getter() if callable(getter) else None
    # A list of classifiers is named head by head; only its last one would be found by looking into it.
    return named + ([part] if isinstance(part, nn.Module) else list(part or ()))


def _is_head(module: nn.Module) -> TypeGuard[Head]:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))


def _last(part: nn.Module) -> nn.Module | None:
    return next((module for module in reversed(list(part.modules())) if _is_head(module)), None)


def _resized(head: Head, classes: int) -> Head:
    place = {"device": head.weight.device, "dtype": head.weight.dtype}
    bias = head.bias is not None
    if isinstance(head, nn.Conv2d):
        return nn.Conv2d(head.in_channels, classes, 1, bias=bias, **place)  # type: ignore[arg-type]
    if isinstance(head, DropoutLinear):
        dropping = DropoutLinear(head.in_features, classes, bias, **place)
        dropping.rate = head.rate
        return dropping
    return nn.Linear(head.in_features, classes, bias, **place)


def _put(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put `module` in the place `name`; a model that is nothing but its head is replaced as a whole."""
    if not name:
        return module
    model.set_submodule(name, module)
    return model
