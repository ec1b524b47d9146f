"""What submitit pickles and runs on every rank: the verb and its arguments, for training the path of a run alone."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """Call it to run `bloodcell` in this process.

    Args:
        arguments: of the command: ("train", "--run", RUN).
    """

    arguments: tuple[str, ...]

    def __call__(self) -> int:
        """Run the verb; leave with its exit code where that is not 0, so that the job script can decide."""
        from jobs.cli import main

        give_back_signals()
        code = main(self.arguments)
        if code:
            sys.exit(code)
        return code


def give_back_signals() -> None:
    """Undo submitit's handlers: on USR2 its first rank requeues in mid-step, and SIGTERM does nothing.

    Training sets its own, which let all ranks save together; before that, a signal ends the process as usual.
    """
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)


@dataclass(frozen=True)
class LocalJob:
    """Call it to run `bloodcell` on some ranks of this machine: torchrun takes the place of this process.

    Args:
        arguments: of the command.
        ranks: how many.
    """

    arguments: tuple[str, ...]
    ranks: int

    def __call__(self) -> None:
        """Become torchrun (or the command itself, for one rank)."""
        from jobs.launch import bloodcell, torchrun

        give_back_signals()
        words = torchrun(self.ranks, *self.arguments) if self.ranks > 1 else bloodcell(*self.arguments)
        os.execv(words[0], words)
