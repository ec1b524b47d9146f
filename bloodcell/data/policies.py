"""Augmentation as data: a policy is a list of operations with ranges, and what happens to a sample is drawn here.

A backend (the DALI pipeline) only renders the drawn numbers, so the pixels of a sample depend on (seed, epoch, sample
id, occurrence) and on nothing else: no batch size, thread, rank or restart.
"""

from __future__ import annotations

import dataclasses
import importlib
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bloodcell.data.choosing import AugMix, Choosing, Hybrid, RandAugment, Trivial
from bloodcell.data.draws import Draws
from bloodcell.data.operations import (
    Affine,
    Arguments,
    Blur,
    Brightness,
    Colour,
    Crop,
    Erase,
    Flip,
    Operation,
    Rotate,
    Sharpness,
    Stain,
)
from shards.errors import BadInput, nearest

OPERATIONS: dict[str, type] = {
    "crop": Crop,
    "flip": Flip,
    "rotate": Rotate,
    "affine": Affine,
    "brightness": Brightness,
    "colour": Colour,
    "stain": Stain,
    "sharpness": Sharpness,
    "blur": Blur,
    "erase": Erase,
    "randaugment": RandAugment,
    "trivial": Trivial,
    "augmix": AugMix,
    "hybrid": Hybrid,
}
"""The operations a policy file can name."""


@dataclass(frozen=True)
class Policy:
    """A named list of operations, in the order in which they are applied.

    Raises:
        BadInput: an operation is there twice: both would draw the same numbers.
    """

    name: str
    operations: tuple[Operation, ...]

    def __post_init__(self) -> None:
        kinds = [type(operation) for operation in self.operations]
        for kind in kinds:
            if kinds.count(kind) > 1:
                fix = "both would draw the same numbers: keep one of them"
                raise BadInput(f"{kind.__name__.lower()} is there twice", f"policy {self.name}", fix)

    @property
    def chooses(self) -> bool:
        """Whether the views of a sample differ: an operation draws anew for each."""
        return any(isinstance(operation, Choosing) for operation in self.operations)


POLICIES: dict[str, Policy] = {
    "none": Policy("none", ()),
    "flip": Policy("flip", (Flip(),)),
    "light": Policy("light", (Crop(), Flip(), Brightness())),
    "rotate": Policy("rotate", (Crop(), Flip(), Rotate(), Brightness())),
    "stain": Policy("stain", (Crop(), Flip(), Stain())),
    "strong": Policy("strong", (Crop((0.5, 1.0)), Flip(), Rotate(), Brightness(0.2, 0.2), Stain(), Blur(), Erase())),
    "randaugment": Policy("randaugment", (Crop(), Flip(), RandAugment())),
    "trivial": Policy("trivial", (Crop(), Flip(), Trivial())),
    "augmix": Policy("augmix", (Crop(), Flip(), AugMix())),
    "hybrid": Policy("hybrid", (Crop(), Flip(), Rotate(), Brightness(), Hybrid())),
}


def find_policy(name: str) -> Policy:
    """Return a policy by its registered name, from a .toml file ([[operation]] tables), or from module:function.

    Raises:
        BadInput: unknown, unreadable, or an operation with a wrong name or value.
    """
    if name in POLICIES:
        return POLICIES[name]
    if name.endswith(".toml"):
        return _read_policy(Path(name))
    if ":" in name:
        return _call(name)
    fix = nearest(name, list(POLICIES)) or f"choose one of {', '.join(POLICIES)}, a .toml file or module:function"
    raise BadInput(f"no policy {name!r}", "data.policy", fix)


def _call(name: str) -> Policy:
    module, _, function = name.partition(":")
    try:
        make: Callable[[], Policy] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise BadInput(f"no policy {name!r}: {error}", "data.policy", "check the module and the function") from error
    policy = make()
    if not isinstance(policy, Policy):
        raise BadInput(f"{name} returned {type(policy).__name__}", "data.policy", "return a Policy")
    return policy


def _read_policy(path: Path) -> Policy:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"the policy cannot be read: {error}", path, "give a TOML file of [[operation]] tables"
        ) from error
    operations = content.get("operation", [])
    if not isinstance(operations, list):
        raise BadInput("operation is not a list", path, "write each one below [[operation]]")
    return Policy(path.stem, tuple(_operation(dict(entry), path) for entry in operations))


def _operation(entry: dict[str, Any], path: Path) -> Operation:
    name = str(entry.pop("name", ""))
    if name not in OPERATIONS:
        fix = nearest(name, list(OPERATIONS)) or f"choose one of {', '.join(OPERATIONS)}"
        raise BadInput(f"no operation {name!r}", path, fix)
    cls = OPERATIONS[name]
    known = [leaf.name for leaf in dataclasses.fields(cls)]
    for key in entry:
        if key not in known:
            raise BadInput(f"{name} has no {key!r}", path, nearest(key, known) or f"it has {', '.join(known)}")
    try:
        return cls(**entry)
    except BadInput as error:
        raise BadInput(error.what, path, error.fix) from error


def draw(policy: Policy, draws: Draws, height: np.ndarray, width: np.ndarray, views: int = 1) -> list[Arguments]:
    """Return the arguments of every operation of the policy for a batch; sizes in pixels, int64 [n].

    With several `views`, the arguments are those of all samples for the first view, then for the second and so on. All
    views of a sample share what the operations draw, but for those that choose among others: they leave the first
    view as it is, the second is that of a single view, and each further one has numbers of its own.
    """
    return [_draw(operation, draws, height, width, views) for operation in policy.operations]


def _draw(operation: Operation, draws: Draws, height: np.ndarray, width: np.ndarray, views: int) -> Arguments:
    drawn = operation.draw(draws, height, width)
    if views == 1:
        return drawn
    all_views = [drawn] * views
    if isinstance(operation, Choosing):
        others = [operation.draw(draws.view(number), height, width) for number in range(1, views - 1)]
        all_views = [operation.neutral(drawn), drawn, *others]
    return {name: np.concatenate([view[name] for view in all_views]) for name in drawn}
