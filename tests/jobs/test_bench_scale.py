"""The step-time model: close to published figures that it was not fitted to, and sane where nothing is published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.bench.index_memory import measure
from jobs.bench.scale import published
from jobs.bench.scaling import Run, Work, constants, run_seconds, state_bytes, step, throughput, worth, zoo_rate
from jobs.cli import run_verb
from shards.errors import BadInput
from shards.format import INDEX_DTYPE

FITTED, PREDICTED, MEAN = 0.05, 0.15, 0.08
"""Allowed errors: of a figure that constants were fitted to, of one that is predicted, and of the latter on average."""


def test_published_figures_are_met_within_the_stated_tolerance() -> None:
    rows = list(published())
    errors = {row.name: abs(row.ratio - 1) for row in rows if row.ratio is not None}
    fitted = {name: error for name, error in errors.items() if name.endswith("(fitted)")}
    predicted = {name: error for name, error in errors.items() if name not in fitted}
    assert len(predicted) >= 8
    assert max(fitted.values()) < FITTED, fitted
    assert max(predicted.values()) < PREDICTED, predicted
    assert np.mean(list(predicted.values())) < MEAN, predicted
    assert any("512 GPUs" in name for name in predicted), "the largest scale is predicted, not fitted"


@given(
    rate=st.floats(100, 50_000),
    parameters=st.floats(1e5, 1e9),
    batch=st.integers(1, 512),
    power=st.integers(0, 8),
    node_input=st.sampled_from([0.0, 500.0, 50_000.0]),
)
def test_more_gpus_do_more_work_but_never_more_than_their_share(
    rate: float, parameters: float, batch: int, power: int, node_input: float
) -> None:
    work = Work(rate, parameters, "h100", node_input)
    few, many = throughput(work, 2**power, batch), throughput(work, 2 ** (power + 1), batch)
    assert many <= 2 * few * (1 + 1e-9)
    assert throughput(work, 2 ** (power + 1), 2 * batch) >= many * (1 - 1e-9), "larger batches are no slower"
    found = step(work, 2**power, batch)
    assert min(found.compute, found.fixed, found.exchange, found.spread, found.input_wait) >= 0
    if node_input:
        assert throughput(work, 8, batch) <= node_input * (1 + 1e-9)


def test_what_limits_is_named() -> None:
    assert step(Work(1000, 25e6), 8, 256).limit == "compute"
    assert step(Work(14_000, 5e6), 64, 4).limit == "fixed"
    assert step(Work(14_000, 5e6, node_input=1000), 64, 64).limit == "input"
    assert step(Work(5000, 140e6, network=1), 64, 32).limit == "all-reduce"


def test_a_small_set_is_worth_few_gpus_and_a_large_one_many() -> None:
    work = Work(6000, 25e6)
    sizes = [worth(work, Run(n, n // 5, 30, batch), 0.75) for n, batch in ((2_000, 32), (17_000, 256), (10**7, 8192))]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert sizes[-1] >= 64
    run = Run(10**7, 10**6, 30, 8192)
    assert run_seconds(work, 64, run) < run_seconds(work, 8, run) < run_seconds(work, 1, run)


def test_zero_divides_what_the_paper_says() -> None:
    assert [state_bytes(1e6, stage, 4) / 1e6 for stage in range(4)] == [16, 10, 7, 4]


def test_every_model_of_the_zoo_has_a_rate() -> None:
    from bloodcell.models import zoo

    for name in zoo.names():
        assert zoo_rate(name, zoo.spec(name).size, "h200")[0] > 0
    whole, half = zoo_rate("resnet50", 224, "h200")[0], zoo_rate("resnet50", 112, "h200")[0]
    assert half == pytest.approx(4 * whole)
    assert {*constants()["rate"]} >= {*constants()["like"].values()}
    with pytest.raises(BadInput, match="no GPU 'h20'"):
        zoo_rate("resnet50", 224, "h20")


def test_the_index_of_a_huge_set_is_mapped_not_held() -> None:
    samples = 2_000_000
    found = measure(samples, ranks=16)
    assert found.disk >= samples * INDEX_DTYPE.itemsize
    assert found.own < found.disk / 20, "a rank holds no copy"


def test_the_table(small_set: Path) -> None:
    words = ["scale", "--models", "resnet50", "cnn5", "--data", str(small_set), "--index", "0", "--gpus", "1", "8"]
    value, lines = run_verb("bench", words)
    rows = {row["name"]: row for row in value["rows"]}
    assert rows["resnet50, 1 GPU, mostly compute"]["ratio"] == 1
    assert any(name.startswith("cnn5 (rate estimated), 8 GPUs") for name in rows)
    assert any("worth" in line for line in lines)
    assert rows["resnet50, state on each GPU, DDP"]["ratio"] < 0.01, "ZeRO does not pay for such networks"
    with pytest.raises(BadInput, match="below 1"):
        run_verb("bench", ["scale", "--batch", "0"])
