"""Weights on disk: load a file into a model with a report of what matched, save a state dict, read metadata."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bloodcell.models.heads import head_parameters
from bloodcell.models.recognise import recognise
from bloodcell.models.translate import Named, body, fitted, is_counter, unnested
from shards.atomic import open_atomic
from shards.errors import BadInput

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".tar")
ENOUGH = 0.9
"""Share of the model's tensors (without the head) that must match for a file to be of the same architecture."""


@dataclass(frozen=True)
class WeightsReport:
    """What became of each tensor of the model and of the file."""

    path: str
    """The file."""
    sha256: str
    """Its SHA-256, hexadecimal."""
    matched: tuple[str, ...]
    """Tensors of the model that were loaded."""
    reinitialised: dict[str, str] = field(default_factory=dict)
    """Tensors of the model that keep their fresh values although the file names them, with the reason."""
    missing: tuple[str, ...] = ()
    """Tensors of the model that the file lacks: they keep their fresh values."""
    unexpected: tuple[str, ...] = ()
    """Tensors of the file that the model lacks: ignored."""

    @property
    def complete(self) -> bool:
        """Whether every tensor of the model was loaded."""
        return not self.reinitialised and not self.missing

    def lines(self) -> list[str]:
        """Return the report in words, a few lines."""
        total = len(self.matched) + len(self.reinitialised) + len(self.missing)
        found = [f"weights {self.path} (sha256 {self.sha256[:16]}): {len(self.matched)} of {total} tensors loaded"]
        if self.reinitialised:
            parts = [f"{name} ({why})" for name, why in self.reinitialised.items()]
            found.append(f"  re-initialised: {_some(parts)}")
        if self.missing:
            found.append(f"  not in the file, left as initialised: {_some(self.missing)}")
        if self.unexpected:
            found.append(f"  in the file but not in the model, ignored: {_some(self.unexpected)}")
        return found


def load_weights(model: nn.Module, path: str | Path, head: Literal["fit", "keep", "strict"] = "fit") -> WeightsReport:
    """Load the weights of a file into `model`, in place; the model is untouched when this raises.

    The file is .safetensors, or a state dict (.pt, .pth, .bin) which is read weights-only: code in it is never run.
    A state dict may lie under "state_dict", "model" or "teacher", and its names may carry prefixes such as "module.";
    `translate.fitted` says what else is understood.

    Args:
        model: what `zoo.build` returned.
        path: the file.
        head: "fit" loads the classifier where its shape agrees and else leaves it fresh; "keep" leaves it fresh in
            any case; "strict" refuses a file that does not hold every tensor of the model in its shape.

    Raises:
        BadInput: no such file, damaged, not weights, or weights of another architecture.
    """
    report, named = _match(model, Path(path), head)
    target = model.state_dict()
    with torch.no_grad():
        for name in report.matched:
            target[name].copy_(named[name][1])
    return report


def check_weights(model: nn.Module, path: Path) -> WeightsReport:
    """Return what `load_weights` would do with such a model (it needs no values), or raise what it would."""
    return _match(model, path, "fit")[0]


def _match(model: nn.Module, path: Path, head: str) -> tuple[WeightsReport, Named]:
    """Read a file and say which of its tensors belongs where."""
    saved = _read(path)
    target = model.state_dict()
    heads = head_parameters(model)
    named = fitted(saved, model)
    matched: set[str] = set()
    fresh: dict[str, str] = {}
    for name in target.keys() & named.keys():
        source, goal = named[name][1], target[name]
        if head == "keep" and name in heads:
            fresh[name] = "left as it was, as asked"
        elif source.shape != goal.shape:
            fresh[name] = f"{_shape(source)} in the file, {_shape(goal)} in the model"
        else:
            matched.add(name)
    report = WeightsReport(
        path=str(path),
        sha256=sha256(path),
        matched=tuple(name for name in target if name in matched),
        reinitialised={name: fresh[name] for name in target if name in fresh},
        missing=tuple(name for name in target if name not in named),
        unexpected=tuple(key for name, (key, _) in named.items() if name not in target),
    )
    _same_architecture(report, body(model), saved)
    if head == "strict" and not report.complete:
        raise BadInput("the file does not hold this model's weights in full", path, "; ".join(report.lines()[1:]))
    return report, named


