"""`train --profile`: an account whose parts make up the step, traces of both ranks, and the weights of other runs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from bloodcell.engine.phases import PARTS
from bloodcell.engine.profile_trace import length, merged, overlap
from bloodcell.engine.profiling import SKIPPED, TIMED, TRACED
from tests.bloodcell.engine.runs import same
from tests.conftest import bloodcell

RUN = (
    *("--data.size", 32, "--data.micro_batch", 4, "--train.micro_batches", 2, "--train.epochs", 4),
    *("--tracking.wandb", "off", "--engine.threads", 1),
)


def test_a_profile_accounts_for_the_step_and_leaves_the_weights_alone(small_set: Path, tmp_path: Path) -> None:
    runs = {name: tmp_path / name for name in ("plain", "profiled", "short")}
    for name, flags in (("plain", ()), ("profiled", ("--profile",))):
        done = bloodcell("train", "cnn5", "--data", small_set, "--run", runs[name], *RUN, *flags, ranks=2)
        assert done.code == 0, done.err
    assert same(runs["plain"], runs["profiled"])
    assert not (runs["plain"] / "profile").exists()

    folder = runs["profiled"] / "profile"
    found = json.loads((folder / "account.json").read_text())
    assert found["timed"] == [SKIPPED, SKIPPED + TIMED - 1]
    assert found["traced"] == [SKIPPED + TIMED, SKIPPED + TIMED + TRACED - 1]
    assert set(found["parts"]) == {*PARTS, "host"}
    assert found["ranks"] == 2
    assert all(0 <= part["low"] <= part["high"] <= found["step"]["high"] for part in found["parts"].values())
    # Of two ranks the median is the mean: the parts make up the step.
    assert abs(sum(part["median"] for part in found["parts"].values()) - found["step"]["median"]) < 1e-4
    assert 0 < found["trace"]["exposed"]["low"] <= found["trace"]["all_reduce"]["high"]
    page = (folder / "account.md").read_text()
    assert all(f"| {name} |" in page for name in found["parts"])
    for rank in range(2):
        with gzip.open(folder / f"trace-{rank}.json.gz", "rt") as stream:
            names = [event["name"] for event in json.load(stream)["traceEvents"] if event.get("ph") == "X"]
        assert names.count("bloodcell: backward") == TRACED


def test_a_run_that_is_too_short_says_so(small_set: Path, tmp_path: Path) -> None:
    flags = ("--data.micro_batch", 64, "--train.micro_batches", 1, "--train.epochs", 1, "--profile")
    done = bloodcell("train", "cnn5", "--data", small_set, "--run", tmp_path / "run", *RUN, *flags)
    assert done.code == 0, done.err
    assert "nothing to profile" in done.err


def test_spans() -> None:
    one = merged([(5, 7), (0, 2), (1, 3), (7, 8)])
    assert one == [(0, 3), (5, 8)]
    both = overlap(one, [(2, 6), (7, 7.5)])
    assert both == [(2, 3), (5, 6), (7, 7.5)]
    assert length(both) == 2.5
