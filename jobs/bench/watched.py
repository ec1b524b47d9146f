"""Run a `bloodcell` verb in processes of its own and measure them: seconds, processor time and peak memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from jobs.launch import bloodcell
from shards.errors import Fault

_LOOK = 0.05  # seconds between two looks at the processes


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds on the clock and of all its processes' CPUs, and its own peak memory in bytes.

    `peak` counts files that are mapped into memory, which the system can drop; `anonymous` is the rest (0: not said).
    """

    wall: float
    cpu: float
    peak: int
    anonymous: int


def watched(*arguments: str, cores: int = 0) -> Cost:
    """Run the verb to its end, on so many of this process's cores (0: all; where the system can keep it to some).

    Worker processes belong to a server process that nobody waits for, so their processor time is read while they live,
    and so is the command's peak memory (what the system hands down afterwards counts that of its parent): what happens
    within the last 50 ms is missed, and of anonymous memory what comes and goes between two looks. The processor time
    of the command itself is exact.

    Raises:
        Fault: it failed; with the last line that it wrote.
    """
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with tempfile.TemporaryFile("w+") as said:
        begin = time.perf_counter()
        process = subprocess.Popen(bloodcell(*arguments), stdout=said, stderr=subprocess.STDOUT, env=environment)
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, sorted(os.sched_getaffinity(0))[:cores])
        with Look(process.pid) as look:
            _, status, used = os.wait4(process.pid, 0)
            wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            lines = said.read().strip().splitlines()
            raise Fault(f"`bloodcell {arguments[0]}` failed: {lines[-1] if lines else process.returncode}")
    return Cost(wall, used.ru_utime + used.ru_stime + sum(look.below.values()), look.peak, look.anonymous)


class Look(threading.Thread):
    """Reads again and again the peak memory of a process, and the processor time of every process below it.

    A context manager: it looks as long as the context lasts.

    Attributes:
        peak, anonymous: as in `Cost`.
        below: processor time of each process below it, seconds, by pid.
        held: the most bytes that the processes below it have held together, shared ones counted in each.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.root = psutil.Process(pid)
        self.over = threading.Event()
        self.below: dict[int, float] = {}
        self.peak = self.anonymous = self.held = 0

    def run(self) -> None:
        while not self.over.wait(_LOOK):
            with contextlib.suppress(psutil.Error, OSError):
                peak, anonymous = _memory(self.root)
                self.peak, self.anonymous = max(self.peak, peak), max(self.anonymous, anonymous)
                held = 0
                for child in self.root.children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        times = child.cpu_times()
                        self.below[child.pid] = times.user + times.system
                        held += child.memory_info().rss
                self.held = max(self.held, held)

    def __enter__(self) -> Look:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self.join()


def _memory(process: psutil.Process) -> tuple[int, int]:
    """Return the most bytes that the process has held (if the system does not say, those it holds), anonymous ones."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return int(process.memory_info().rss), 0
    found = {
        name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest
    }
    return found.get("VmHWM", 0), found.get("RssAnon", 0)
