"""The folder in which a set comes into being, SET.partial: who may work in it, and what of it is taken up again.

SET.partial/               the set, as far as it is written
SET.partial/work/          work.json (of what), chunk-000000.arrow (what examination found), PART-000000.json (a shard)
SET.partial.lock           held by whoever works there; the system frees it when a process ends, however it ends
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shards.atomic import disk_errors, open_atomic, sync_directory, sync_tree
from shards.console import say, warn
from shards.errors import BadInput, EnvironmentFault, Fault

FORMAT, VERSION = "bloodcell-packing", 1
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""What file systems answer that have no locks."""


@dataclass(frozen=True)
class Identity:
    """What a packing is about.

    Attributes:
        examination: what examination finds depends on, beside the images: treatment and versions.
        options: the options of the packing, with absolute paths; what merge goes by.
        images: how many.
        listing: digest of the images' names, labels, groups, sizes and times.
        parts: processes that share the examination; 0 if it is not shared.
    """

    examination: dict[str, Any]
    options: dict[str, Any]
    images: int
    listing: str
    parts: int = 0

    def differences(self, other: Identity) -> list[str]:
        """Name what differs in another packing."""
        said = [f"{name}: {one!r} and {two!r}" for name, one, two in _unlike(self.examination, other.examination)]
        said += [
            f"--{name.replace('_', '-')}: {one!r} and {two!r}"
            for name, one, two in _unlike(self.options, other.options)
            if name != "source"  # the same images may lie elsewhere on another machine
        ]
        if self.listing != other.listing:
            counts = f"{self.images:,} and {other.images:,}" if self.images != other.images else "names, sizes or times"
            said.append(f"the images: {counts}")
        return said


