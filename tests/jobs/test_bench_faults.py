"""The short fault campaign, whole: real processes under torchrun are hurt, and nothing of the trainings is lost."""

from __future__ import annotations

import pytest

from jobs.bench.injuries import INJURIES
from tests.conftest import bloodcell


@pytest.mark.timeout(1200)
def test_ten_faults_over_two_trainings_lose_nothing(deepspeed_op: None) -> None:
    """DDP and ZeRO-2; every kind of fault once at least. The runs end as the undisturbed ones do, bit for bit."""
    done = bloodcell("bench", "faults", "--quick", "--json", timeout=1100)
    assert done.code == 0, done.err
    rows = {row["name"]: row["value"] for row in done.json["rows"]}
    assert rows["faults"] == 10
    assert rows["trainings hit"] == 2
    assert rows["trainings with other final weights"] == rows["trainings with lost or doubled samples"] == 0
    assert all(any(name.startswith(f"{kind} (") for name in rows) for kind in INJURIES)
