"""`bloodcell zoo`: the models there are."""

from __future__ import annotations

import argparse
from typing import Any


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare nothing: the list is whole."""


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Return the registered models with their parameters (at 1,000 classes), native size and source."""
    from bloodcell.models import zoo

    models: list[dict[str, Any]] = []
    for name in zoo.names():
        known = zoo.spec(name)
        model = zoo.build(name, 1000)
        parameters = sum(p.numel() for p in model.parameters())
        models.append({"name": name, "parameters": parameters, "size": known.size, "source": known.source})
    lines = [f"{m['name']:<24} {m['parameters'] / 1e6:>8.2f} M  {m['size']:>4} px  {m['source']}" for m in models]
    return {"models": models}, [*lines, "and timm:NAME, torchvision:NAME, module:function"]