def _unlike(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    names = dict.fromkeys([*one, *other])
    return [(name, one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)]


class Work:
    """The place where one set is made."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.partial = target.with_name(f"{target.name}.partial")
        self.folder = self.partial / "work"
        self._aside = target.with_name(f"{target.name}.partial.work")
        self._json = self.folder / "work.json"
        self._shared = False

    def begin(self, identity: Identity) -> None:
        """Make the folder ready for this packing: what another one left is cleared away unless it can be used.

        Raises:
            BadInput: parts of another packing were examined here, none of which could be used.
        """
        self.settle()
        found = self.identity()
        said = "; ".join(found.differences(identity)) if found else ""
        self._shared = bool(found and found.parts)
        if found and found.examination == identity.examination:
            identity = replace(identity, parts=found.parts)
            if said:
                say(f"{self.partial} was begun otherwise ({said}): only what is the same is taken up")
        elif self._shared:
            fix = "choose another name, or remove this folder to start over"
            raise BadInput(f"parts of another packing were examined here ({said})", self.partial, fix)
        else:
            if found:
                say(f"{self.partial} was begun otherwise ({said}): starting over")
            shutil.rmtree(self.partial, ignore_errors=True)
        self._make()
        self._write(identity)

    def join(self, identity: Identity, part: int) -> None:
        """Take part in a packing that several processes share; the first of them sets it up.

        Raises:
            BadInput: it was begun with other options, images or versions.
        """
        self._make()
        self._shared = True
        with _flock(self.folder / "begin.lock", fcntl.LOCK_EX):
            self.settle()
            found = self.identity()
            if found is None:
                self._write(identity)
                return
        said = found.differences(identity)
        if found.parts != identity.parts:
            said.append(f"parts: {found.parts or 'none'} and {identity.parts}")
        if said:
            raise BadInput(
                f"part {part}/{identity.parts} is of another packing than the one begun ({'; '.join(said)})",
                self.partial,
                "give all parts the same options and images, or remove this folder to start over",
            )

    def identity(self) -> Identity | None:
        """Return what the packing here is about; None if there is none that this program can go on with."""
        try:
            value = json.loads(self._json.read_text(encoding="utf-8"))
            if value.pop("format") != FORMAT or value.pop("version") != VERSION:
                return None
            return Identity(**value)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def finish(self) -> None:
        """Give the set its name. At no moment is it there with work files in it, or gone with work to be done again."""
        with disk_errors(self.target):
            os.rename(self.folder, self._aside)  # nobody needs to wait until that is on the disk
            sync_tree(self.partial)
            os.rename(self.partial, self.target)
        sync_directory(self.target.parent)
        shutil.rmtree(self._aside, ignore_errors=True)

    def discard(self) -> None:
        """Remove all of it, unless other processes have worked for it."""
        if self._shared:
            return
        shutil.rmtree(self.partial, ignore_errors=True)

    def remains(self) -> bool:
        """Whether a packing that ended or was killed left something beside the set."""
        return any(self.target.parent.glob(f"{glob.escape(self.partial.name)}*"))

    def settle(self) -> None:
        """Mend what a kill in the middle of `finish` left."""
        if not self._aside.exists():
            return
        if self.partial.exists() and not self.folder.exists():
            with contextlib.suppress(FileNotFoundError):  # another part was faster
                os.rename(self._aside, self.folder)
        else:
            shutil.rmtree(self._aside, ignore_errors=True)

    def _make(self) -> None:
        with disk_errors(self.partial):
            self.folder.mkdir(parents=True, exist_ok=True)

    def _write(self, identity: Identity) -> None:
        value = {"format": FORMAT, "version": VERSION, **asdict(identity)}
        with open_atomic(self._json, "w") as file:
            file.write(json.dumps(value, indent=1) + "\n")  # ASCII: paths need not be valid UTF-8


def is_growing(folder: Path) -> bool:
    """Whether there is work to be done on the set in `folder`: an append that runs or was cut short."""
    return Work(folder.resolve()).identity() is not None


@contextlib.contextmanager
def alone(target: Path, new: bool = True) -> Iterator[Work]:
    """Yield the work on a set that nobody else works on; one that is to be `new` must not be there.

    Raises:
        EnvironmentFault: somebody does.
    """
    work = Work(target)
    with _occupied(work, fcntl.LOCK_EX, "another process is packing this set"):
        if new and os.path.lexists(target):  # another process may have finished it since this one looked
            raise _exists(target)
        yield work


def refuse_existing(target: Path) -> None:
    """Raise BadInput if the set is there; what a kill after its last rename left beside it is cleared away first."""
    if not os.path.lexists(target):
        return
    if Work(target).remains():
        with alone(target, new=False) as work:
            work.settle()
    raise _exists(target)


@contextlib.contextmanager
def together(target: Path, part: int) -> Iterator[Work]:
    """Yield the work on a set that other parts may be working on too.

    Raises:
        EnvironmentFault: somebody works on it alone, or on the same part.
    """
    work = Work(target)
    with _occupied(work, fcntl.LOCK_SH, "another process is packing or merging this set"):
        work._make()
        with _flock(work.folder / f"part-{part:04d}.lock", fcntl.LOCK_EX | fcntl.LOCK_NB) as lock:
            if lock is None:
                raise _busy(f"another process is packing part {part}", work)
            yield work


@contextlib.contextmanager
def going_on(work: Work) -> Iterator[None]:
    """Keep what is done when starting again will help; remove it when it will not, if no other process helped."""
    try:
        yield
    except (BadInput, Fault):
        work.discard()
        raise
    except BaseException:
        say(f"what is done stays in {work.partial}: start again to go on")
        raise


@contextlib.contextmanager
def _occupied(work: Work, mode: int, said: str) -> Iterator[None]:
    path = work.target.with_name(f"{work.target.name}.partial.lock")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with _flock(path, mode | fcntl.LOCK_NB) as lock:
            if lock is None:
                raise _busy(said, work)
            if not _is(lock, path):  # its last holder removed it between our opening and our locking
                continue
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # others hold it too: the last one removes it
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            return


def _exists(target: Path) -> BadInput:
    return BadInput("the set exists already", target, "choose another name or remove it first")


def _busy(said: str, work: Work) -> EnvironmentFault:
    return EnvironmentFault(said, work.partial, "wait until it has ended, then start again")


@contextlib.contextmanager
def _flock(path: Path, mode: int) -> Iterator[int | None]:
    """Yield the descriptor of a locked file; None if another process holds it."""
    try:
        with disk_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError as error:
        raise BadInput("nothing can be written here", path.parent, "mend its permissions") from error
    try:
        try:
            fcntl.flock(descriptor, mode)
        except BlockingIOError:
            yield None
            return
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warn(f"this file system has no locks: let no other process work on {path}")
        yield descriptor
    finally:
        os.close(descriptor)


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False
