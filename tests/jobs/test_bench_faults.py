"""The short fault campaign, whole: real processes under torchrun are hurt, and nothing of the trainings is lost."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from jobs.bench.campaign import Campaign
from jobs.bench.faults import QUICK, run
from jobs.bench.injuries import INJURIES
from shards.errors import BadInput, CheckFailed
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


def kept(file: Path, *wrong: dict[str, object]) -> Path:
    """Write what a finished campaign of ten faults leaves behind; `wrong` rows belong to its second training."""
    command = "bloodcell bench faults --quick --seed 7"
    kinds = [*INJURIES, *INJURIES][:10]
    rows = [{"name": kind, "value": 5.0 + place, "unit": "s"} for place, kind in enumerate(kinds)]
    judged = [{"name": name, "value": 1, "unit": "judged"} for name in ("000-ddp-2", "001-zero2-2")]
    parts = {"000-ddp-2": [*rows[:5], judged[0]], "001-zero2-2": [*rows[5:], judged[1], *wrong]}
    file.write_text(json.dumps({"about": {"command": command}, "parts": parts}))
    return file


def test_a_campaign_goes_on_where_it_was(tmp_path: Path) -> None:
    """Both trainings are done: nothing is started, and the table is that of what was seen."""
    result = run(QUICK, 7, tmp_path / "campaign", kept(tmp_path / "state.json"))
    rows = {row.name: row.value for row in result.rows}
    assert (rows["faults"], rows["trainings hit"]) == (10, 2)
    assert rows["rank killed (2): until it trains again"] == 9.0
    assert rows["any fault (10): until it trains again"] == 9.5
    with pytest.raises(BadInput, match="are of"):
        run(QUICK, 8, tmp_path / "other", tmp_path / "state.json")


def test_what_went_wrong_fails_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {"name": "001-zero2-2: other final weights", "value": 1, "unit": "wrong weights"}
    with pytest.raises(CheckFailed, match="001-zero2-2: other final weights"):
        run(QUICK, 7, tmp_path / "campaign", kept(tmp_path / "state.json", wrong))
    assert "trainings with other final weights" in capsys.readouterr().err


def test_without_an_undisturbed_training_a_case_is_left_out(tmp_path: Path) -> None:
    """It is tried twice; then its last words are in the result, and its log is there to be read."""
    with Campaign(tmp_path, None, QUICK, keep=False) as campaign:
        rows = campaign.part("000-none-1", "none", 1, ["rank killed"], random.Random(0))
    assert [row.unit for row in rows] == ["no reference"]
    assert "engine.strategy" in rows[0].name
    for name in ("undisturbed-none-1.log", "undisturbed-none-1-again.log"):
        assert "engine.strategy" in (tmp_path / name).read_text()
