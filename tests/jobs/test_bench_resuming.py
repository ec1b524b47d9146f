"""Benchmarks that go on where they were interrupted, that for GPUs without one, and the rows of the training one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.bench.result import Result, Row, lines
from jobs.bench.resuming import NotHereError, Outcome, resumed
from jobs.bench.training import PLAIN, Trial, rows, trial
from shards.errors import BadInput, EnvironmentFault
from tests.conftest import bloodcell


def test_finished_parts_are_not_measured_again(tmp_path: Path) -> None:
    file, about = tmp_path / "state.json", {"device": "one"}
    calls: list[str] = []

    def part(name: str) -> list[Row]:
        calls.append(name)
        if name == "second" and calls.count(name) == 1:
            raise KeyboardInterrupt
        return [Row(name, len(calls), "calls")]

    parts = {name: lambda name=name: part(name) for name in ("first", "second", "third")}
    with pytest.raises(KeyboardInterrupt):
        resumed(parts, file, about)
    assert [row.name for row in resumed(parts, file, about)] == ["first", "second", "third"]
    assert calls == ["first", "second", "second", "third"]
    assert resumed(parts, file, about)[0].value == 1
    with pytest.raises(BadInput, match="are of"):
        resumed(parts, file, {"device": "another"})
    file.write_text("{", encoding="utf-8")
    with pytest.raises(BadInput, match="cannot be read"):
        resumed(parts, file, about)


def test_a_part_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    broken = [True]

    def fails() -> list[Row]:
        if broken:
            raise RuntimeError("CUDA error: out of luck\nand more lines")
        return [Row("mended", 1, "s")]

    def lacks() -> list[Row]:
        raise NotHereError("DALI is not installed")

    parts = {"one": fails, "two": lacks, "three": lambda: [Row("three", 3, "s")]}
    outcome = Outcome()
    assert [row.name for row in resumed(parts, tmp_path / "state.json", {}, outcome)] == ["three"]
    assert outcome.failed == ["one: RuntimeError: CUDA error: out of luck"]
    assert outcome.left_out == ["two: DALI is not installed"]
    result = Result("bench", [], {}, {}, notes=outcome.left_out, problems=outcome.failed)
    assert (result.as_json()["exit"], result.as_json()["problems"]) == (1, outcome.failed)
    assert "failed: one: RuntimeError: CUDA error: out of luck" in lines(result)
    assert json.loads((tmp_path / "state.json").read_text())["begun"] == ["one", "two"]
    broken.clear()  # a failed part is tried again by the next start, a finished one is not
    again = Outcome()
    assert [row.name for row in resumed(parts, tmp_path / "state.json", {}, again)] == ["mended", "three"]
    assert again.failed == []
    with pytest.raises(NotHereError):
        resumed({"two": lacks}, tmp_path / "other.json", {})


def test_what_was_begun_and_not_finished_comes_last(tmp_path: Path) -> None:
    """A machine that is taken away in a long part must not spend the next lease on that part alone."""
    done: list[str] = []

    def long() -> list[Row]:
        if not done:
            raise KeyboardInterrupt
        done.append("long")
        return []

    def short() -> list[Row]:
        done.append("short")
        return [Row("short", 1, "s")]

    parts = {"long": long, "short": short}
    with pytest.raises(KeyboardInterrupt):
        resumed(parts, tmp_path / "state.json", {}, Outcome())
    resumed(parts, tmp_path / "state.json", {}, Outcome())
    assert done == ["short", "long"]


def test_without_a_gpu_it_is_one_line(small_set: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = bloodcell("bench", "gpu", small_set, "--state", tmp_path / "state.json", "--json")
    assert done.code == 3
    assert done.json["error"]["what"] == "no CUDA device"
    assert "Traceback" not in done.err
    assert not (tmp_path / "state.json").exists()


def test_a_trial_counts_the_time_of_its_own_processes() -> None:
    code = (
        "import json, subprocess, sys, time\n"
        "spend = 'import time\\nwhile time.process_time() < 0.5: pass'\n"
        "subprocess.run([sys.executable, '-c', spend], check=True)\n"
        "print(json.dumps({'val': 0.5, 'test': 0.25}))\n"
    )
    done = trial(["-c", code])
    assert done.cpu >= 0.5
    assert (done.val, done.test) == (0.5, 0.25)
    with pytest.raises(EnvironmentFault, match=r"ended with 1: .*nonsense"):
        trial(["-c", "raise ValueError('nonsense')"])


def test_rows_compare_seed_by_seed() -> None:
    trials = {
        PLAIN: [Trial(100, 50, 0.99, 0.99), Trial(200, 100, 0.98, 0.99)],
        "ours": [Trial(60, 40, 0.98, 0.985), Trial(100, 50, 0.98, 0.985)],
    }
    found = {row.name: row for row in rows(trials, PLAIN)}
    assert found["ours, CPU time"].ratio == pytest.approx(0.55)
    assert found["ours less plain loop, medians on test"].value == pytest.approx(-0.5)
    assert json.dumps(found["ours, accuracy on val"].value)


def test_two_results_are_compared_by_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from jobs.cli import main

    def written(name: str, cores: int, *found: Row) -> Path:
        content = Result("bench", list(found), {"cores": cores}, {"python": "3"}).as_json()
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
        return tmp_path / name

    first = written("a.json", 2, Row("speed", 100, "images/s", 90, 110), Row("old", 1, "s"))
    second = written("b.json", 4, Row("speed", 150, "images/s", 140, 160), Row("new", 1, "s"))
    assert main(["bench", "compare", str(first), str(second), "--json"]) == 0
    said = capfd.readouterr()
    (row,) = json.loads(said.out)["rows"]
    assert (row["value"], row["ratio"]) == (150, 1.5)
    for words in ("differ in machine: cores", "'old'", "'new'"):
        assert words in said.err
    (tmp_path / "c.json").write_text("[]", encoding="utf-8")
    assert main(["bench", "compare", str(first), str(tmp_path / "c.json")]) == 2


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.timeout(3600)
def test_the_recipe_quick_takes_less_time_than_the_plain_loop(real_data: Path, tmp_path: Path) -> None:
    """One seed on all4; the target is 0.7 of the CPU time, measured over three seeds."""
    weights = next((real_data / "weights").glob("mobilenet_v2*.safetensors"))
    assert bloodcell("pack", real_data / "all4", tmp_path / "set", "--seed", 0, timeout=900).code == 0
    done = bloodcell("bench", "train", tmp_path / "set", "--weights", weights, "--seeds", 1, "--json", timeout=3000)
    assert done.code == 0, done.err
    found = {row["name"]: row for row in done.json["rows"]}
    assert found["bloodcell train quick, CPU time"]["ratio"] < 1
    assert found["bloodcell train quick, accuracy on test"]["value"] >= 98
