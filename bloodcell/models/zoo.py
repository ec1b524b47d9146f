"""The registry of models: what is known of each by name, and building one without a network."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import nn

from bloodcell.models.handmade import CNN5
from bloodcell.models.heads import set_dropout
from shards.errors import BadInput

ENTRY_POINTS = "bloodcell.models"
"""Group of the entry points with which another package adds models: a function as for `module:function`, or a
`ModelSpec`."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


Builder = Callable[..., nn.Module]
"""`function(classes: int, **options)`: returns a freshly initialised network from float images [N, 3, H, W] to logits
[N, classes]. The one option is `dropout`, given only where the user set one."""


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model before it is built."""

    name: str
    """Name under which `build` makes it."""
    builder: Builder
    """Function that makes it."""
    size: int = 224
    """Native side of the square input, in pixels."""
    minimum: int | None = None
    """Smallest side that it can take, in pixels; None: not known, `check_size` tries it out."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of the inputs by channel (red, green, blue), for values 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of the inputs by channel, for values 0..1."""
    source: str = ""
    """The paper that the model comes from."""
    weights: str = ""
    """Where public weights come from, and their licence; empty if there are none."""
    notes: str = ""
    """Family and particulars."""
    aliases: tuple[str, ...] = ()
    """Other spellings of the name."""


def torchvision_builder(name: str) -> Builder:
    """Return the builder of torchvision's classification model `name`, random weights."""

    def build_torchvision(classes: int, dropout: float | None = None) -> nn.Module:
        from torchvision.models import get_model

        model = get_model(name, weights=None, num_classes=classes, **_torchvision_options(name))
        return model if dropout is None else set_dropout(model, dropout)

    return build_torchvision


def timm_builder(name: str) -> Builder:
    """Return the builder of timm's model `name`, random weights."""

    def build_timm(classes: int, dropout: float | None = None) -> nn.Module:
        from timm import create_model

        if dropout is None:
            return create_model(name, pretrained=False, num_classes=classes)
        try:
            return create_model(name, pretrained=False, num_classes=classes, drop_rate=dropout)
        except TypeError as error:
            if "drop_rate" not in str(error):
                raise
            return set_dropout(create_model(name, pretrained=False, num_classes=classes), dropout)

    return build_timm


_SPECS = (
    ModelSpec(
        name="cnn5",
        builder=CNN5,
        size=128,
        minimum=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        source="classic CNN after Krizhevsky et al. 2012, doi:10.1145/3065386",
        notes="hand-made: five conv + max-pool blocks with dropout, dense 128; made to be trained from scratch",
    ),
    ModelSpec(
        name="mobilenet_v2",
        builder=torchvision_builder("mobilenet_v2"),
        size=224,
        minimum=32,
        source="Sandler et al. 2018, arXiv:1801.04381",
        weights="torchvision MobileNet_V2_Weights (ImageNet-1k; BSD-3-Clause code, ImageNet terms for the data)",
        notes="torchvision: inverted residuals, 3.5 M parameters with 1,000 classes",
        aliases=("mobilenetv2", "MobileNetV2"),
    ),
)

REGISTRY: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}
"""The registered models by name."""

_ALIASES = {alias: spec.name for spec in _SPECS for alias in spec.aliases}