def save_weights(model_state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a state dict as safetensors, whole or not at all; the same values give the same bytes.

    Tensors on other devices or in other memory formats are brought to contiguous CPU tensors; tensors that share
    memory are written once under each of their names.

    Raises:
        EnvironmentFault: the disk is full or fails.
    """
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, value in model_state.items():
        tensor = value.detach().to("cpu").contiguous()
        storage = tensor.untyped_storage()
        tensors[name] = tensor.clone() if storage.data_ptr() in seen else tensor
        seen.add(storage.data_ptr())
    content = safetensors.torch.save(tensors)
    # The library writes metadata in an order that differs between processes: the header is written here, sorted.
    (length,) = struct.unpack("<Q", content[:8])
    header = {"__metadata__": {"format": "pt", **dict(sorted(metadata.items()))}, **json.loads(content[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open_atomic(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.write(memoryview(content)[8 + length :])


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file.

    Raises:
        BadInput: no such file, or damaged.
    """
    check_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise BadInput(f"damaged or not a safetensors file: {error}", path) from error


def _read(path: Path) -> dict[str, Tensor]:
    check_readable(path)
    if path.suffix.lower() == ".safetensors":
        try:
            found: Any = safetensors.torch.load_file(path)
        except SafetensorError as error:
            raise BadInput(f"damaged or not a safetensors file: {error}", path) from error
    elif path.suffix.lower() in TORCH_SUFFIXES:
        found = unnested(_read_torch(path))
    else:
        endings = ", ".join((".safetensors", *TORCH_SUFFIXES))
        raise BadInput("not a weights file by its name", path, f"expected a name that ends in {endings}")
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor) and _is_plain(value)}
    if not tensors:
        raise BadInput("the file holds no weights", path, "expected a state dict: names and tensors")
    broken = [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise BadInput(f"the file holds values that are not finite, in {_some(broken)}", path)
    return tensors


def _read_torch(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # only this newer form can be mapped into memory
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({culprit.group(1)})" if culprit else ""
        raise BadInput(
            f"not a plain state dict: it holds a pickle with more than tensors{what}, which was not run",
            path,
            "save only the state dict, or better a .safetensors file",
        ) from error
    except Exception as error:  # a damaged archive raises nearly anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "TorchScript" in reason:  # torch's own words go on to advise running it
            reason = "a TorchScript archive holds a program; save its state dict instead"
        raise BadInput(f"damaged or not a state dict: {reason}", path) from error


def _same_architecture(report: WeightsReport, wanted: list[str], saved: Mapping[str, Tensor]) -> None:
    loaded = len(set(wanted) & set(report.matched))
    if loaded >= ENOUGH * len(wanted):
        return
    first = [key for key in saved if not is_counter(key)][:4]
    likely = recognise(saved)
    fix = "choose the model that these weights belong to"
    if likely is not None and likely[1] >= ENOUGH * likely[2]:
        fix = f"they fit {likely[0]} ({likely[1]} of its {likely[2]} tensors): choose --model.name {likely[0]}"
    raise BadInput(
        f"weights of another architecture: {loaded} of the model's {len(wanted)} tensors "
        f"({loaded / len(wanted):.0%}) match in name and shape; the file begins with {', '.join(first)}",
        report.path,
        fix,
    )


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"


def check_readable(path: Path) -> None:
    """Raise BadInput unless `path` is a file that this user can read."""
    if not path.is_file():
        raise BadInput("no such file" if not path.exists() else "not a file", path)
    try:
        path.open("rb").close()
    except PermissionError as error:
        raise BadInput("not readable by this user", path) from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shape(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape) or "scalar"


def _some(names: tuple[str, ...] | list[str], most: int = 5) -> str:
    rest = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
