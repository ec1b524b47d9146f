"""The zoo: what is known of each model by name, and building one without a network."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import nn

from bloodcell.models import library
from bloodcell.models.costs import output_shape, skeleton
from bloodcell.models.heads import HEADS, attach_head
from bloodcell.models.registry import REGISTRY, SPELLINGS, plain
from bloodcell.models.spec import IMAGENET_MEAN, IMAGENET_STD, Builder, ModelSpec, PublicWeights
from shards.errors import BadInput, nearest

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "REGISTRY", "Builder", "ModelSpec", "PublicWeights", "build", "check_size"]
__all__ += ["names", "outline", "plain", "spec"]

ENTRY_POINTS = "bloodcell.models"
"""Group of the entry points with which another package adds models: a function as for `module:function`, or a
`ModelSpec`."""


def names() -> list[str]:
    """Return the names of the registered models and of those that other packages add."""
    return sorted({*REGISTRY, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def spec(name: str) -> ModelSpec:
    """Return what is known of the model `name`.

    `name` is a registered name in any spelling (MobileNetV2, mobilenet_v2), the name of an entry point of the group
    `bloodcell.models`, `timm:NAME`, `torchvision:NAME`, or `module:function` with
    `function(classes: int, **options) -> nn.Module` (or a `ModelSpec`) in a module that can be imported from the Python
    path or the working directory.

    Raises:
        BadInput: there is no such model; the nearest names are told.
    """
    for point in entry_points(group=ENTRY_POINTS, name=name):
        return _own(name, point.module, point.attr)
    where, colon, rest = name.partition(":")
    if not colon and plain(name) in SPELLINGS:
        return REGISTRY[SPELLINGS[plain(name)]]
    if colon and where in ("timm", "torchvision"):
        return _library(name, where, rest)
    if colon:
        return _own(name, *_halves(name))
    raise _unknown(name, [*names(), *library.torchvision_names(), *library.timm_names()])


def build(
    name: str,
    classes: int,
    dropout: float | None = None,
    channels_last: bool = True,
    head: str = "linear",
    size: int | None = None,
) -> nn.Module:
    """Return the model `name` with fresh random weights, on the CPU, in float32; nothing is downloaded.

    Args:
        name: as for `spec`.
        classes: number of outputs, at least 2.
        dropout: rate 0..1 of the classifier's dropout; None leaves the model's own (none in a head of dense layers).
        channels_last: keep the 4-dimensional parameters in channels-last memory format.
        head: "linear", or one of `heads.HEADS`: dense layers in place of the model's own.
        size: side of the images in pixels, for the position embeddings of a transformer; None is its native size.

    Raises:
        BadInput: no such model or head, a number out of range, or a model that takes no dropout.
    """
    known = spec(name)
    if classes < 2:
        raise BadInput("a classifier needs at least two classes", f"classes = {classes}")
    if dropout is not None and not 0 <= dropout < 1:
        raise BadInput("the dropout is a share from 0 to below 1", f"dropout = {dropout}")
    if head not in HEADS:
        raise BadInput(f"no head {head!r}", name, nearest(head, list(HEADS)) or f"there are {', '.join(HEADS)}")
    options: dict[str, Any] = {}
    if dropout is not None and head == "linear":
        options["dropout"] = dropout
    if size is not None and known.sized:
        options["size"] = size
    try:
        inspect.signature(known.builder).bind(classes=classes, **options)
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"the model cannot be built: {error}", name, "it must be a function(classes, **options) -> nn.Module"
        ) from error
    model = known.builder(classes=classes, **options)
    if not isinstance(model, nn.Module):
        raise BadInput(f"the function returned {type(model).__name__}, not an nn.Module", name)
    if head != "linear":
        model = attach_head(model, head, classes, dropout or 0.0)
    return model.to(memory_format=torch.channels_last) if channels_last else model  # type: ignore[call-overload]


def outline(name: str, head: str = "linear", size: int | None = None) -> nn.Module:
    """Return the model as `build` makes it, for two classes, but without memory and values (on the meta device)."""
    model = skeleton(spec(name), size=size)
    if head == "linear":
        return model
    with torch.device("meta"):
        return attach_head(model, head, 2, 0.0)


def check_size(name: str, size: int) -> None:
    """Make sure that the model `name` can take images of `size` x `size` pixels.

    Where the smallest size is not known, an empty batch shape is sent through the network (no memory, no weights).

    Raises:
        BadInput: no such model, or it cannot take this size; the smallest that it takes is told.
    """
    known = spec(name)
    if size < (known.minimum or 1):
        raise BadInput(f"{size} px is too small for this model", name, f"it takes {known.minimum or 1} px or more")
    if size % known.multiple:
        fitting = size // known.multiple * known.multiple
        near = " or ".join(str(n) for n in (fitting, fitting + known.multiple) if n >= (known.minimum or 1))
        raise BadInput(
            f"{size} px will not do for this model", name, f"take a multiple of {known.multiple}, such as {near}"
        )
    if known.minimum is not None:
        return
    model = skeleton(known)
    problem = _problem(model, size)
    if problem:
        raise BadInput(f"this model cannot take {size} px: {problem}", name, _what_it_takes(model, size, known.size))


def check_same_network(outline: nn.Module, name: str, size: int, built_for: int) -> None:
    """Make sure that a network that was built for images of one size takes those of another as well.

    Args:
        outline: of the network, as `outline` returns it for `built_for`.
        name: of the model.
        size: of the other images, pixels.
        built_for: pixels.

    Raises:
        BadInput: the model cannot take the size, or its weights belong to one size (position embeddings, flat maps).
    """
    if size == built_for:
        return
    check_size(name, size)
    problem = _problem(outline, size)
    if problem:
        said = f"the network for {built_for} px cannot be shown {size} px: {problem}"
        raise BadInput(said, name, f"show it {built_for} px throughout (leave train.sizes out)")


def _problem(model: nn.Module, size: int) -> str:
    """Return why a skeleton cannot take images of this size, "" if it can."""
    try:
        output_shape(model, size)
    except Exception as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return ""


def _what_it_takes(model: nn.Module, size: int, native: int) -> str:
    """Return the smallest size above one that is too small, by halving the interval up to the native size."""
    if size >= native or _problem(model, native):
        return f"its own size is {native} px"
    small, large = size, native
    while large - small > 1:
        middle = (small + large) // 2
        small, large = (middle, large) if _problem(model, middle) else (small, middle)
    return f"the smallest it takes is {large} px"


def _library(name: str, where: str, rest: str) -> ModelSpec:
    found = library.timm_spec(rest) if where == "timm" else library.torchvision_spec(rest)
    if found is None:
        raise _unknown(name, library.timm_names() if where == "timm" else library.torchvision_names())
    return found


def _own(name: str, module: str, attribute: str) -> ModelSpec:
    """Return the spec of a function, or the `ModelSpec`, that lies at `module:attribute` outside this package."""
    if os.getcwd() not in sys.path:
        # A console script does not look into the working directory; at the end of the path it hides nothing.
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # the module is the user's: whatever it raises is told in one line
        raise BadInput(f"cannot import {module!r}: {type(error).__name__}: {error}", name) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise _unknown(name, [f"{module}:{other}" for other in vars(found) if not other.startswith("_")])
        found = getattr(found, part)
    if isinstance(found, ModelSpec):
        return found
    if not callable(found):
        raise BadInput("not a function that builds a model", name, "expected function(classes, **options)")
    return ModelSpec(name=name, builder=found, notes=f"from {module}")


def _halves(reference: str) -> tuple[str, str]:
    module, _, attribute = reference.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise BadInput("no such model", reference, "expected NAME, timm:NAME, torchvision:NAME or module:function")
    return module, attribute


def _unknown(name: str, known: list[str]) -> BadInput:
    """Say which of the `known` names are most like `name`, by the part after the library or module."""

    def likeness(other: str) -> float:
        wanted, there = (text.rpartition(":")[2].lower() for text in (name, other))
        return difflib.SequenceMatcher(None, wanted, there).ratio()

    closest = sorted(known, key=likeness, reverse=True)[:3]
    close = [other for other in closest if likeness(other) > 0.6]
    hint = f"did you mean {' or '.join(close)}?" if close else f"registered are {', '.join(names())}"
    return BadInput("no such model", name, hint)
