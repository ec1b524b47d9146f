"""torchrun that leaves the arguments behind the program's name alone and ends with the failed rank's exit code.

Python's argparse before 3.12.8 reads `--run DIR` behind the program as an abbreviation of torchrun's own `--run-path`
and refuses it as ambiguous; here abbreviations are switched off. And torchrun itself answers every failure with a
traceback of its own and code 1.
"""

from __future__ import annotations

import argparse
import os
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from shards.errors import EnvironmentFault


def main() -> None:
    """Run torchrun on sys.argv."""
    make_parser = run.get_args_parser

    def exact_parser() -> argparse.ArgumentParser:
        parser = make_parser()
        parser.allow_abbrev = False
        return parser

    run.get_args_parser = exact_parser
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # said here, torchrun need not warn; each rank sets its own threads
    try:
        run.main()
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        sys.exit(code if code > 0 else EnvironmentFault.code)  # below 0: killed by that signal


if __name__ == "__main__":
    main()
