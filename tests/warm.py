"""Commands of bloodcell in processes of their own that need not load torch first (tests/forkserver.py says how)."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER = ["-m", "jobs.torchrun", "--standalone", "--nproc-per-node"]


class Process:
    """A command under way, with the part of subprocess.Popen's interface that tests need.

    Args:
        words: the command line, as tests.conftest.command gives it.
        env: its environment; this process's if left out.
        cwd: its working folder.
        start_new_session: as for Popen.
    """

    def __init__(
        self,
        words: list[str],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        start_new_session: bool = False,
    ) -> None:
        self.args = words
        self.returncode: int | None = None
        ranks, rest = 0, words[1:]
        if rest[: len(LAUNCHER)] == LAUNCHER:
            ranks, rest = int(rest[len(LAUNCHER)]), rest[len(LAUNCHER) + 1 :]
        rest = rest[1:] if rest[0] == "-m" else rest
        content = {"module": rest[0], "arguments": rest[1:], "ranks": ranks, "session": start_new_session}
        place = {"folder": str(cwd or Path.cwd()), "variables": dict(os.environ if env is None else env)}
        message = json.dumps({**content, **place}).encode()
        self._out, self._err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 - read at the end
        self._connection = _connect()
        with open(os.devnull, "rb") as nothing:
            files = [nothing.fileno(), self._out.fileno(), self._err.fileno()]
            socket.send_fds(self._connection, [len(message).to_bytes(8, "big")], files)
        self._connection.sendall(message)
        self._told = self._connection.makefile("r")
        self.pid = int(self._told.readline())

    def poll(self) -> int | None:
        """Return the exit code, None while it runs; -N for a death by signal N."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.returncode = int(self._told.readline())
            self._connection.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit code. Raises subprocess.TimeoutExpired."""
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            select.select([self._connection], [], [], left)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; return what it wrote to stdout and stderr. Raises subprocess.TimeoutExpired."""
        self.wait(timeout)
        return self._read(self._out), self._read(self._err)

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it; ranks under it see that their launcher is gone."""
        self.send_signal(signal.SIGKILL)

    def _read(self, file: IO[bytes]) -> str:
        return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")


_server: tuple[subprocess.Popen[bytes], str] | None = None


def _connect() -> socket.socket:
    """Connect to this process's server, started when it is first needed."""
    global _server
    if _server is None:
        place = str(Path(tempfile.mkdtemp(prefix="warm-")) / "socket")
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.forkserver", place], stdin=subprocess.PIPE, cwd=ROOT, env=variables
        )
        _server = server, place
        atexit.register(_end)
    server, place = _server
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(place)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            assert server.poll() is None, "the server of forks has ended"
            time.sleep(0.05)
        else:
            return connection


def _end() -> None:
    if _server is not None:
        server, place = _server
        assert server.stdin is not None
        server.stdin.close()
        server.wait()
        Path(place).unlink(missing_ok=True)
        Path(place).parent.rmdir()
