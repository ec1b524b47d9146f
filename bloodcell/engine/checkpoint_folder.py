"""RUN/checkpoints as one process sees it: which there are, the links to two of them, what goes and what stays."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from bloodcell.engine.manifest import DAMAGE, read_manifest
from shards.atomic import sync_directory

DAMAGED = ".damaged"


class CheckpointFolder:
    """The folder of a run's checkpoints.

    Args:
        path: RUN/checkpoints.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def target(self, step: int) -> Path:
        """Return the folder of the checkpoint after so many steps."""
        return self.path / f"{step:08d}"

    def aside(self, target: Path, name: str) -> Path:
        """Return where a rank's file lies until the folder of its checkpoint is put together."""
        return target.with_name(f".{target.name}.{name}")

    def names(self) -> list[str]:
        """Return the checkpoints that are there, whole or not, the newest first."""
        return sorted((p.name for p in self.path.glob("*") if p.name.isdigit()), key=int, reverse=True)

    def linked(self, name: str) -> Path | None:
        """Return the checkpoint that 'last' or 'best' points to."""
        link = self.path / name
        return link.resolve() if link.exists() else None

    def best_of(self, name: str) -> str | None:
        """Return the checkpoint that was the best when this whole one was saved, if there was one."""
        step = read_manifest(self.path / name)["best_step"]
        return f"{step:08d}" if step else None

    def link(self, name: str, target: str) -> None:
        """Let `name` point to the checkpoint `target`, at once."""
        temporary = self.path / f".{name}.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.replace(temporary, self.path / name)
        sync_directory(self.path)

    def retain(self, keep: int) -> None:
        """Remove what is neither among the `keep` newest nor the best that one of these goes back to."""
        names = self.names()
        kept = set(names[:keep])
        for name in names[:keep]:
            with contextlib.suppress(*DAMAGE):  # it will be passed over when it is needed
                kept.add(str(self.best_of(name)))
        best = self.linked("best")
        for name in names:
            if name not in kept and (best is None or name != best.name):
                shutil.rmtree(self.path / name, ignore_errors=True)

    def saved(self, target: Path, best: bool, keep: int) -> None:
        """Let the links follow a checkpoint that has just appeared, and remove what it makes superfluous."""
        self.link("last", target.name)
        if best:
            self.link("best", target.name)
        shutil.rmtree(self.path / f"{target.name}{DAMAGED}", ignore_errors=True)
        self.retain(keep)

    def go_back(self, name: str, best: str | None, damaged: set[str]) -> None:
        """Put aside what is damaged and what was saved after `name`; let the links lead to it and its best."""
        later = {found for found in self.names() if int(found) > int(name)}
        for bad in sorted(later | damaged):
            aside = self.path / f"{bad}{DAMAGED}"
            shutil.rmtree(aside, ignore_errors=True)
            if (self.path / bad).exists():
                os.rename(self.path / bad, aside)
        self.link("last", name)
        if best is None:
            (self.path / "best").unlink(missing_ok=True)
        else:
            self.link("best", best)

    def tidy(self) -> None:
        """Remove what a process left behind that was killed while it wrote; take back what it was replacing."""
        for old in self.path.glob("*.old"):
            whole = old.with_suffix("")
            if not whole.exists():
                os.rename(old, whole)
        for rest in (*self.path.glob("*.old"), *self.path.glob("*.partial")):
            shutil.rmtree(rest, ignore_errors=True)
        for rest in self.path.glob(".*"):
            rest.unlink(missing_ok=True)
