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

from bloodcell.engine.tree import pack_tree, unpack_tree
from shards.atomic import new_folder, sync_directory
from shards.console import warn
from shards.errors import BadInput

VERSION = 1
FILES = ("model.safetensors", "state.safetensors")


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
        if not self._whole(target):
            shutil.rmtree(target, ignore_errors=True)
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
        with new_folder(target) as folder:
            _save_file({k: v.cpu().contiguous() for k, v in state["model"].items()}, folder / FILES[0])
            _save_file({k: v.cpu().contiguous().clone() for k, v in rest.items()}, folder / FILES[1])
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

    def _whole(self, path: Path) -> bool:
        """Whether the checkpoint is there (from before a restart: the same step has the same state) and undamaged."""
        try:
            sums = json.loads((path / "state.json").read_text(encoding="utf-8"))["sha256"]
            return all(_sha256(path / name) == expected for name, expected in sums.items())
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
