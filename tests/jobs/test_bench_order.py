"""`bloodcell bench order` and the common result of the benchmarks."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

import numpy as np
import pytest

from bloodcell.data import sampling
from bloodcell.data.order import NaturalPlan, Samples
from bloodcell.data.sampling import ClassPlan
from jobs.bench import order as bench
from jobs.bench.result import Result, Row, interleaved, lines, machine, measured, number, versions
from shards.errors import BadInput, CheckFailed


def quick(flags: list[str]) -> Result:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return bench.run_arguments(parser.parse_args(flags))


def test_a_quick_run_is_exact_and_holds_less_than_a_permutation() -> None:
    result = quick(["--ranks", "8", "--samples", "20000", "--micro-batch", "16", "--repeats", "2"])
    rows = {row.name: row for row in result.rows}
    assert rows["different samples dealt in a whole epoch"].value == 20000 // 128 * 128
    assert rows["samples dealt twice"].value == 0
    assert rows["samples left out, others in each epoch"].value == 20000 % 128
    memory = rows["peak memory of one rank's order"]
    assert memory.baseline in rows
    assert memory.ratio is not None
    assert memory.ratio < 0.5
    assert all(row.value > 0 for row in result.rows if row.unit in ("s", "us", "ids/s", "MiB"))
    found = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert set(found) == {"machine", "versions", "date", "command", "rows"}
    assert set(found["rows"][0]) == {"name", "value", "unit", "low", "high", "baseline", "ratio"}
    assert found["command"].startswith("bloodcell bench order --ranks 8 --samples 20000")


def test_the_order_of_the_reader_stream_is_checked_in_the_same_way() -> None:
    flags = ["--ranks", "8", "--samples", "20000", "--micro-batch", "16", "--repeats", "1", "--reader", "stream"]
    result = quick([*flags, "--shards", "40", "--window", "256"])
    rows = {row.name: row.value for row in result.rows}
    assert rows["different samples dealt in a whole epoch"] == 20000 // 128 * 128
    assert rows["shards that a rank reads in an epoch"] <= 40 / 8 + 2
    by_chance = rows["as it would be by chance inside a window"]
    assert rows["neighbours in a tar that meet in a micro-batch"] == pytest.approx(by_chance, rel=0.5)
    assert "--shards 40 --window 256" in result.command
    for wrong in (["--shards", "0"], ["--window", "0"], ["--sampling", "balanced"]):
        with pytest.raises(BadInput):
            quick([*flags, *wrong])


@pytest.mark.parametrize("asked", ["balanced", "a=3,h=1"])
def test_plans_by_class_are_checked_and_their_table_is_small(asked: str) -> None:
    flags = ["--ranks", "4", "--samples", "30000", "--micro-batch", "8", "--repeats", "1", "--sampling", asked]
    result = quick(flags)
    rows = {row.name: row.value for row in result.rows}
    assert rows["samples dealt in a whole epoch"] == pytest.approx(30000, abs=8)
    assert rows["difference in deals inside a class, at most"] == 1
    assert rows["most deals of one sample"] > 1
    assert rows["bytes of the table for each sample"] < 1.3
    assert f"--sampling {asked}" in result.command
    with pytest.raises(BadInput, match="did you mean 'balanced'"):
        quick(["--samples", "30000", "--sampling", "balancd"])


class Repeating(ClassPlan):
    """A broken plan: a repeat gets the draws of the first time."""

    def samples(self, positions: np.ndarray, seed: int, epoch: int) -> Samples:
        dealt = super().samples(positions, seed, epoch)
        return Samples(dealt.ids, np.zeros_like(dealt.occurrences))


def test_a_plan_without_occurrences_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "ClassPlan", Repeating)
    with pytest.raises(CheckFailed, match="number of earlier deals"):
        bench.run(2, 4096, 8, 1, "balanced")


def test_memory_of_a_rank_does_not_grow_with_the_set() -> None:
    peaks = []
    for samples in (10**4, 10**5, 10**6):
        rows = {row.name: row.value for row in bench.run(4, samples, 8, 1).rows}
        peaks.append(rows["peak memory of one rank's order"])
    assert max(peaks) < 2 * min(peaks)


def test_sizes_that_cannot_be_are_one_clear_line() -> None:
    for flags in (["--ranks", "0"], ["--ranks", "64", "--samples", "100"], ["--repeats", "0"]):
        with pytest.raises(BadInput):
            quick(flags)


@dataclass(frozen=True, eq=False)
class Stuttering(NaturalPlan):
    """A broken plan: the first sample comes again at the end of an epoch."""

    def samples(self, positions: np.ndarray, seed: int, epoch: int) -> Samples:
        return super().samples(np.where(positions == 40, 0, positions), seed, epoch)


@dataclass(frozen=True, eq=False)
class Unsteady(NaturalPlan):
    """A broken plan: what it deals depends on how many samples are asked for at once."""

    def samples(self, positions: np.ndarray, seed: int, epoch: int) -> Samples:
        return super().samples(positions, seed + positions.size, epoch)


@pytest.mark.parametrize(("broken", "said"), [(Stuttering, "only 4095 different"), (Unsteady, "do not deal")])
def test_a_broken_order_is_found(monkeypatch: pytest.MonkeyPatch, broken: type[NaturalPlan], said: str) -> None:
    monkeypatch.setattr(bench, "NaturalPlan", broken)
    with pytest.raises(CheckFailed, match=said):
        bench.run(4, 4096, 8, 1)


def test_cases_are_interleaved_and_warm_ups_do_not_count() -> None:
    ran: list[str] = []

    def case(name: str) -> float:
        ran.append(name)
        return float(len(ran))

    figures = interleaved({"a": lambda: case("a"), "b": lambda: case("b")}, repeats=2, warmups=1)
    assert ran == ["a", "b"] * 3
    assert figures == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_ratios_are_taken_repeat_by_repeat() -> None:
    # In the second repeat the machine was busy: both took ten times as long, the ratio stays.
    row = measured("ours", [1, 10, 1.2], "s", "theirs", [2, 20, 2.4])
    assert row == Row("ours", 1.2, "s", 1, 10, "theirs", 0.5)
    assert measured("ours", [1, 2, 3], "s", "theirs", [4]).ratio == 0.5
    assert measured("ours", [1, 2, 3], "s").ratio is None


def test_the_table_shows_every_figure_and_where_it_was_measured() -> None:
    rows = [measured("ours", [1, 2, 3], "s", "theirs", [4, 8, 12]), Row("theirs", 123456.7, "images/s")]
    where = {"cpu": "CPU", "cores": 2, "memory_gib": 4.0}
    result = Result("bloodcell bench x", rows, where, {"python": "3.11"}, "2026-11-20")
    shown = lines(result, width=100)
    text = "\n".join(shown)
    assert shown[0] == "bloodcell bench x"
    assert shown[-2:] == ["CPU, 2 cores, 4.0 GiB; 2026-11-20", "python 3.11"]
    assert "0.25 x theirs" in text
    assert "123,457" in text
    assert max(map(len, shown)) <= 100


def test_numbers_are_short() -> None:
    assert [number(value) for value in (0, 12, 0.12345, 99.94, 123.4, 1e6)] == [
        "0",
        "12",
        "0.123",
        "99.9",
        "123",
        "1,000,000",
    ]


def test_machine_and_versions_are_described() -> None:
    here = machine()
    assert set(here) == {"cpu", "cores", "memory_gib", "system"}
    assert here["cores"] >= 1
    assert here["cpu"]
    assert versions()["numpy"] == np.__version__