def names() -> list[str]:
    """Return the names of the registered models and of those that other packages add."""
    return sorted({*REGISTRY, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def spec(name: str) -> ModelSpec:
    """Return what is known of the model `name`.

    `name` is a registered name or alias, the name of an entry point of the group `bloodcell.models`, `timm:NAME`,
    `torchvision:NAME`, or `module:function` with `function(classes: int, **options) -> nn.Module` (or a `ModelSpec`)
    in a module that can be imported from the Python path or the working directory.

    Raises:
        BadInput: there is no such model; the nearest names are told.
    """
    if name in REGISTRY or name in _ALIASES:
        return REGISTRY[_ALIASES.get(name, name)]
    for point in entry_points(group=ENTRY_POINTS, name=name):
        return _own(name, point.module, point.attr)
    library, colon, rest = name.partition(":")
    if colon and library == "timm":
        return _timm(rest)
    if colon and library == "torchvision":
        return _torchvision(rest)
    if colon:
        return _own(name, *_halves(name))
    raise _unknown(name, [*names(), *_torchvision_names(), *_timm_names()])


def build(name: str, classes: int, dropout: float | None = None, channels_last: bool = True) -> nn.Module:
    """Return the model `name` with fresh random weights, on the CPU, in float32; nothing is downloaded.

    Args:
        name: as for `spec`.
        classes: number of outputs, at least 2.
        dropout: rate 0..1 of the classifier's dropout; None leaves the model's own.
        channels_last: keep the 4-dimensional parameters in channels-last memory format.

    Raises:
        BadInput: no such model, a number out of range, or a model that takes no dropout.
    """
    known = spec(name)
    if classes < 2:
        raise BadInput("a classifier needs at least two classes", f"classes = {classes}")
    if dropout is not None and not 0 <= dropout < 1:
        raise BadInput("the dropout is a share from 0 to below 1", f"dropout = {dropout}")
    options = {} if dropout is None else {"dropout": dropout}
    try:
        inspect.signature(known.builder).bind(classes=classes, **options)
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"the model cannot be built: {error}", name, "it must be a function(classes, **options) -> nn.Module"
        ) from error
    model = known.builder(classes=classes, **options)
    if not isinstance(model, nn.Module):
        raise BadInput(f"the function returned {type(model).__name__}, not an nn.Module", name)
    return model.to(memory_format=torch.channels_last) if channels_last else model  # type: ignore[call-overload]


def check_size(name: str, size: int) -> None:
    """Make sure that the model `name` can take images of `size` x `size` pixels.

    Where the smallest size is not known, an empty batch shape is sent through the network (no memory, no weights).

    Raises:
        BadInput: no such model, or it cannot take this size.
    """
    known = spec(name)
    smallest = 1 if known.minimum is None else known.minimum
    if size < smallest:
        raise BadInput(f"{size} px is too small for this model", name, f"it takes {smallest} px or more")
    if known.minimum is not None:
        return
    try:
        _shape_of_output(known, size)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"this model cannot take {size} px: {reason}", name, f"its own size is {known.size} px"
        ) from error


def _shape_of_output(known: ModelSpec, size: int) -> torch.Size:
    try:
        with torch.device("meta"):
            model = known.builder(classes=2)
    except Exception:  # some networks read values while they are made, which the meta device does not have
        with torch.random.fork_rng(devices=[]):
            model = known.builder(classes=2).to("meta")
    with torch.no_grad():
        return model.eval()(torch.empty(2, 3, size, size, device="meta")).shape


def _torchvision(name: str) -> ModelSpec:
    from torchvision.models import get_model_weights

    full = f"torchvision:{name}"
    if name not in _torchvision_names(prefix=""):
        raise _unknown(full, _torchvision_names())
    public = get_model_weights(name).DEFAULT
    look = public.transforms()
    return ModelSpec(
        name=full,
        builder=torchvision_builder(name),
        size=int(look.crop_size[0]),
        mean=_three(look.mean),
        std=_three(look.std),
        source=str(public.meta.get("recipe", "")),
        weights=f"torchvision {public}",
        notes="torchvision",
    )


def _timm(name: str) -> ModelSpec:
    import timm

    full = f"timm:{name}"
    if not timm.is_model(name):
        raise _unknown(full, _timm_names())
    try:
        public = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise BadInput(str(error).rstrip("."), full, f"timm:{name.partition('.')[0]} names the model itself") from error
    if public is None:
        return ModelSpec(name=full, builder=timm_builder(name), notes="timm")
    licence = f" ({public.license})" if public.license else ""
    return ModelSpec(
        name=full,
        builder=timm_builder(name),
        size=int(public.input_size[-1]),
        mean=_three(public.mean),
        std=_three(public.std),
        source=public.paper_name or public.origin_url or "",
        weights=f"{public.hf_hub_id or public.url or ''}{licence}" if public.has_weights else "",
        notes="timm",
    )


def _torchvision_options(name: str) -> dict[str, Any]:
    """Return what torchvision's constructor must be told so that the network is the one of the public weights."""
    if name in ("googlenet", "inception_v3"):
        # With auxiliary classifiers they return a tuple while training; the inputs are rescaled in the network.
        return {"aux_logits": False, "init_weights": True, "transform_input": True}
    return {"image_size": _torchvision(name).size} if name.startswith("vit_") else {}


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


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _torchvision_names(prefix: str = "torchvision:") -> list[str]:
    from torchvision import models

    return [prefix + name for name in models.list_models(module=models)]


def _timm_names() -> list[str]:
    import timm

    return [f"timm:{name}" for name in timm.list_models()]


def _unknown(name: str, known: list[str]) -> BadInput:
    """Say which of the `known` names are most like `name`, by the part after the library or module."""

    def likeness(other: str) -> float:
        wanted, there = (text.rpartition(":")[2].lower() for text in (name, other))
        return difflib.SequenceMatcher(None, wanted, there).ratio()

    nearest = sorted(known, key=likeness, reverse=True)[:3]
    close = [other for other in nearest if likeness(other) > 0.6]
    hint = f"did you mean {' or '.join(close)}?" if close else f"registered are {', '.join(names())}"
    return BadInput("no such model", name, hint)
