"""A thread that ends a process which is stuck: with the stacks of all its threads, its last step, and the suspects.

The loop feeds it. Inside a C call that holds Python's lock no Python thread runs: there, faulthandler's own C thread
still writes the stacks; the other ranks end themselves, and their launcher this one.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from shards.errors import EnvironmentFault

if TYPE_CHECKING:
    from bloodcell.engine.peers import Beat, Beats
    from bloodcell.ranks import Ranks

BRISK = ("training", "evaluating")
"""Phases that are fed in small steps: from the second in a row on the short limit counts."""

TICK_SECONDS = 0.5
HEARTBEAT_FILE = "heartbeat.json"
HEARTBEAT_BYTES = 96


@dataclass(frozen=True)
class Fed:
    """The last sign of progress: what is being done, at which step, since when, and whether its length is known."""

    phase: str
    step: int
    time: float
    brisk: bool


class Watchdog:
    """Ends this process with code 3 when nothing has fed it for too long. Use as a context manager.

    Args:
        run: the run folder; gets stacks/rank-N.txt, and from the first rank heartbeat.json.
        ranks: this process's place.
        attempt: which start of the run this is.
        stall: seconds that a step or an evaluation batch may take (longer if earlier ones took a tenth of it).
        patience: seconds for everything else: start-up, the first step, saving, judging. Where a peer gives no sign of
            life any more, that ends after `stall` and some seconds too.
        last_words: takes the reason before the end.
    """

    def __init__(
        self,
        run: Path,
        ranks: Ranks,
        attempt: int,
        stall: float,
        patience: float,
        last_words: Callable[[EnvironmentFault], None],
    ) -> None:
        self.run, self.ranks, self.attempt = run, ranks, attempt
        self.stall, self.patience, self.last_words = stall, patience, last_words
        self.longest = 0.0
        self.fed = Fed("starting", 0, time.monotonic(), False)
        self._stop = threading.Event()
        self._parent = os.getppid()
        self._beat_file = -1
        self._stacks: TextIO | None = None
        self._enabled = False
        self._asked: tuple[Fed, float, list[Beat | None]] | None = None

    def __enter__(self) -> Watchdog:
        global _watchdog
        _watchdog = self
        self._thread = threading.Thread(target=self._watch, name="bloodcell-watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        global _watchdog
        _watchdog = None
        self._stop.set()
        self._thread.join()
        if self._beat_file >= 0:
            os.close(self._beat_file)
        self._close_stacks()

    def feed(self, phase: str, step: int | None = None) -> None:
        """Note progress."""
        before, now = self.fed, time.monotonic()
        again = phase in BRISK and before.phase == phase
        if again and before.brisk:
            self.longest = max(self.longest, now - before.time)
        self.fed = Fed(phase, before.step if step is None else step, now, again)
        if self.ranks.first and (phase != before.phase or self.fed.step != before.step):
            self._write_heartbeat()

    def limit(self, fed: Fed) -> float:
        """Return the seconds that may pass until the next sign of progress."""
        return max(self.stall, 10 * self.longest) if fed.brisk else max(self.patience, self.stall)

    def _write_heartbeat(self) -> None:
        """Leave in a file what is being done: it survives the death of the process, and says what killed it."""
        with contextlib.suppress(OSError):
            if self._beat_file < 0:
                self._beat_file = os.open(self.run / HEARTBEAT_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            content = json.dumps({"attempt": self.attempt, "phase": self.fed.phase, "step": self.fed.step})
            os.pwrite(self._beat_file, f"{content:<{HEARTBEAT_BYTES}}\n".encode(), 0)

    def _watch(self) -> None:
        from bloodcell.engine.peers import LEFT, Beats

        beats = Beats(self.ranks)
        beats.send(self.fed.phase, self.fed.step, 0.0)
        last_tick, last_beat = time.monotonic(), 0.0
        while not self._stop.wait(TICK_SECONDS):
            now, fed = time.monotonic(), self.fed
            if self.ranks.launcher == "torchrun" and os.getppid() != self._parent:
                # Ranks have sessions of their own: without this they would train on, beside those of the next start.
                print(f"bloodcell (rank {self.ranks.rank}): the launcher is gone", file=sys.stderr, flush=True)
                os._exit(EnvironmentFault.code)
            if now - last_tick > 10 * TICK_SECONDS:  # suspended (Ctrl-Z, Slurm's gang scheduling), not stuck
                fed = self.fed = Fed(fed.phase, fed.step, now, fed.brisk)
            last_tick = now
            if now - last_beat >= beats.seconds:
                beats.send(fed.phase, fed.step, now - fed.time)
                last_beat = now
                self._arm(self.limit(fed) + 10)
            if now - fed.time > self.limit(fed) or self._waits_in_vain(beats, fed, now):
                self._end(fed)
        beats.send(LEFT, self.fed.step, 0.0)

    def _waits_in_vain(self, beats: Beats, fed: Fed, now: float) -> bool:
        """Whether, in something whose length is not known, a peer is silent: slow ones give signs of life."""
        from bloodcell.engine.peers import SILENCE_SECONDS, any_silent

        if fed.brisk or self.ranks.world == 1 or now - fed.time <= self.stall:
            return False
        if self._asked is None or self._asked[0] is not fed:
            self._asked = fed, now, beats.heard()
        _, then, before = self._asked
        if now - then < max(min(self.stall, SILENCE_SECONDS), self.ranks.world / 8):
            return False
        self._asked = fed, now, beats.heard()
        return any_silent(before, self._asked[2], self.ranks.rank)

    def _arm(self, seconds: float) -> None:
        """Let faulthandler's C thread write the stacks in `seconds`, unless this one comes by before."""
        if self._stacks is None and self.run.is_dir():
            with contextlib.suppress(OSError):
                (self.run / "stacks").mkdir(exist_ok=True)
                self._stacks = open(self.run / "stacks" / f"rank-{self.ranks.rank}.txt", "w", encoding="utf-8")  # noqa: SIM115
                self._enabled = not faulthandler.is_enabled()
                if self._enabled:  # a crash in native code leaves its stacks there too
                    faulthandler.enable(self._stacks)
        if self._stacks is not None:
            faulthandler.dump_traceback_later(seconds, file=self._stacks)

    def _close_stacks(self) -> None:
        if self._stacks is None:
            return
        faulthandler.cancel_dump_traceback_later()
        if self._enabled:
            faulthandler.disable()
        self._stacks.close()
        path = Path(self._stacks.name)
        with contextlib.suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()
                path.parent.rmdir()

    def _end(self, fed: Fed) -> None:
        from bloodcell.engine.peers import suspects

        seconds = time.monotonic() - fed.time
        who = f"rank {self.ranks.rank} on {socket.gethostname()}, pid {os.getpid()}"
        head = f"{who}: in step {fed.step} ({fed.phase}) for {seconds:.0f} s"
        if self._stacks is not None:
            with contextlib.suppress(OSError):
                self._stacks.write(head + "\n")
                self._stacks.flush()
                faulthandler.dump_traceback(self._stacks, all_threads=True)
        suspected = suspects(self.ranks, fed.step)
        if self.fed is not fed:
            return  # it moved while we looked round: slow, not stuck
        problem = EnvironmentFault(
            f"stuck for {seconds:.0f} s in step {fed.step} ({fed.phase}); {suspected}",
            self.run / "stacks" / f"rank-{self.ranks.rank}.txt",
            "start the same command again: the run goes on; --engine.stall SECONDS allows for slower steps",
        )
        with contextlib.suppress(Exception):
            if self._stacks is not None:
                self._stacks.write(f"suspected: {suspected}\n")
                self._stacks.flush()
            self.last_words(problem)
        print(f"bloodcell (rank {self.ranks.rank}): {problem}", file=sys.stderr, flush=True)
        os._exit(problem.code)


_watchdog: Watchdog | None = None


def feed(phase: str, step: int | None = None) -> None:
    """Note progress of this process, where it is watched; `step` counts from 0 and stays as it was if left out."""
    if _watchdog is not None:
        _watchdog.feed(phase, step)


def current_step() -> int:
    """Return the step that this process is known to be at."""
    return _watchdog.fed.step if _watchdog is not None else 0


def read_heartbeat(run: Path) -> dict[str, Any]:
    """Return {attempt, phase, step} that the last attempt left in the run folder; {} if there is none."""
    try:
        return dict(json.loads((run / HEARTBEAT_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
