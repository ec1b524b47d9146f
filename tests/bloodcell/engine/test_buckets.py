"""The order of summation over three ranks does not depend on how long a process has lived: needed for exact resume."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WORKER = Path(__file__).with_name("bucket_worker.py")
ROOT = Path(__file__).resolve().parents[3]


def test_a_first_step_sums_as_a_later_one_does() -> None:
    launcher = [sys.executable, "-m", "jobs.torchrun", "--standalone", "--nproc-per-node", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launcher, str(WORKER)], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "the same"
