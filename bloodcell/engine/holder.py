"""RUN/lock as a file: who holds a run, seen whole or not at all, and replaced by one successor at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

LOCK_FILE = "lock"
SAME_SECONDS = 5.0
"""How far two readings of when a process began may part: the machine's clock is set now and then."""


@dataclass(frozen=True)
class Holder:
    """Who holds a run: what RUN/lock contains.

    Attributes:
        token: drawn for every start.
        host, boot, space: the machine, its start, and the space in which `pid` counts (containers have their own).
        pid, born: the process of the first rank, and when it began (seconds since 1970): numbers are used again.
        job: of Slurm, "" outside it.
        since: when the lock was taken (seconds since 1970).
    """

    token: str
    host: str
    boot: str
    space: str
    pid: int
    born: float
    job: str
    since: float

    @classmethod
    def here(cls) -> Holder:
        """Return this process as a holder."""
        boot, space = "", ""
        with contextlib.suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            space = os.readlink("/proc/self/ns/pid")
        born = psutil.Process().create_time()
        job = os.environ.get("SLURM_JOB_ID", "")
        return cls(uuid.uuid4().hex, platform.node(), boot, space, os.getpid(), born, job, time.time())

    def neighbour_of(self, other: Holder) -> bool:
        """Whether the two can see each other's processes."""
        return (self.host, self.boot, self.space) == (other.host, other.boot, other.space)

    def process(self) -> psutil.Process | None:
        """Return the process if it lives on this machine; None if it is gone."""
        with contextlib.suppress(psutil.NoSuchProcess):
            found = psutil.Process(self.pid)
            if found.status() != psutil.STATUS_ZOMBIE and abs(found.create_time() - self.born) < SAME_SECONDS:
                return found
        return None

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"pid {self.pid} on {self.host}{job}, since {since}"


def read_holder(run: Path) -> tuple[Holder | None, int]:
    """Return who holds the run, and when the lock was touched last (ns, clock of the file server); (None, 0) if none.

    A lock that cannot be read is somebody's too: that of nobody known.
    """
    try:
        # Opening asks a network file system for what is there now, in place of what it remembers.
        with open(run / LOCK_FILE, encoding="utf-8") as file:
            touched = os.fstat(file.fileno()).st_mtime_ns
            try:
                return Holder(**json.load(file)), touched
            except (ValueError, TypeError):
                return Holder("", "an unknown machine", "", "", 0, 0.0, "", touched / 1e9), touched
    except FileNotFoundError:
        return None, 0


def put_holder(run: Path, me: Holder, instead_of: Holder | None) -> bool:
    """Make the lock ours if it is still free, or still that of `instead_of`; return whether it is."""
    with _alone(run) as certain:
        try:
            if instead_of is None:
                create_holder(run, me)
                return True
        except FileExistsError:
            return False
        now = read_holder(run)[0]
        if now is None or now.token != instead_of.token:
            return False
        partial = _write(run, me)
        os.replace(partial, run / LOCK_FILE)
    if not certain:  # two may have come this far together: the last one has it
        time.sleep(0.5)
    after = read_holder(run)[0]
    return after is not None and after.token == me.token


def create_holder(run: Path, me: Holder) -> None:
    """Create the lock, whole from the start; raises FileExistsError."""
    partial = _write(run, me)
    try:
        os.link(partial, run / LOCK_FILE)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        descriptor = os.open(run / LOCK_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(me), file)
    finally:
        partial.unlink(missing_ok=True)


def _write(run: Path, me: Holder) -> Path:
    partial = run / f".{LOCK_FILE}.{me.token}"
    try:
        partial.write_text(json.dumps(asdict(me)) + "\n", encoding="utf-8")
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return partial


@contextlib.contextmanager
def _alone(run: Path) -> Iterator[bool]:
    """Let one process at a time succeed a dead holder, where the file system locks folders; yield whether it does."""
    folder, certain = os.open(run, os.O_RDONLY), False
    try:
        for _ in range(50):
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                certain = True
                break
            except BlockingIOError:
                time.sleep(0.1)
            except OSError:
                break
        yield certain
    finally:
        os.close(folder)
