"""One start at a time trains into a run folder: RUN/lock says which, and its age whether that one still lives.

On the machine of the holder its process decides: a dead one is succeeded at once, a suspended one still holds. Seen
from elsewhere only the heartbeat tells, as no clock of another machine and no kernel lock of a network file system can
be relied on: whoever wants the run watches the file until it moves (held), or has stood still for STALE_SECONDS (dead).
A holder that was taken for dead finds out at its next beat or save, and ends before it writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil

from bloodcell.config import Config
from bloodcell.engine.agree import on_first_rank, share
from bloodcell.engine.holder import LOCK_FILE, Holder, create_holder, put_holder, read_holder
from bloodcell.ranks import Ranks
from bloodcell.runfolder import RunFolder, Status, check_same
from shards.atomic import disk_errors
from shards.console import say, warn
from shards.errors import BadInput, EnvironmentFault, Stop

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
"""A lock whose file has not been touched for so long is that of a dead process on another machine."""


class RunLock:
    """The lock of a run folder, for the first rank.

    Args:
        run: the run folder, which need not exist yet.
        beat: seconds between two signs of life.
        stale: seconds without one after which a holder on another machine is taken for dead.
    """

    def __init__(self, run: Path, beat: float = BEAT_SECONDS, stale: float = STALE_SECONDS) -> None:
        self.run, self.beat, self.stale = run, beat, stale
        self.me: Holder | None = None
        self.token = ""
        """Of the start that holds the run, known on all its ranks (hold())."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Take the lock and keep it alive. Watches a holder elsewhere for up to `stale` seconds.

        Raises:
            BadInput: another start holds it (EnvironmentFault if it belongs to this very Slurm job: once the other has
                ended, starting again helps).
            EnvironmentFault: the folder's disk is full.
        """
        global _held
        try:
            with disk_errors(self.run):
                self.run.mkdir(parents=True, exist_ok=True)
                me = self._succeed()
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise BadInput(
                f"the run folder cannot be written: {error.strerror}", self.run, "choose another --run"
            ) from error
        self.me, self.token = me, me.token
        _held = self
        self._thread = threading.Thread(target=self._live, name="bloodcell-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        global _held
        _held = None
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(self.beat)  # not longer: a beat may hang on a file system that does
        me, self.me = self.me, None
        with contextlib.suppress(OSError):
            if me is not None and self._is(me):
                (self.run / LOCK_FILE).unlink()

    def check(self) -> None:
        """Raise EnvironmentFault if another start has taken the run over, as it may after a long suspension."""
        try:
            other = self._successor()
        except OSError:
            return  # a file system that fails for a while; the next look shows who holds the run then
        if other is not None:
            raise EnvironmentFault(
                f"another start has taken the run over ({other}): this one was silent for too long",
                self.run / LOCK_FILE,
                "let the other one finish",
            )

    def _successor(self) -> Holder | None:
        """Return who holds the run in our place; puts the file back if somebody removed it."""
        if self.me is None or self._is(self.me):
            return None
        if read_holder(self.run)[0] is None:
            with contextlib.suppress(FileExistsError):
                create_holder(self.run, self.me)
                return None
        return read_holder(self.run)[0]

    def _is(self, me: Holder) -> bool:
        holder = read_holder(self.run)[0]
        return holder is not None and holder.token == me.token

    def _succeed(self) -> Holder:
        me = Holder.here()
        watched: tuple[str, int] | None = None
        began = time.monotonic()
        while True:
            holder, touched = read_holder(self.run)
            gone = holder is not None and holder.neighbour_of(me) and holder.process() is None
            silent = watched == (holder.token if holder else "", touched) and time.monotonic() - began > self.stale
            if holder is None or gone or silent:
                me = replace(me, since=time.time())
                if put_holder(self.run, me, holder):
                    if holder is not None:
                        why = "which is gone" if gone else f"which was silent for {self.stale:.0f} s"
                        warn(f"taking over {self.run} from {holder}, {why}")
                    return me
                continue
            if holder.neighbour_of(me) or (watched is not None and watched != (holder.token, touched)):
                raise _refusal(self.run, holder, me)
            if watched is None:
                watched = holder.token, touched
                began = time.monotonic()
                say(f"{self.run} was being trained by {holder}: waiting up to {self.stale:.0f} s for a sign of life")
            time.sleep(min(self.beat, self.stale) / 10)

    def _live(self) -> None:
        while not self._stop.wait(self.beat):
            try:
                self.check()
                os.utime(self.run / LOCK_FILE)
            except Stop as problem:
                print(f"bloodcell: {problem}", file=sys.stderr, flush=True)
                os._exit(problem.code)
            except OSError:
                continue


_held: RunLock | None = None


def check_lock() -> None:
    """Raise EnvironmentFault if this process held a run that another start has taken over."""
    if _held is not None:
        _held.check()


def hold(lock: RunLock, run: RunFolder, config: Config, status: Status, ranks: Ranks) -> None:
    """Take the lock on the first rank; all ranks learn its token and which attempt this is. Collective.

    Raises:
        BadInput: another start holds the run, or began it with another config while this one was on its way.
    """

    def take() -> None:
        lock.take()
        if run.exists:
            check_same(run.config(), config, run.path)
        status.begin()

    on_first_rank(ranks, take)
    lock.token, attempt = json.loads(share(json.dumps([lock.token, status.values["attempt"]])))
    status.values["attempt"] = attempt


def held_by_another(lock: RunLock) -> bool:
    """Whether another start than that of `lock` holds its run, and is not known to be dead."""
    with contextlib.suppress(OSError):
        holder, _ = read_holder(lock.run)
        if holder is not None and holder.token != lock.token:
            return not (holder.neighbour_of(Holder.here()) and holder.process() is None)
    return False


def _refusal(run: Path, holder: Holder, me: Holder) -> Stop:
    process = holder.process() if holder.neighbour_of(me) else None
    suspended = process is not None and process.status() == psutil.STATUS_STOPPED
    what = f"another start trains into this run: {holder}" + (", suspended now" if suspended else "")
    if holder.job and holder.job == me.job:
        return EnvironmentFault(what, run, "it ends with its part of the job; then start again")
    end = f"`scancel {holder.job}`" if holder.job else f"`kill {holder.pid}` on {holder.host}"
    go_on = f"let it go on (`kill -CONT {holder.pid}`)" if suspended else "wait for it"
    return BadInput(what, run, f"{go_on}, end it ({end}), or choose another --run")
