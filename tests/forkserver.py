"""Starts commands as forks of a process that has loaded torch, DALI and bloodcell already: what takes most of a test.

`python -m tests.forkserver SOCKET` listens; tests/warm.py asks. A fork becomes what `python -m MODULE ...` would be, or
a small torchrun: one that starts ranks of one node, passes signals on, ends the others when one has failed, and ends
with its code. What torchrun itself does is proved where it is started itself (tests/jobs/test_torchrun.py, the demo,
`bench faults`, the tests of preemption and of other launchers).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from types import FrameType
from typing import Any

LOADED = (
    *("torch._dynamo", "torch.fx.experimental.symbolic_shapes", "nvidia.dali.fn", "nvidia.dali.types"),
    *(
        "nvidia.dali.pipeline",
        "nvidia.dali.plugin.base_iterator",
        "torchvision",
        "safetensors.torch",
        "pyarrow.parquet",
    ),
    *("pyarrow.compute", "scipy.stats", "scipy.special", "matplotlib.figure", "jobs.train", "jobs.evaluate"),
    *("jobs.data", "bloodcell.engine.run", "bloodcell.engine.peers", "bloodcell.report", "bloodcell.engine.checkpoint"),
    *("deepspeed", "sklearn.linear_model", "sklearn.manifold", "sklearn.decomposition", "sklearn.neighbors"),
    *("bloodcell.engine.lock", "bloodcell.evaluation.predictions", "shards.pack", "shards.scan"),
)
"""Modules that the tests' commands load; all of them would load what they need without it.

None that reads the environment while it is loaded: no W&B, no hub of weights, and so no timm.
"""

GRACE_SECONDS = 30.0
"""How long ranks may take to leave after one has failed, as under torchrun."""


@dataclass
class Request:
    """What a fork shall become.

    Attributes:
        module, arguments: as in `python -m MODULE ARGUMENTS`; or the path of a script.
        ranks: 0 for a process without a launcher.
        folder: working folder.
        variables: its environment, all of it.
        session: whether it starts a session of its own.
        files: descriptors of its stdin, stdout and stderr.
    """

    module: str
    arguments: list[str]
    ranks: int
    folder: str
    variables: dict[str, str]
    session: bool
    files: list[int]


def serve(place: str) -> Request:
    """Fork a process for each connection and tell it (pid, then exit code); return in the forks alone."""
    selector = selectors.DefaultSelector()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen(16)
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)  # it ends with the tests
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    request = _receive(connection)
                    pid = os.fork()
                    if pid == 0:
                        selector.close()
                        connection.close()
                        return request
                    for file in request.files:
                        os.close(file)
                    connection.sendall(f"{pid}\n".encode())
                    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))
                elif key.fileobj is sys.stdin:
                    os._exit(0)
                else:
                    _tell(selector, key)


def _receive(connection: socket.socket) -> Request:
    message, files, _, _ = socket.recv_fds(connection, 8, 3)
    size = int.from_bytes(message, "big")
    content = bytearray()
    while len(content) < size:
        content += connection.recv(size - len(content))
    return Request(**json.loads(content), files=list(files))


def _tell(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    pid, connection = key.data
    _, status = os.waitpid(pid, 0)
    selector.unregister(key.fileobj)
    os.close(key.fd)
    with contextlib.suppress(OSError):
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    connection.close()


def become(request: Request, path: list[str]) -> None:
    """Run the module as the main program, with the import path that a new interpreter would have."""
    if request.session:
        os.setsid()
    for number, file in enumerate(request.files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.variables)
    before = [entry for entry in request.variables.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = [request.folder, *before, *path]
    if request.ranks:
        launch(request.ranks)
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]  # torchrun starts `python -u`
    import numpy as np

    np.random.seed()
    sys.argv[:] = [request.module, *request.arguments]
    if request.module.endswith(".py"):
        runpy.run_path(request.module, run_name="__main__")
    else:
        runpy.run_module(request.module, run_name="__main__", alter_sys=True)


def launch(ranks: int) -> None:
    """Start ranks and wait for their end; return in the ranks alone."""
    meeting_out, meeting_in = os.pipe()
    pids: dict[int, int] = {}
    for rank in range(ranks):
        pid = os.fork()  # before there is a store, whose thread a fork must not see
        if pid == 0:
            os.setsid()
            os.close(meeting_in)
            _wait_for_meeting(meeting_out, rank, ranks)
            return
        pids[pid] = rank
    os.close(meeting_out)

    def forward(number: int, _: FrameType | None) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(meeting_in, b"%05d" % store.port * ranks)
    os._exit(_wait(pids))


def _wait_for_meeting(pipe: int, rank: int, ranks: int) -> None:
    port = os.read(pipe, 5).decode()
    os.close(pipe)
    if not port:
        os._exit(3)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": 0}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": int(port)}
    agent = {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0, "TORCHELASTIC_MAX_RESTARTS": 0}
    os.environ.update({name: str(value) for name, value in {**place, **meeting, **agent}.items()})


def _wait(pids: dict[int, int]) -> int:
    failed, deadline = 0, 0.0
    while pids:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            del pids[pid]
            code = os.waitstatus_to_exitcode(status)
            if code and not failed:
                failed, deadline = code if code > 0 else 3, time.monotonic() + GRACE_SECONDS
                time.sleep(0.1)  # the others may be on their way too
                for other in pids:
                    os.kill(other, signal.SIGTERM)
            continue
        if failed and time.monotonic() > deadline:
            for other in pids:
                os.kill(other, signal.SIGKILL)
        time.sleep(0.02)
    return failed


def end(code: Any) -> None:
    """End this process as the interpreter does, without taking apart all that was loaded: that costs more than it."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit((code or 0) & 0xFF)


def main() -> None:
    """Load what takes long, then serve."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    for name in LOADED:
        __import__(name)
    gc.collect()
    gc.freeze()  # collections in the forks leave shared memory alone
    own = {entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    path = [entry for entry in sys.path[1:] if entry not in own]
    request = serve(sys.argv[1])
    code: Any = 0
    try:
        become(request, path)
    except SystemExit as problem:
        code = problem.code
    except BaseException:
        traceback.print_exc()
        code = 1
    end(code)


if __name__ == "__main__":
    main()
