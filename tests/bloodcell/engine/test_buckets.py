"""The order of summation over three ranks does not depend on how long a process has lived: needed for exact resume."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import on_ranks


def test_a_first_step_sums_as_a_later_one_does() -> None:
    done = on_ranks(3, Path(__file__).with_name("bucket_worker.py"))
    assert done.code == 0, done.err
    assert done.out.strip() == "the same"
