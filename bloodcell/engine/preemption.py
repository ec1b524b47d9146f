"""Signals that ask a run to stop: they set a flag; the ranks agree on a step, save together and leave with code 85.

Measured facts that shape this file: Python's own handlers wait until a blocking collective is over, a thread behind the
wakeup file descriptor does not; Slurm signals child processes too, and those that were forked share that descriptor.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any, TypeVar

from bloodcell.engine import watchdog
from shards.console import say, warn
from shards.errors import Preempted

T = TypeVar("T")

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
INTERRUPTED = 130
"""Exit code of a run that was interrupted twice: it ends at once, saving nothing."""
ONE_PRESS_SECONDS = 1.0
"""A terminal and torchrun pass on the same Ctrl-C: interrupts this close together are one."""
START_UP_SECONDS = 5.0
"""How long the main thread may take to leave during start-up; it may be waiting for ranks that never come."""
GO_ON = "start the same command again: the run goes on"


class Listener:
    """Listens for SIGUSR2, SIGTERM and SIGINT inside a `with` block in the main thread (elsewhere it does nothing).

    Attributes:
        asked: the name of the signal that asked this process to stop, or "".
        starting: nothing is trained yet: a signal ends the process at once.
        last_words: what to do with the reason where only a thread can end the process.
    """

    def __init__(self) -> None:
        self.asked, self.starting = "", True
        self.last_words: Callable[[Preempted], None] | None = None
        self._pid, self._interrupted = os.getpid(), 0.0
        self._noted = self._raised = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Listener:
        global _listener
        if _listener is None and threading.current_thread() is threading.main_thread():
            _listener = self
            self._read_end, self._write_end = socket.socketpair()
            self._write_end.setblocking(False)
            self._old_end = signal.set_wakeup_fd(self._write_end.fileno(), warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._listen, name="bloodcell-signals", daemon=True)
            self._thread.start()
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        global _listener
        if not self._before:
            return
        self._close()
        if self.starting and self.asked and isinstance(error, Exception) and not isinstance(error, Preempted):
            raise self.reason() from error  # somebody took our exception for a problem of theirs

    def _close(self) -> None:
        global _listener
        _listener = None
        for number, before in self._before.items():
            # A process that was asked to go is on its way: the launcher's next signal must not make another end of it.
            signal.signal(number, signal.SIG_IGN if self.asked and number != signal.SIGINT else before)
        signal.set_wakeup_fd(self._old_end)
        self._write_end.close()
        self._thread.join()
        self._read_end.close()

    def reason(self) -> Preempted:
        """Return what to raise when the process leaves and nothing more is to be said."""
        return Preempted(f"stopped by {self.asked or 'a signal'} during start-up", "", GO_ON)

    def _handle(self, number: int, _: FrameType | None) -> None:
        """Run in the main thread, when it gets round to it."""
        if os.getpid() != self._pid:
            return
        self.asked = self.asked or signal.Signals(number).name
        if self.starting and not self._raised:
            self._raised = True
            raise self.reason()

    def _listen(self) -> None:
        while numbers := self._read_end.recv(64):
            for number in numbers:
                if number in SIGNALS:
                    self._note(signal.Signals(number))

    def _note(self, number: signal.Signals) -> None:
        """Run in the thread, at once."""
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._interrupted and now - self._interrupted > ONE_PRESS_SECONDS:
                print("bloodcell: interrupted twice, nothing is saved", file=sys.stderr, flush=True)
                os._exit(INTERRUPTED)
            self._interrupted = self._interrupted or now
        first, self._noted = not self._noted, True
        self.asked = self.asked or number.name
        if first and not self.starting and os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            again = "; once more ends it at once" if number == signal.SIGINT else ""
            say(f"{number.name}: the run saves after this step and stops{again}")
        if first and self.starting:
            timer = threading.Timer(START_UP_SECONDS, self._leave)
            timer.daemon = True
            timer.start()

    def _leave(self) -> None:
        if not self.starting or _listener is not self:
            return
        problem = self.reason()
        if self.last_words:
            self.last_words(problem)
        print(f"bloodcell: {problem}", file=sys.stderr, flush=True)
        os._exit(problem.code)


_listener: Listener | None = None


def _in_child() -> None:
    """Let a forked child go its own way: USR2 is not for it, the others end it as they would without us."""
    global _listener
    if _listener is not None:
        _listener = None
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


os.register_at_fork(after_in_child=_in_child)


def started(last_words: Callable[[Preempted], None] | None = None, starting: bool = False) -> None:
    """Say that from here on there is something to save: signals wait for a step. With `starting`: not yet."""
    if _listener is not None:
        _listener.starting, _listener.last_words = starting, last_words
        if starting and _listener.asked:
            raise _listener.reason()


def asked() -> bool:
    """Whether a signal asked this process to stop."""
    return _listener is not None and bool(_listener.asked)


def stopped(what: str, where: object) -> Preempted:
    """Return what all ranks raise after they agreed to stop; names the signal where this rank got it."""
    name = _listener.asked if _listener is not None else ""
    return Preempted(f"stopped by {name or 'a signal to another rank'}: {what}", where, GO_ON)


def stoppable(batches: Iterable[T], doing: str) -> Iterator[T]:
    """Yield `batches`, as many on every rank, until a rank was signalled. Collective where signals are listened for.

    The ranks tell each other along the way and read the answer one batch later, so that none waits for it.

    Raises:
        Preempted: one of them was; on all ranks at the same batch.
    """
    watchdog.feed("evaluating")
    vote = _Vote() if _listener is not None else None
    for batch in batches:
        yield batch
        watchdog.feed("evaluating")
        if vote is not None and vote.next():
            raise stopped(doing, "")
    if vote is not None:
        vote.read()
    watchdog.feed("judging")


class _Vote:
    """Whether any rank was signalled, as it stood one call ago. Collective."""

    def __init__(self) -> None:
        import torch  # this file listens while torch is being imported

        self._torch = torch
        self._work: Any = None
        self._flag = torch.zeros(1)

    def next(self) -> bool:
        dist = self._torch.distributed
        before = self.read()
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return asked()
        self._flag = self._torch.full((1,), float(asked()))
        self._work = dist.all_reduce(self._flag, async_op=True)
        return before

    def read(self) -> bool:
        work, self._work = self._work, None
        if work is not None:
            work.wait()
        return bool(self._flag[0] > 0)


def lead(environment: Mapping[str, str] = os.environ) -> float | None:
    """Return the seconds between the warning signal and the end that the launcher gave, if it can be known.

    Ours sets BLOODCELL_SIGNAL_LEAD; sbatch reads SBATCH_SIGNAL ("[R][B:]USR2@SECONDS") and hands it on.
    """
    given = environment.get("BLOODCELL_SIGNAL_LEAD") or environment.get("SBATCH_SIGNAL", "").partition("@")[2]
    return float(given) if re.fullmatch(r"\d+(\.\d+)?", given) else None


class Lead:
    """Warns once if saving takes longer than the launcher's warning time. Only the first rank's speaks."""

    def __init__(self, speaks: bool) -> None:
        self.seconds = lead() if speaks else None

    def compare(self, step: float, save: float) -> None:
        """Take in the seconds of a step and of a save: ranks agree within two steps, then save."""
        if self.seconds is not None and 2 * step + save > self.seconds:
            warn(
                f"two steps ({2 * step:.1f} s) and a save ({save:.1f} s) take longer than the {self.seconds:g} s that "
                "the launcher leaves between its signal and the end: let it signal earlier, or the last steps are lost"
            )
            self.seconds = None
