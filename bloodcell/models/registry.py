"""The registered models: zoo.toml read into specs. Adding a model is adding one table there."""

from __future__ import annotations

import importlib
import tomllib
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import msgspec
from torch import nn

from bloodcell.models.library import timm_builder, torchvision_builder
from bloodcell.models.spec import IMAGENET_MEAN, IMAGENET_STD, Builder, ModelSpec, PublicWeights


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One table of zoo.toml; the fields that `ModelSpec` has too mean the same."""

    build: str
    """torchvision:NAME, timm:NAME, or module:class of this package."""
    size: int
    minimum: int
    parameters: int
    flops: int
    source: str
    notes: str
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments that the builder is always given."""
    multiple: int = 1
    sized: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    aliases: tuple[str, ...] = ()
    weights: PublicWeights | None = None


def _read() -> dict[str, ModelSpec]:
    tables = tomllib.loads(files(__package__).joinpath("zoo.toml").read_text(encoding="utf-8"))
    return {name: _spec(name, msgspec.convert(table, Entry)) for name, table in sorted(tables.items())}


def _spec(name: str, entry: Entry) -> ModelSpec:
    return ModelSpec(
        name=name,
        builder=_builder(entry),
        size=entry.size,
        minimum=entry.minimum,
        mean=entry.mean,
        std=entry.std,
        source=entry.source,
        weights=entry.weights,
        notes=entry.notes,
        aliases=entry.aliases,
        parameters=entry.parameters,
        flops=entry.flops,
        multiple=entry.multiple,
        sized=entry.sized,
    )


def _builder(entry: Entry) -> Builder:
    where, _, name = entry.build.partition(":")
    if where == "torchvision":
        return torchvision_builder(name)
    if where == "timm":
        return timm_builder(name, **entry.options)

    def build_own(classes: int, **options: Any) -> nn.Module:
        return getattr(importlib.import_module(where), name)(classes=classes, **entry.options, **options)

    return build_own


def plain(name: str) -> str:
    """Return the form of a name in which spellings are compared: MobileNetV2, mobilenet-v2 and mobilenet_v2 are one."""
    return name.lower().replace("_", "").replace("-", "")


REGISTRY: dict[str, ModelSpec] = _read()
"""The registered models by name."""

SPELLINGS = {plain(spelling): spec.name for spec in REGISTRY.values() for spelling in (*spec.aliases, spec.name)}
"""Names and aliases in plain form, and the registered name of each."""
