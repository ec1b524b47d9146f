"""Classifier heads: find what maps features to the classes, replace it by one or several layers, set its dropout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

import torch
from torch import nn
from torch.nn import functional

from shards.errors import BadInput

HEADS: dict[str, tuple[int, ...]] = {"linear": (), "head512": (512,), "head3x512": (512, 512, 512)}
"""Widths of the dense layers between features and classes, by the name of the head."""

_DENSE_PARTS = (
    nn.Linear,
    nn.Dropout,
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.Hardswish,
    nn.GELU,
    nn.SiLU,
    nn.Tanh,
)


class DropoutLinear(nn.Linear):
    """A linear layer that drops a share of its inputs while training (Srivastava et al. 2014, JMLR 15:1929).

    It lets a network without a dropout layer have one, with the names of its parameters unchanged.
    """

    rate: float = 0.0

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features [..., in_features] to [..., out_features]."""
        return functional.linear(functional.dropout(features, self.rate, self.training), self.weight, self.bias)


class DenseHead(nn.Module):
    """Dense layers with ReLU and dropout between features and classes.

    Args:
        inputs: number of features.
        widths: outputs of each dense layer; at least one.
        classes: number of outputs.
        dropout: rate of the dropout behind each dense layer, 0..1.
        convolution: the features are maps [N, inputs, H, W], and the layers are 1x1 convolutions.
    """

    def __init__(
        self, inputs: int, widths: tuple[int, ...], classes: int, dropout: float = 0.0, convolution: bool = False
    ) -> None:
        super().__init__()
        self.inputs, self.widths, self.rate, self.convolution = inputs, widths, dropout, convolution
        sides = (inputs, *widths)
        # Named layers, not numbered ones: a file of a network whose own classifier is numbered cannot match by chance.
        self.dense = nn.ModuleDict(
            {f"dense{i}": _layer(sides[i], sides[i + 1], convolution) for i in range(len(widths))}
        )
        self.out = _layer(sides[-1], classes, convolution)
        for layer in self.dense.values():
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features [N, inputs] (or [N, inputs, H, W]) to [N, classes] (or [N, classes, H, W])."""
        for layer in self.dense.values():
            features = functional.dropout(functional.relu(layer(features)), self.rate, self.training)
        return self.out(features)


Head = nn.Linear | nn.Conv2d | DenseHead


def attach_head(model: nn.Module, head: str, classes: int, dropout: float) -> nn.Module:
    """Replace the dense layers that end `model` by those of the named head, in place, and return the model.

    Where the classifier is a chain of dense layers (VGG, AlexNet, MobileNetV3), all of it is replaced, as if the
    network were taken without its top.

    Raises:
        BadInput: the model has no classifier layer, or more than one (a distilled network).
    """
    found = _heads(model)
    if len(found) > 1:
        raise BadInput(f"a model with {len(found)} classifiers takes no other head", type(model).__name__)
    name, old = found[0]
    above = name.rpartition(".")[0]
    chain = model.get_submodule(above)
    if above and isinstance(chain, nn.Sequential) and all(isinstance(part, _DENSE_PARTS) for part in chain):
        name, old = above, next(part for part in chain if isinstance(part, nn.Linear))
    inputs, convolution = _inputs(old), isinstance(old, nn.Conv2d)
    return _put(model, name, DenseHead(inputs, HEADS[head], classes, dropout, convolution))


def head_of(model: nn.Module) -> tuple[str, Head]:
    """Return the name and the module of the classifier: the last linear layer, 1x1 convolution or dense head.

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

    The new layer (or head of dense layers) has the kind, inputs, dtype and device of the old one; weights of the layer
    that gives the logits from N(0, 0.01²), bias zero.

    Raises:
        BadInput: the model has no classifier layer.
    """
    for name, head in _heads(model):
        fresh = _resized(head, classes)
        if not isinstance(fresh, DenseHead):
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
    if isinstance(head, DenseHead):
        head.rate = rate
        return model
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
    inside = {id(part) for head in model.modules() if isinstance(head, DenseHead) for part in head.modules()}
    heads = [
        (name, layer)
        for name, layer in model.named_modules()
        if _is_head(layer) and (isinstance(layer, DenseHead) or id(layer) not in inside)
    ]
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
    return isinstance(module, nn.Linear | DenseHead) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))


def _last(part: nn.Module) -> nn.Module | None:
    heads = [module for module in part.modules() if _is_head(module)]
    return next((head for head in heads if isinstance(head, DenseHead)), heads[-1] if heads else None)


def _inputs(head: Head) -> int:
    if isinstance(head, DenseHead):
        return head.inputs
    return head.in_channels if isinstance(head, nn.Conv2d) else head.in_features


def _layer(inputs: int, outputs: int, convolution: bool) -> nn.Linear | nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1) if convolution else nn.Linear(inputs, outputs)


def _resized(head: Head, classes: int) -> Head:
    if isinstance(head, DenseHead):
        fresh = DenseHead(head.inputs, head.widths, classes, head.rate, head.convolution)
        return fresh.to(head.out.weight)  # type: ignore[no-any-return]
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
