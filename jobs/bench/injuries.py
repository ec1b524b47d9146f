"""What can happen to a training run, done to real processes, signals, files and a real file system."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from jobs.launch import torchrun

DISK_MIB = 64
"""Size of the file system that the runs lie on, where one can be mounted."""


@dataclass
class Victim:
    """A training run under torchrun: its launcher, and the folder it writes to.

    Attributes:
        launcher: the process of torchrun; the ranks are its children.
        run: the run folder.
        disk: the mount point of the small file system on which the run lies, or None where none could be mounted.
    """

    launcher: subprocess.Popen[bytes]
    run: Path
    disk: Path | None

    def ranks(self) -> list[psutil.Process]:
        """Return the ranks that are alive, in the order in which they were started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.launcher.pid).children()
            return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
        return []

    def ended(self) -> bool:
        """Whether the launcher has ended."""
        return self.launcher.poll() is not None

    def kill(self) -> None:
        """Kill the launcher and all ranks, as a node does that loses power; return when nothing of them is left."""
        everything = self.ranks()
        with contextlib.suppress(psutil.NoSuchProcess):
            everything = psutil.Process(self.launcher.pid).children(recursive=True)
        self.launcher.kill()
        self.launcher.wait()
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everything, timeout=30)


def start(run: Path, disk: Path | None, ranks: int, arguments: list[str], log: Path) -> Victim:
    """Start `bloodcell train ...` on so many ranks, in a session of its own; what it says goes to `log`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "ab") as said:
        launcher = subprocess.Popen(
            torchrun(ranks, *arguments), stdout=said, stderr=said, env=environment, start_new_session=True
        )
    return Victim(launcher, run, disk)


def kill_rank(victim: Victim, rng: random.Random) -> None:
    """Kill one rank, as a lack of memory does."""
    _send(victim, rng, signal.SIGKILL)


def kill_all(victim: Victim, rng: random.Random) -> None:
    """Kill the launcher and all ranks, as a lost node does."""
    victim.kill()


def warn_launcher(victim: Victim, rng: random.Random) -> None:
    """Send USR2 to the launcher, as a queue does that wants the node back."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim.launcher.pid, signal.SIGUSR2)


def terminate_rank(victim: Victim, rng: random.Random) -> None:
    """Send TERM to one rank alone: the others learn of it."""
    _send(victim, rng, signal.SIGTERM)


def stop_rank(victim: Victim, rng: random.Random) -> None:
    """Stop one rank without ending it, as a hung file system or driver does; killed once the others have ended."""
    stuck = _send(victim, rng, signal.SIGSTOP)
    if stuck is None:
        return
    others = [process for process in victim.ranks() if process.pid != stuck.pid]
    psutil.wait_procs(others, timeout=LONGEST)
    with contextlib.suppress(psutil.NoSuchProcess):
        stuck.kill()


def fill_disk(victim: Victim, rng: random.Random) -> None:
    """Fill the file system (or, where none could be mounted, forbid files to grow) until the run has ended."""
    if victim.disk is None:
        for process in victim.ranks():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.rlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        wait(victim.ended)
        return
    ballast = victim.disk / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))
    wait(victim.ended)
    ballast.unlink()


def tear_checkpoint(victim: Victim, rng: random.Random) -> None:
    """Lose the node, and with it the end of a file of the newest checkpoint."""
    victim.kill()
    file = _file_of_newest(victim, rng)
    if file is not None:
        os.truncate(file, rng.randrange(file.stat().st_size))


def flip_checkpoint(victim: Victim, rng: random.Random) -> None:
    """Lose the node, and one bit of a file of the newest checkpoint."""
    victim.kill()
    file = _file_of_newest(victim, rng)
    if file is not None:
        content = bytearray(file.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)


INJURIES: dict[str, Callable[[Victim, random.Random], None]] = {
    "rank killed": kill_rank,
    "all killed": kill_all,
    "USR2 to the launcher": warn_launcher,
    "TERM to a rank": terminate_rank,
    "rank stopped": stop_rank,
    "disk full": fill_disk,
    "checkpoint torn": tear_checkpoint,
    "checkpoint bit flipped": flip_checkpoint,
}

LONGEST = 180.0
"""Seconds after which a run that should have ended is said to hang."""


def wait(condition: Callable[[], object], seconds: float = LONGEST) -> bool:
    """Wait until the condition holds; return whether it came to that in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a file system of DISK_MIB at `folder` inside the block; yield None where that is not allowed."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def _send(victim: Victim, rng: random.Random, number: int) -> psutil.Process | None:
    """Send a signal to a random rank, as soon as there is one, and return it; None if the run has ended."""
    wait(lambda: victim.ended() or victim.ranks())
    alive = victim.ranks()
    if not alive:
        return None
    chosen = rng.choice(alive)
    with contextlib.suppress(psutil.NoSuchProcess):
        chosen.send_signal(number)
    return chosen


def _file_of_newest(victim: Victim, rng: random.Random) -> Path | None:
    """Return a file of the newest checkpoint, if there is an older one to go back to."""
    saved = sorted(path for path in (victim.run / "checkpoints").glob("*") if path.name.isdigit())
    if len(saved) < 2:
        return None
    return rng.choice(sorted(path for path in saved[-1].iterdir() if path.stat().st_size))
