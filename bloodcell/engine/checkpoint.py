"""Checkpoints: folders that appear whole or not at all; tensors as safetensors, the rest as JSON: nothing to execute.

RUN/checkpoints/00000120/model.safetensors   the network, BatchNorm statistics averaged over ranks
                         state.safetensors   all other tensors: optimizer, each rank's own statistics
                         state.json          the tree that holds them, progress, sha256 of both files
RUN/checkpoints/last, best                   links to two of them
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shards.atomic import new_folder, sync_directory
from shards.console import warn
from shards.errors import BadInput

VERSION = 1
FILES = ("model.safetensors", "state.safetensors")


def pack_tree(value: Any, tensors: dict[str, torch.Tensor], path: str = "") -> Any:
    """Return `value` (dicts, lists, tuples, plain values, tensors) as JSON, moving tensors into `tensors`."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[key, pack_tree(item, tensors, f"{path}/{key}")] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [pack_tree(item, tensors, f"{path}/{place}") for place, item in enumerate(value)]}
    return {"value": value}


def unpack_tree(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return what pack_tree() was given."""
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unpack_tree(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        items = [unpack_tree(item, tensors) for item in content]
        return items if kind == "list" else tuple(items)
    return content


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: RUN/checkpoints.
        keep: how many of the newest stay, beside the best.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, step: int, state: dict[str, Any], progress: dict[str, Any], best: bool) -> Path:
        """Write a checkpoint (on one rank), move the links, remove what retention does not keep.

        Raises:
            EnvironmentFault: the disk is full or fails; nothing is left of this checkpoint, older ones are whole.
        """
        target = self.folder / f"{step:08d}"
        if not self._whole(target, progress):
            self._write(target, state, progress)
        self._link("last", target)
        if best:
            self._link("best", target)
        self._retain()
        return target

    def load(self, name: str = "last") -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return (state, progress) of a checkpoint, or None if there is none. A damaged one is passed over, loudly.

        Raises:
            BadInput: there are checkpoints, but none of them can be read.
        """
        candidates = self._candidates(name)
        problems = []
        for path in candidates:
            try:
                return self._read(path)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                problems.append(f"{path.name}: {error}")
                warn(f"checkpoint {path} is damaged ({error}); trying the one before")
        if problems:
            raise BadInput(f"no checkpoint can be read ({'; '.join(problems)})", self.folder, "remove it to start anew")
        return None

    def path(self, name: str) -> Path | None:
        """Return the checkpoint that 'last' or 'best' points to."""
        link = self.folder / name
        return link.resolve() if link.exists() else None

    def _write(self, target: Path, state: dict[str, Any], progress: dict[str, Any]) -> None:
        rest: dict[str, torch.Tensor] = {}
        tree = pack_tree({key: value for key, value in state.items() if key != "model"}, rest)
        with new_folder(target, replace=True) as folder:
            _save_file({k: v.contiguous() for k, v in state["model"].items()}, folder / FILES[0])
            _save_file(rest, folder / FILES[1])
            sums = {name: _sha256(folder / name) for name in FILES}
            content = {"version": VERSION, "progress": progress, "sha256": sums, "state": tree}
            (folder / "state.json").write_text(json.dumps(content, allow_nan=True), encoding="utf-8")

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        content = json.loads((path / "state.json").read_text(encoding="utf-8"))
        for name, expected in content["sha256"].items():
            if _sha256(path / name) != expected:
                raise ValueError(f"{name} is not what was written")
        state = unpack_tree(content["state"], load_file(path / FILES[1]))
        return {**state, "model": load_file(path / FILES[0])}, content["progress"]

    def _whole(self, path: Path, progress: dict[str, Any]) -> bool:
        """Whether the checkpoint is there (from before a restart: the same step has the same state) and undamaged.

        With other progress it is another one: a signal may have come between a step and its validation.
        """
        try:
            content = json.loads((path / "state.json").read_text(encoding="utf-8"))
            sums = content["sha256"]
            return content["progress"] == progress and all(
                _sha256(path / name) == expected for name, expected in sums.items()
            )
        except (OSError, ValueError, KeyError):
            return False

    def _candidates(self, name: str) -> list[Path]:
        if name != "last":
            path = self.path(name)
            return [path] if path else []
        whole = [p for p in self.folder.glob("*") if p.name.isdigit()]
        return sorted(whole, key=lambda p: int(p.name), reverse=True)

    def _link(self, name: str, target: Path) -> None:
        temporary = self.folder / f".{name}.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.name)
        os.replace(temporary, self.folder / name)
        sync_directory(self.folder)

    def _retain(self) -> None:
        best = self.path("best")
        for old in self._candidates("last")[self.keep :]:
            if best is None or old.resolve() != best:
                shutil.rmtree(old, ignore_errors=True)


def _save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write tensors; a failing disk is the OSError that it is, not a fault of the format."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
