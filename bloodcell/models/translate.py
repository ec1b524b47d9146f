"""Tensors in files of other programs, named and shaped as a model of the zoo wants them."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bloodcell.models.heads import head_parameters

NESTED = ("state_dict", "model_state_dict", "model", "teacher", "module")
"""Keys under which checkpoints keep their state dict; of a student and a teacher (DINO) the teacher counts."""

_WRAPPER = re.compile(r"^((?:module|_orig_mod|model|network|net|teacher|backbone|encoder)\.)+")
_COUNTER = "num_batches_tracked"  # counts of BatchNorm: old files lack them, and they change nothing
_RENAMED = (
    # DenseNets of torchvision's first years: "norm.1.weight" for "norm1.weight".
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    # DINOv2 trained under FSDP: blocks lie in chunks, and their second number counts through.
    (re.compile(r"^(.*\bblocks)\.\d+\.(\d+)\."), r"\1.\2."),
)

Named = dict[str, tuple[str, Tensor]]
"""Name in the model's way: (name in the file, tensor)."""


def unnested(loaded: Any) -> dict[Any, Any]:
    """Return the dictionary of tensors inside a checkpoint."""
    found = loaded
    while isinstance(found, Mapping):
        inner = next((found[key] for key in NESTED if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            return dict(found)
        found = inner
    return {}


def fitted(saved: Mapping[str, Tensor], model: nn.Module) -> Named:
    """Return the tensors of a file under the names that fit `model` best.

    Prefixes of wrappers (DDP, compile, Lightning, DINO) are taken off and old names brought up to date; for a model of
    timm, timm's own converter of foreign checkpoints is tried too, which also resizes position embeddings.
    """
    target = model.state_dict()
    found = max(_candidates(saved), key=lambda named: len(named.keys() & target.keys()))
    converted = _converted(found, model)
    if converted is None or agreeing(converted, target) <= agreeing(found, target):
        return found
    return converted


def agreeing(named: Named, target: Mapping[str, Tensor]) -> int:
    """Return how many tensors have the name and the shape of one of the target's."""
    return sum(name in target and tensor.shape == target[name].shape for name, (_, tensor) in named.items())


def body(model: nn.Module) -> list[str]:
    """Return the names of the tensors by which an architecture is known: all but the classifier's and counters."""
    heads = head_parameters(model)
    return [name for name in model.state_dict() if name not in heads and not is_counter(name)]


def is_counter(name: str) -> bool:
    """Whether a tensor only counts batches."""
    return name.endswith(_COUNTER)


def _candidates(saved: Mapping[str, Tensor]) -> list[Named]:
    """Return every way to name the tensors, the plainest first."""
    prefixes = {""}
    for key in saved:
        wrapper = _WRAPPER.match(key)
        parts = wrapper.group(0).split(".")[:-1] if wrapper else []
        prefixes |= {".".join(parts[: i + 1]) + "." for i in range(len(parts))}
    ways = [_stripped(saved, prefix) for prefix in sorted(prefixes, key=lambda prefix: (len(prefix), prefix))]
    return [*ways, *({_renamed(name): value for name, value in way.items()} for way in ways)]


def _stripped(saved: Mapping[str, Tensor], prefix: str) -> Named:
    # A name without the prefix (say, of the loss) stays as it is, and loses to one that had it.
    outside = {key: (key, value) for key, value in saved.items() if not key.startswith(prefix)}
    return {**outside, **{k.removeprefix(prefix): (k, value) for k, value in saved.items() if k.startswith(prefix)}}


def _renamed(name: str) -> str:
    for pattern, written in _RENAMED:
        name = pattern.sub(written, name)
    return name


def _converted(named: Named, model: nn.Module) -> Named | None:
    """Return what timm's converter makes of the tensors, None for a model that has none or for tensors it refuses."""
    module = sys.modules.get(type(model).__module__)
    convert = getattr(module, "checkpoint_filter_fn", None)
    if not type(model).__module__.startswith("timm.") or convert is None:
        return None
    try:
        result = convert({name: tensor for name, (_, tensor) in named.items()}, model)
    except Exception:  # it was written for the files that it knows, and raises anything for others
        return None
    return {
        name: (named[name][0] if name in named else name, tensor)
        for name, tensor in result.items()
        if isinstance(tensor, Tensor)
    }
