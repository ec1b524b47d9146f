"""Worker processes: kept from map to map, loud when one dies, sparing with what they ask of the system."""

from __future__ import annotations

import os
import platform
import resource
import signal

import numpy as np
import pytest

from shards.alignment import compare
from shards.errors import EnvironmentFault
from shards.parallel import Processes, map_ordered


def whoami(_: int) -> int:
    return os.getpid()


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def pages_for_arrays(rounds: int) -> int:
    """Return the pages that the system gave for ten arrays of 4 MiB, made and freed again and again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        _arrays = [np.ones(2**22, np.uint8) for _ in range(10)]
        del _arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_processes_are_kept_from_map_to_map() -> None:
    with Processes(2) as processes:
        first, second = (set(processes.map(whoami, range(8))) for _ in range(2))
    assert len(first | second) <= 2
    assert os.getpid() not in first


def test_one_process_is_this_one() -> None:
    with Processes(1) as processes:
        assert set(processes.map(whoami, range(3))) == {os.getpid()}


def test_a_process_that_dies_is_told() -> None:
    with pytest.raises(EnvironmentFault, match="a worker process died"):
        list(map_ordered(die, range(4), 2))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep what was freed")
def test_workers_keep_what_they_freed_for_their_next_arrays() -> None:
    once = 10 * 2**22 // resource.getpagesize()
    assert max(map_ordered(pages_for_arrays, [20, 20], 2)) < 3 * once


def test_pictures_are_aligned_alike_by_other_processes() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (40, 16, 16), np.uint8)
    a, b, turns = rng.integers(0, 40, 5_000), rng.integers(0, 40, 5_000), rng.integers(0, 8, 5_000)
    with Processes(2) as processes:
        assert (compare(pictures, a, pictures, b, turns, processes) == compare(pictures, a, pictures, b, turns)).all()
