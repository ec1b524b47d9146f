"""One piece of work at a time in a thread beside the training; its failure is kept until somebody asks for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Background:
    """Runs work in a thread.

    Args:
        name: of the thread, for stack dumps.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.seconds = 0.0
        """How long the last piece of work took that ended well."""
        self._thread: threading.Thread | None = None
        self._problem: Exception | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Begin with `work`; what was begun before must have been waited for."""
        assert self._thread is None
        self._thread = threading.Thread(target=self._run, args=(work,), name=self.name, daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> Exception | None:
        """Wait for what was begun, for so long at most; return what it failed with, once."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return TimeoutError(f"not done after {seconds:g} s")
            self._thread = None
        problem, self._problem = self._problem, None
        return problem

    def _run(self, work: Callable[[], object]) -> None:
        begin = time.perf_counter()
        try:
            work()
        except Exception as error:
            self._problem = error
        else:
            self.seconds = time.perf_counter() - begin
