"""Who of several workers trains which trial, as files in a folder that they share; what a dead one had is given back.

DIR/.turn               locked by the one worker that reads or changes the journal or the leases
DIR/.waiting            locked by the one worker that waits, with nothing to do, for what others may leave behind
DIR/trials/0007.lease   {"worker", "token", "beat"}: trial 7 is being trained; its worker counts `beat` up

No clocks are compared: a worker is dead when another one has watched its beat stand still for long enough.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.atomic import open_atomic
from shards.errors import BadInput, EnvironmentFault

BEATS = 6
"""Beats in the time after which a silent worker counts as dead."""


@dataclass(frozen=True)
class Lease:
    """One trial that is ours: its file, and what tells it from a lease that another worker took after us."""

    path: Path
    token: str


class Leases:
    """The leases of one sweep, as one of its workers sees them.

    Args:
        folder: of the sweep.
        worker: name of this worker; a worker that starts again under its name gives back what it had.
        silence: seconds after which a worker whose beat stands still counts as dead.
    """

    def __init__(self, folder: Path, worker: str, silence: float) -> None:
        self.folder, self.worker, self.silence = folder, worker, silence
        self._seen: dict[int, tuple[str, float]] = {}
        self._waits = False

    @contextlib.contextmanager
    def last_waiter(self) -> Iterator[bool]:
        """Tell whether no other worker waits for what is left to become free; if so, this one does, in the block."""
        if self._waits:
            yield True
            return
        with open(self.folder / ".waiting", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            self._waits = True
            yield True
            self._waits = False

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other worker reads or changes anything; the others then wait for us.

        Raises:
            BadInput: the folder's file system has no locks.
        """
        with open(self.folder / ".turn", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                    fix = "choose a folder of another file system, or sweep with one process"
                    raise BadInput("this file system has no locks for several workers", self.folder, fix) from None
                raise
            yield

    def held(self) -> dict[int, str]:
        """Return {trial: worker} of all leases whose workers live; those of the dead are taken away. In a turn."""
        found = {}
        for path in sorted((self.folder / "trials").glob("*.lease")):
            number, content = int(path.stem), _read(path)
            sign = f"{content.get('token')} {content.get('beat')}"
            if self._seen.get(number, ("", 0.0))[0] != sign:
                self._seen[number] = sign, time.monotonic()
            own = content.get("worker") == self.worker  # of an earlier start: two are never alive under one name
            if own or time.monotonic() - self._seen[number][1] > self.silence:
                path.unlink(missing_ok=True)
            else:
                found[number] = str(content.get("worker"))
        return found

    def take(self, number: int) -> Lease:
        """Take a trial that nobody holds. In a turn."""
        lease = Lease(self.folder / "trials" / f"{number:04}.lease", secrets.token_hex(8))
        self._write(lease, 0)
        return lease

    def mine(self, lease: Lease) -> bool:
        """Whether a lease is still the one that was taken."""
        return _read(lease.path).get("token") == lease.token

    def give_back(self, lease: Lease) -> None:
        """Let others have the trial. In a turn."""
        if self.mine(lease):
            lease.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def alive(self, lease: Lease) -> Iterator[threading.Event]:
        """Beat as long as the block lasts; the event that it yields is set when the lease is lost."""
        lost, over = threading.Event(), threading.Event()

        def beat() -> None:
            count = 0
            while not over.wait(self.silence / BEATS):
                count += 1
                try:
                    with self.turn():  # nobody takes it over between the look and the beat
                        if not self.mine(lease):
                            lost.set()
                            return
                        self._write(lease, count)
                except (OSError, EnvironmentFault):
                    continue  # a disk that is full or away for a while; for too long, and another worker takes over

        thread = threading.Thread(target=beat, name="bloodcell-lease", daemon=True)
        thread.start()
        try:
            yield lost
        finally:
            over.set()
            thread.join()

    def _write(self, lease: Lease, beat: int) -> None:
        with open_atomic(lease.path, "w") as file:
            file.write(json.dumps({"worker": self.worker, "token": lease.token, "beat": beat}) + "\n")


def worker_name() -> str:
    """Return a name that a job of Slurm keeps when it is queued again; elsewhere, one of this process alone."""
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID")
    if array:
        return f"job {array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    return f"job {job}" if job else f"{os.uname().nodename}, process {os.getpid()}, {secrets.token_hex(4)}"


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
