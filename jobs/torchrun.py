"""torchrun that leaves the arguments behind the program's name alone, passes signals on, and ends with the ranks' code.

Python's argparse before 3.12.8 reads `--run DIR` behind the program as an abbreviation of torchrun's own `--run-path`
and refuses it as ambiguous; here abbreviations are switched off. torchrun itself answers every failure with a traceback
of its own and code 1; a signal ends it while its ranks still save, or it kills them for being slow: here it hands on
USR2, TERM and INT and waits. Ranks that stopped, or found a fault that would come back, are not restarted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from types import FrameType
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import PContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from shards.errors import EnvironmentFault, Stopped

FORWARDED = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


def main() -> None:
    """Run torchrun on sys.argv."""
    make_parser = run.get_args_parser

    def exact_parser() -> argparse.ArgumentParser:
        parser = make_parser()
        parser.allow_abbrev = False
        return parser

    run.get_args_parser = exact_parser
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # said here, torchrun need not warn; each rank sets its own threads
    for number in FORWARDED:
        signal.signal(number, _leave)
    forward_signals()
    restart_only_what_helps()
    try:
        run.main()
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        sys.exit(code if code > 0 else EnvironmentFault.code)  # below 0: killed by that signal


def _leave(number: int, _: FrameType | None) -> None:
    """Before there are ranks nothing is to be saved."""
    sys.exit(Stopped.code)


def forward_signals() -> None:
    """Let every group of ranks that torchrun starts get the signals; torchrun sees its end as it sees any other."""
    start = PContext.start

    def start_and_forward(context: PContext) -> None:
        start(context)

        def forward(number: int, _: FrameType | None) -> None:
            for pid in context.pids().values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

        for number in FORWARDED:
            signal.signal(number, forward)

    setattr(PContext, start.__name__, start_and_forward)


def restart_only_what_helps() -> None:
    """Keep `--max-restarts` for ranks that were killed or met a fault of the environment."""
    monitor = LocalElasticAgent._monitor_workers

    def monitor_and_judge(agent: LocalElasticAgent, group: Any) -> Any:
        result = monitor(agent, group)
        codes = [failure.exitcode for failure in result.failures.values()] if result.is_failed() else []
        if any(code > 0 and code != EnvironmentFault.code for code in codes):
            agent._remaining_restarts = 0
        return result

    setattr(LocalElasticAgent, monitor.__name__, monitor_and_judge)


if __name__ == "__main__":
    main()
