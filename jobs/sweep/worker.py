"""One of several workers of a sweep, on machines that share its folder: it takes a trial, trains it, takes the next.

Preempted, it lets its trial save and gives it back; killed, its silence gives the trial back. Whoever takes it goes on
from its checkpoint. A worker that was silent for too long, and wakes up, ends its training before anything else.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from bloodcell.engine import preemption
from jobs.sweep.leases import Lease, Leases
from jobs.sweep.runner import POLL_SECONDS, Runner, Running
from jobs.sweep.schedulers import following
from jobs.sweep.trials import Journal
from shards.console import say
from shards.errors import EnvironmentFault, Preempted, Stopped

IDLE_SECONDS = 2.0
"""How often a worker with nothing to do looks again."""


@dataclass
class Worker:
    """Carries out a sweep together with others.

    Attributes:
        runner: knows how a trial is started and what it reached; its journal is read anew at every turn.
        leases: of the sweep.
        read: called when the journal was read anew.
    """

    runner: Runner
    leases: Leases
    read: Callable[[Journal], None]

    def run(self) -> bool:
        """Train what nobody else trains; return whether all of the sweep is over.

        If it is not, what is left is being trained by others, and another worker waits to take over if they die: so
        many GPUs need not be kept for that.

        Raises:
            Preempted: a signal asked this worker to stop; its trial is saved and given back.
            Stop: as Runner.run.
        """
        with ExitStack() as waiting:
            return self._run(waiting)

    def _run(self, waiting: ExitStack) -> bool:
        while True:
            self._heed()
            with self.leases.turn():
                self._look()
                held = self.leases.held()
                due = following(self.runner.settings, self.runner.journal.trials, set(held))
                if due is None and not held:
                    return True
                taken = self._take(*due) if due else None
            if taken:
                self._train(*taken)
            elif due is None and (self._may_be_promoted() or waiting.enter_context(self.leases.last_waiter())):
                time.sleep(IDLE_SECONDS)
            elif due is None:
                return False

    def _may_be_promoted(self) -> bool:
        """Whether the end of a trial can make another one due."""
        settings = self.runner.settings
        return settings.method not in ("random", "tpe") or len(self.runner.journal.trials) < settings.trials

    def _look(self) -> None:
        self.runner.journal.close()
        self.runner.journal = Journal(self.runner.folder)
        self.read(self.runner.journal)
        self.runner.changed(set())

    def _take(self, number: int, epochs: int) -> tuple[Lease, int, Running] | None:
        """Note that a trial is ours and start it; None if it turns out to have come to its end. In a turn."""
        if not self.runner.send(number, epochs):
            return None
        lease = self.leases.take(number)
        try:
            return lease, number, Running(self.runner.launch(number, epochs, 0), epochs, 0)
        except BaseException:
            self.leases.give_back(lease)
            raise

    def _train(self, lease: Lease, number: int, trial: Running) -> None:
        """Wait for a trial's process, and note what it reached."""
        try:
            with self.leases.alive(lease) as lost:
                self._watch(trial, lost)
            with self.leases.turn():
                if not self.leases.mine(lease):
                    what = f"trial {number} was given to another worker: this one was silent for too long"
                    raise EnvironmentFault(what, lease.path, "start the same command again")
                self._look()
                if preemption.asked() and trial.process.returncode == Stopped.code:
                    self._heed()
                self.runner.take_in(number, trial)
        finally:
            trial.process.kill()
            trial.process.wait()
            with self.leases.turn():
                self.leases.give_back(lease)

    def _watch(self, trial: Running, lost: threading.Event) -> None:
        told = False
        while trial.process.poll() is None:
            if lost.is_set():
                trial.process.kill()  # another worker trains this trial now
            elif preemption.asked() and not told:
                told = True
                say("the trial saves and is given back")
                trial.process.send_signal(signal.SIGTERM)
            time.sleep(POLL_SECONDS)

    def _heed(self) -> None:
        if preemption.asked():
            raise Preempted("a signal asked this worker to stop", self.runner.folder, preemption.GO_ON)
