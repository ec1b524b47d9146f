"""`bloodcell bench evaluate`: rows for each case, memory of each by itself, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.bench import evaluation as bench
from shards.errors import BadInput
from tests.conftest import bloodcell


def test_quick_rows_as_json() -> None:
    done = bloodcell("bench", "evaluate", "--quick", "--samples", 5000, "--classes", 3, "--patients", 50, "--json")
    assert done.code == 0, done.err
    rows = {(row["name"], row["unit"]): row for row in done.json["rows"]}
    assert len(rows) == 2 * 3 * 2
    for group in ("no patients", "50 patients"):
        for what in ("metrics with intervals", "all sections", bench.SKLEARN):
            title = f"5,000 x 3 classes, {group}: {what}"
            spent, held = rows[title, "CPU-s"], rows[f"{title}, peak memory", "MiB"]
            assert spent["value"] > 0
            assert 50 < held["value"] < 2000
            assert spent["baseline"] == f"5,000 x 3 classes, {group}: {bench.SKLEARN}"
            assert held["ratio"] > 0
    assert "bench evaluate --samples 5000 --classes 3 --patients 50 --repeats 1" in done.json["command"]


@pytest.mark.parametrize(
    "flags", [["--samples", 50], ["--classes", 1], ["--classes", "x"], ["--patients", 1], ["--repeats", 0]]
)
def test_sizes_that_cannot_be_are_one_clear_line(flags: list[object]) -> None:
    done = bloodcell("bench", "evaluate", "--quick", *flags)
    assert done.code == 2
    assert "Traceback" not in done.err


def test_drawn_predictions_are_the_same_again_and_share_no_sample() -> None:
    one, again, known = bench.draw("test", 500, 4, 20), bench.draw("test", 500, 4, 20), bench.draw("val", 500, 4, 20)
    np.testing.assert_array_equal(one.logits, again.logits)
    assert one.groups == again.groups
    assert not set(one.ids.tolist()) & set(known.ids.tolist())
    assert len(set(one.groups)) == 20
    assert 0.8 < (one.predicted() == one.labels).mean() < 0.99
    with pytest.raises(BadInput):
        bench.run(100, [2], 101, 1)
