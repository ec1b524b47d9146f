"""Checkpoints: folders that appear whole or not at all; tensors as safetensors, the rest as JSON: nothing to execute.

RUN/checkpoints/00000120/model.safetensors       the network, BatchNorm statistics averaged over ranks
                         state.safetensors       all other tensors that all ranks share: optimizer, averages, statistics
                         state.json              the tree that holds them, and the progress
                         rank-00003.safetensors  what only rank 3 held, where a strategy spreads the state
                         manifest.json           bytes and sha256 of all these files
RUN/checkpoints/last, best                       links to two of them
RUN/checkpoints/00000120.damaged                 one that was found damaged, until that step is saved again

Training waits for one copy to host memory; a thread writes it, and is waited for before the next one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError

from bloodcell.engine.agree import gather_texts, raise_together, share
from bloodcell.engine.background import Background
from bloodcell.engine.checkpoint_folder import CheckpointFolder
from bloodcell.engine.hostcopy import HostCopy, write_summed
from bloodcell.engine.manifest import (
    DAMAGE,
    MANIFEST,
    MODEL,
    STATE,
    TREE,
    VERSION,
    rank_file,
    read_state,
    verify,
)
from bloodcell.engine.tree import pack_tree
from shards.atomic import disk_errors, new_folder
from shards.console import warn
from shards.errors import BadInput, EnvironmentFault

LEAVING_SECONDS = 60.0
"""How long a run that fails waits for a checkpoint that is being written."""

Progress = dict[str, Any]


class Checkpoints:
    """The checkpoints of a run. Every method but close() is collective.

    Args:
        folder: RUN/checkpoints.
        keep: how many of the newest stay, beside those that were the best when one of these was saved.
        rank: of this process.
        world: how many ranks there are.
        synchronous: write in the training's own time, to compare.
    """

    def __init__(self, folder: Path, keep: int, rank: int = 0, world: int = 1, synchronous: bool = False) -> None:
        self.folder, self.keep, self.rank, self.world = CheckpointFolder(folder), keep, rank, world
        self.synchronous = synchronous
        self.damaged: list[dict[str, str]] = []
        """Checkpoints that the last load() passed over: {"checkpoint", "problem"}."""
        self._model, self._common, self._mine = HostCopy(), HostCopy(), HostCopy()
        self._writer = Background("bloodcell-checkpoint")
        self._group: Any = None

    @property
    def write_seconds(self) -> float:
        """How long writing the last one took, beside the training."""
        return self._writer.seconds

    def save(
        self,
        step: int,
        common: dict[str, Any],
        mine: dict[str, Any],
        progress: Progress,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy the state to host memory and begin to write it; returns when the copy is complete.

        Where `progress["best_step"]` is this step, it becomes the best one.

        Args:
            step: optimizer steps done.
            common: what all ranks share, the network under "model"; written by the first rank.
            mine: what only this rank holds; written by this rank.
            progress: JSON values.
            before: called on the first rank, in the thread, before the checkpoint appears.

        Raises:
            EnvironmentFault: the one before could not be written; older ones are whole. On all ranks alike.
        """
        self.wait()
        sharded = self._any(bool(mine))
        tensors: dict[str, Any] = {}
        if sharded:
            tree = pack_tree(mine, tensors)
            self._mine.take(tensors, {"tree": json.dumps(tree)})
        if self.rank == 0:
            shared: dict[str, Any] = {}
            tree = pack_tree({key: value for key, value in common.items() if key != "model"}, shared)
            self._model.take(common["model"])
            self._common.take(shared)
            self._writer.start(lambda: self._write(step, tree, dict(progress), sharded, before))
        elif sharded:
            self._writer.start(lambda: self._write_mine(self.folder.target(step)))
        if self.synchronous:
            self.wait()

    def wait(self) -> None:
        """Wait until the last one is written on all ranks.

        Raises:
            EnvironmentFault: it could not be written; older ones are whole. On all ranks alike.
        """
        raise_together(self._writer.wait())

    def close(self) -> None:
        """Let this rank's part of one that is being written come to its end, where a run fails; not collective."""
        problem = self._writer.wait(LEAVING_SECONDS)
        if problem is not None:
            warn(f"the last checkpoint was not written: {problem}")

    def load(self, name: str = "last") -> tuple[dict[str, Any], Progress] | None:
        """Return (state, progress) of a checkpoint, or None if there is none; `last` or `best` lead to it from then on.

        A damaged newest one is passed over, loudly, and put aside. So is one whose best is damaged, because the run's
        result would be lost: going on from before both finds the same best again.

        Raises:
            BadInput: there are checkpoints, but none of them can be read.
            EnvironmentFault: the best is asked for, and damaged.
        """
        self.damaged = []
        if self.rank == 0 and name == "last":
            self.folder.tidy()
        names = self._candidates(name)
        problems: dict[str, str] = {}
        spare: str | None = None
        for found in names:
            if self._problem(found, problems):
                continue
            best = self.folder.best_of(found)
            if best is None or not self._problem(best, problems):
                return self._taken(name, found, best, problems)
            spare = spare or found
        if spare is not None:
            return self._taken(name, spare, None, problems)
        if problems:
            said = "; ".join(f"{found}: {problem}" for found, problem in problems.items())
            if name != "last":
                raise EnvironmentFault(
                    f"the {name} checkpoint is damaged ({said})",
                    self.folder,
                    "start again: the run goes on from before it",
                )
            raise BadInput(f"no checkpoint can be read ({said})", self.folder.path, "remove it to start anew")
        return None

    # Writing.

    def _any(self, mine: bool) -> bool:
        """Whether any rank has something of its own; then all have a file, and a group for the threads to agree in."""
        if self.world == 1:
            return mine
        sharded = any(gather_texts("x" if mine else ""))
        if sharded and self._group is None:
            self._group = dist.new_group(backend="gloo")
        return sharded

    def _together(self, problem: Exception | None, word: str) -> list[str]:
        """Share a word among the writers of all ranks, or fail together."""
        said = gather_texts(f"!{problem}" if problem else word, self._group) if self.world > 1 else [word]
        if problem is not None:
            raise problem
        bad = [text[1:] for text in said if text.startswith("!")]
        if bad:
            raise EnvironmentFault(f"another rank could not write its part: {bad[0]}", self.folder.path)
        return said

    def _write(self, step: int, tree: Any, progress: Progress, sharded: bool, before: Callable[[], None]) -> None:
        target = self.folder.target(step)
        parts = self._write_mine(target) if sharded else {}
        try:
            with new_folder(target, replace=True) as folder:
                for name in parts:
                    os.rename(self.folder.aside(target, name), folder / name)
                files = {**parts, MODEL: self._model.write(folder / MODEL), STATE: self._common.write(folder / STATE)}
                text = json.dumps({"progress": progress, "state": tree}, allow_nan=True)
                files[TREE] = write_summed(folder / TREE, text.encode())
                content = {"version": VERSION, "step": step, "best_step": progress.get("best_step"), "files": files}
                write_summed(folder / MANIFEST, json.dumps(content, indent=1).encode())
                before()
        finally:
            for name in parts:
                self.folder.aside(target, name).unlink(missing_ok=True)
        with disk_errors(self.folder.path):
            self.folder.saved(target, progress.get("best_step") == step, self.keep)

    def _write_mine(self, target: Path) -> dict[str, Any]:
        """Write this rank's file beside the folder that is to come; return the sums of those of all ranks."""
        name = rank_file(self.rank)
        path, problem, written = self.folder.aside(target, name), None, ""
        try:
            with disk_errors(path):
                written = json.dumps({name: self._mine.write(path)})
        except Exception as error:
            problem = error
        try:
            said = self._together(problem, written)
        except Exception:
            path.unlink(missing_ok=True)
            raise
        return {file: summed for text in said for file, summed in json.loads(text).items()}

    # Reading.

    def _candidates(self, name: str) -> list[str]:
        """Return the checkpoints that may be meant, the newest first, as the first rank sees them."""
        link = self.folder.linked(name)
        names = self.folder.names() if name == "last" else [link.name] if link else []
        return list(json.loads(share(json.dumps(names)))) if self.world > 1 else names

    def _problem(self, name: str, known: dict[str, str]) -> str:
        """Return what is wrong with a checkpoint, "" if nothing is; each rank reads its share of the files."""
        if name not in known:
            problem = ""
            try:
                verify(self.folder.path / name, self.rank, self.world)
            except DAMAGE as error:
                problem = str(error) or type(error).__name__
            said = gather_texts(problem) if self.world > 1 else [problem]
            known[name] = next(filter(None, said), "")
            if known[name] and self.rank == 0:
                warn(f"checkpoint {self.folder.path / name} is damaged ({known[name]}); trying the one before")
        return known[name]

    def _taken(
        self, wanted: str, name: str, best: str | None, problems: dict[str, str]
    ) -> tuple[dict[str, Any], Progress]:
        """Read a whole checkpoint; put aside what is damaged or was saved after it, and let the links lead to it."""
        problem: Exception | None = None
        try:
            state, progress = read_state(self.folder.path / name)
        except (*DAMAGE, SafetensorError) as error:
            problem = EnvironmentFault(f"a checkpoint cannot be read: {error}", self.folder.path / name, "start again")
        raise_together(problem)
        self.damaged = [{"checkpoint": bad, "problem": said} for bad, said in problems.items() if said]
        if best is None and progress.get("best_step"):
            progress = {**progress, "best": None, "best_step": 0}
            if self.rank == 0:
                warn(f"the best checkpoint before {name} is lost too: the best is chosen anew from there on")
        if self.rank == 0 and wanted == "last":
            self.folder.go_back(name, best, {bad for bad, said in problems.items() if said})
        raise_together(None)  # nobody reads on while folders move
        return state, progress
