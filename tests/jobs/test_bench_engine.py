"""`bloodcell bench engine`: real ranks in turn, and the interval of their paired differences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.bench import real
from jobs.bench.engine import BARE, QUICK, overhead, rows, run
from shards.errors import BadInput
from tests.conftest import bloodcell


def test_the_interval_of_paired_differences_is_students() -> None:
    """Ratios e^0.01, e^0.02, e^0.03: mean 0.02, standard deviation 0.01, t(0.975, 2) = 4.3027."""
    low, middle, high = overhead([1.0100502, 2.0404027, 3.0913636], [1.0, 2.0, 3.0])
    assert middle == pytest.approx(2.0201, abs=1e-3)
    assert high == pytest.approx(100 * (2.718281828 ** (0.02 + 4.302653 * 0.01 / 3**0.5) - 1), abs=1e-2)
    assert low < 0 < high


def test_deepspeed_is_compared_with_our_ddp_and_that_with_the_bare_loop() -> None:
    figures = {BARE: [1.0, 1.0], "ddp": [1.1, 1.3], "zero2": [2.2, 2.6]}
    table = {row.name: row for row in rows({"step": figures, "wall": figures, "other": []})}
    assert (table["zero2, step"].baseline, table["zero2, step"].ratio) == ("ddp, step", pytest.approx(2.0))
    assert (table["ddp, step"].baseline, table["ddp, step"].ratio) == (f"{BARE}, step", pytest.approx(1.2))
    assert table[f"{BARE}, step"].ratio is None


def test_numbers_that_are_too_small_are_refused() -> None:
    with pytest.raises(BadInput, match="too small"):
        run(QUICK.__class__(repeats=1), "bench")


def test_real_images_beside_held_tensors(small_set: Path) -> None:
    from bloodcell.ranks import set_threads

    before = torch.get_num_threads()
    found = {row.name: row for row in real.run(small_set, ["cnn5"], 32, 4, 2, 2).rows}
    set_threads(before)
    row = found["cnn5, real images, images/CPU-s"]
    assert row.baseline == "cnn5, held tensors, images/CPU-s"
    assert row.value > 0
    with pytest.raises(BadInput, match="take fewer steps"):
        real.run(small_set, ["cnn5"], 32, 4, 2, 10**6)


@pytest.mark.slow
def test_the_quick_one_measures_everything(deepspeed_op: None) -> None:
    found = {row.name: row for row in run(QUICK, "bloodcell bench engine --quick").rows}
    for name in (f"{BARE}, step", "ddp, step", "zero2, step", "ddp, wall"):
        assert found[name].value > 0
    assert found["process start to end of first step"].value > 0
    assert found["ddp over bare, 95 % interval"].low is not None


@pytest.mark.slow
def test_sizes_of_buckets_take_turns() -> None:
    words = ("--model", "cnn5", "--size", 32, "--micro-batch", 4, "--repeats", 2, "--steps", 1)
    done = bloodcell("bench", "engine", "--buckets", 1, *words, "--json")
    assert done.code == 0, done.err
    rows = {row["name"]: row for row in done.json["rows"]}
    assert rows["buckets of 1 MiB, step"]["baseline"] == "buckets of 25 MiB, step"
    assert rows["buckets of 25 MiB, wall"]["value"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("setting", "field", "values"),
    [
        ("compile", "engine.compile", ("off", "on")),
        ("channels-last", "engine.channels_last", ("false", "true")),
        ("fused", "optim.fused", ("off", "on")),
    ],
)
def test_steps_with_a_setting_take_turns_with_plain_ones(setting: str, field: str, values: tuple[str, str]) -> None:
    words = ("--model", "cnn5", "--size", 32, "--micro-batch", 4, "--repeats", 2, "--steps", 1)
    done = bloodcell("bench", "engine", "--setting", setting, *words, "--json", fresh=True, timeout=800)
    assert done.code == 0, done.err
    rows = {row["name"]: row for row in done.json["rows"]}
    without, with_it = (f"cnn5, {field} {value}, CPU-ms/step" for value in values)
    assert rows[with_it]["baseline"] == without
    assert ("cnn5, compiling" in rows) == (setting == "compile")
    assert setting != "compile" or rows["cnn5, compiling"]["value"] > 0
