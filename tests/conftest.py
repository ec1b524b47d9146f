"""What many tests share: a drawn folder, a packed set, real images, and the command in other processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.warm import Process

# A rank of two must not take all cores, and no test may reach for a network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Several tests share the cores: a thread that spins while it waits for its turn keeps the others from theirs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.update(WANDB_MODE="offline", HF_HUB_OFFLINE="1")
# Tests in the background may have inherited that interrupts are ignored; what they start would ignore them too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


def command(*arguments: object, ranks: int = 0) -> list[str]:
    """Return the command line of `bloodcell ...`: alone (0 ranks), or under torchrun."""
    words = [str(argument) for argument in arguments]
    if not ranks:
        return [sys.executable, "-m", "jobs.cli", *words]
    launcher = [sys.executable, "-m", "jobs.torchrun", "--standalone", "--nproc-per-node", str(ranks)]
    return [*launcher, "-m", "jobs.cli", *words]


def bloodcell(
    *arguments: object, ranks: int = 0, cwd: Path | None = None, timeout: float = 240, fresh: bool = False
) -> Done:
    """Run `bloodcell ...` as a user would, in its own processes; `fresh`: in new ones, under torchrun itself."""
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    return carried_out(command(*arguments, ranks=ranks), {**os.environ, "PYTHONPATH": path}, cwd, timeout, fresh)


def on_ranks(ranks: int, script: Path, *arguments: object, timeout: float = 240) -> Done:
    """Run a script on several ranks."""
    launcher = [sys.executable, "-m", "jobs.torchrun", "--standalone", "--nproc-per-node", str(ranks), str(script)]
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    return carried_out([*launcher, *map(str, arguments)], {**os.environ, "PYTHONPATH": path}, root, timeout)


def carried_out(
    words: list[str], environment: dict[str, str], cwd: Path | None, timeout: float, fresh: bool = False
) -> Done:
    """Run a command line to its end; raises subprocess.TimeoutExpired."""
    process = start(words, environment, cwd, fresh)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Done(process.returncode or 0, out, err)


def start(
    words: list[str], environment: dict[str, str], cwd: Path | None = None, fresh: bool = False
) -> Process | subprocess.Popen[str]:
    """Start a command line of `command`; what it writes is kept. `fresh` as in `bloodcell`."""
    if fresh or Path("/dev/nvidiactl").exists():  # CUDA does not survive a fork
        pipe = subprocess.PIPE
        return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, cwd=cwd, env=environment)
    return Process(words, environment, cwd)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no process is left alone with it at the end."""
    first = ("test_bench_faults.py", "/slurm/", "tests/jobs/", "tests/bloodcell/")

    def place(item: pytest.Item) -> int:
        return next((number for number, part in enumerate(first) if part in str(item.path)), len(first))

    items.sort(key=place)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 240 drawn images in four classes, of 24 patients."""
    from shards.synth import SynthOptions, synthesise

    folder = tmp_path_factory.mktemp("drawn") / "images"
    synthesise(folder, SynthOptions(images=240, size=48, patients=24, seed=1))
    return folder


@pytest.fixture(scope="session")
def small_set(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn images packed 70/15/15 by patient, in several shards."""
    from shards.pack import PackOptions, pack

    target = tmp_path_factory.mktemp("packed") / "set"
    options = PackOptions(
        split="70/15/15", table=str(drawn / "truth.csv"), group_column="patient", shard_samples=50, workers=1
    )
    pack(drawn, target, options)
    return target


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser that finds no other host; its event loop must not outlive the tests that want it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium")
    alone = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=alone)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; tests that need it are marked `realdata`."""
    place = os.environ.get("BLOODCELL_DATA")
    if not place:
        pytest.skip("BLOODCELL_DATA names no folder of real images")
    return Path(place)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB that is really full soon."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="session")
def deepspeed_op(request: pytest.FixtureRequest) -> None:
    """DeepSpeed's extension for machines without a GPU: about a minute of one core, then it stays where torch keeps it.

    Several test processes may ask at once: torch lets one compile and the others wait.
    """
    import torch

    from bloodcell.engine.zero_config import prepare_machine

    folder = prepare_machine(torch.device("cpu"))
    if folder is None:
        return
    manager = request.config.pluginmanager.getplugin("capturemanager")
    with manager.global_and_fixture_disabled():
        print(f"\nDeepSpeed compiles its extension, once; it is kept in {folder}", flush=True)
    code = "from deepspeed.comm.torch import build_shm_op; build_shm_op()"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=900)
