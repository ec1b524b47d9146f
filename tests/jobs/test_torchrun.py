"""Our torchrun: which signals reach the ranks, which ends it repeats, and what it does not start again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def start(folder: Path, script: str, *flags: str) -> subprocess.Popen[str]:
    (folder / "rank.py").write_text(script)
    words = ["-m", "jobs.torchrun", "--standalone", "--nproc-per-node", "2", *flags, str(folder / "rank.py")]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "SAID": str(folder)}
    return subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=variables
    )


LISTENS = """
import os, pathlib, signal, sys, time
said = pathlib.Path(os.environ["SAID"]) / os.environ["RANK"]
def note(number, _):
    with said.open("a") as file: file.write(signal.Signals(number).name + " ")
for number in (signal.SIGUSR2, signal.SIGTERM): signal.signal(number, note)
said.touch()
while "SIGUSR2" not in said.read_text() or "SIGTERM" not in said.read_text(): time.sleep(0.02)
time.sleep(1)
sys.exit(85)
"""


def test_signals_reach_every_rank_and_its_code_comes_back(tmp_path: Path) -> None:
    process = start(tmp_path, LISTENS)
    while not all((tmp_path / rank).exists() for rank in "01"):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 85, err
    for rank in "01":
        assert {"SIGUSR2", "SIGTERM"} <= set((tmp_path / rank).read_text().split())


@pytest.mark.slow
@pytest.mark.parametrize(("code", "starts"), [(85, 1), (2, 1), (70, 1), (3, 2)])
def test_only_ends_that_may_not_come_back_are_worth_a_restart(tmp_path: Path, code: int, starts: int) -> None:
    script = "import os, sys\nopen(os.environ['SAID'] + '/starts' + os.environ['RANK'], 'a').write('x')\n"
    process = start(tmp_path, f"{script}sys.exit({code})\n", "--max-restarts", "1")
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert len((tmp_path / "starts0").read_text()) == starts
