"""Files and folders that appear whole or not at all: written under a temporary name, synced, renamed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from shards.errors import BadInput, EnvironmentFault

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.EFBIG}


@contextlib.contextmanager
def disk_errors(where: object) -> Iterator[None]:
    """Turn a full, read-only or failing disk into one clear EnvironmentFault that names `where`."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise EnvironmentFault(
            f"could not write: {os.strerror(error.errno or 0)}",
            where,
            "free some space or choose another disk, then start again",
        ) from error


def existing_parent(path: Path) -> Path:
    """Return the nearest folder (or file) above `path` that is there."""
    path = path.absolute().parent
    while not os.path.lexists(path):
        path = path.parent
    return path


def check_place(target: Path) -> None:
    """Check, before hours of work, that a folder `target` could be made: by making another one beside it.

    Raises:
        BadInput: it has no name, too long a name, or stands where nothing can be written.
        EnvironmentFault: the disk is full or fails.
    """
    if not target.name or target.name == "..":
        raise BadInput("this is no name for a new folder", str(target), "give the folder that is to be made")
    parent = existing_parent(target)
    with disk_errors(parent):
        try:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.lstat(target.with_name(f"{target.name}.partial.lock"))
            with tempfile.TemporaryDirectory(prefix=".bloodcell-", dir=parent):
                pass
        except OSError as error:
            if error.errno in DISK_ERRORS and error.errno != errno.EROFS:
                raise
            said = f"nothing can be written here: {os.strerror(error.errno or 0)}"
            raise BadInput(said, parent, "choose another folder or a shorter name") from error


def _sync_file_range() -> Callable[..., object] | None:
    """Return Linux's system call of that name, which Python does not have; None on other systems."""
    try:
        call: Callable[..., object] | None = getattr(ctypes.CDLL(None), "sync_file_range", None)
    except (OSError, TypeError):
        return None
    return call


_BEGIN = _sync_file_range()
_BEGIN_ONLY = 2  # SYNC_FILE_RANGE_WRITE: begin, do not wait


def begin_writing(descriptor: int, offset: int, size: int) -> None:
    """Let the disk begin with these bytes of a file that will be synced later; where that cannot be, do nothing."""
    if _BEGIN:
        _BEGIN(descriptor, ctypes.c_int64(offset), ctypes.c_int64(size), _BEGIN_ONLY)


def sync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_atomic(path: Path, mode: str = "wb", durable: bool = True) -> Iterator[IO[Any]]:
    """Open a new file that replaces `path` when the block ends well and vanishes when it does not.

    `durable` syncs it, so that it is whole after a power failure too; leave it out for what can be made again and
    carries a digest.

    Raises:
        EnvironmentFault: the disk is full or fails.
    """
    partial = path.with_name(f".{path.name}.partial.{os.getpid()}")
    encoding = None if "b" in mode else "utf-8"
    with disk_errors(path):
        try:
            with open(partial, mode, encoding=encoding) as file:
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    if durable:
        sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, atomically. NaN is refused: it is not JSON."""
    with open_atomic(path, "w") as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def new_folder(path: Path, durable: bool = True, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` when the block ends well and removed when it does not.

    `durable` syncs every file first, so that the folder is whole after a power failure too; leave it out for what can
    be made again. `replace` lets an older folder of this name stay until the new one is whole, and go then.

    Raises:
        EnvironmentFault: the disk is full or fails.
    """
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with disk_errors(path):
        try:
            partial.mkdir(parents=True)
            yield partial
            if durable:
                sync_tree(partial)
            if replace and path.exists():
                old = path.with_name(f"{path.name}.old")
                shutil.rmtree(old, ignore_errors=True)
                os.rename(path, old)
            os.rename(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    if replace:
        shutil.rmtree(path.with_name(f"{path.name}.old"), ignore_errors=True)
    sync_directory(path.parent)


def sync_tree(folder: Path) -> None:
    """Make every file below `folder` durable."""
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
    sync_directory(folder)
