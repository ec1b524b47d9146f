"""`sync`: what was tracked offline reaches a server that speaks W&B's protocol, every record once and in order."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from bloodcell.config import override
from bloodcell.engine.shown import gather
from bloodcell.runfolder import RunFolder
from bloodcell.tracking import read_metrics
from bloodcell.tracking.names import METRICS
from shards.errors import BadInput
from tests.bloodcell.engine.runs import FAST, SMALL_NET, kill, records, start
from tests.bloodcell.wandb_server import KEY, Kept, Server, wandb_records
from tests.conftest import Done, bloodcell, command

ROOT = Path(__file__).resolve().parents[2]


def sync(server: Server, *words: object, home: Path) -> Done:
    """Run the verb as on a login node, with the key in the environment."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    variables |= {**server.variables, "HOME": str(home)}
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), variables.get("PYTHONPATH", "")])
    done = subprocess.run(
        command("sync", *words, "--json"), capture_output=True, text=True, env=variables, timeout=240, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A small network that the runs' processes find."""
    folder = tmp_path_factory.mktemp("nets")
    (folder / "synced_net.py").write_text(SMALL_NET)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(scope="module")
def killed_twice(small_set: Path, net: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An offline run that was killed twice, as it was after the second kill, and at its end."""
    run = tmp_path_factory.mktemp("synced") / "cells"
    os.environ["WANDB_API_KEY"] = KEY  # which no file may hold
    words = ["train", "cnn5", "--data", small_set, "--run", run, *FAST, "--model.name", "synced_net:build"]
    words[words.index("--tracking.wandb") + 1] = "offline"
    words += ["--tracking.artifacts", "weights", "--tracking.images", 3]
    for until in (3, 7):
        process = start(*words, ranks=0)
        while process.poll() is None and not any(r["step"] >= until for r in records(run)):
            time.sleep(0.05)
        kill(process)
    halfway = Path(shutil.copytree(run, run.with_name("halfway"), symlinks=True))
    done = bloodcell(*words)
    del os.environ["WANDB_API_KEY"]
    assert done.code == 0, done.err
    assert KEY not in done.out + done.err
    return halfway, run


def shown(rows: list[dict[str, Any]], passing: set[str]) -> list[dict[str, Any]]:
    """Return records without what differs from run to run, what W&B adds, and what it does not keep."""
    mine = [{k: v for k, v in row.items() if not k.startswith("_") and k not in passing} for row in rows]
    return [{k: v for k, v in row.items() if v is not None and not isinstance(v, dict)} for row in mine]


def test_a_run_that_was_killed_twice_is_there_once_and_whole(killed_twice: tuple[Path, Path], tmp_path: Path) -> None:
    halfway, run = killed_twice
    with Server() as server:
        first = sync(server, halfway, home=tmp_path)
        assert first.code == 0, first.err
        (row,) = first.json["runs"]
        (kept,) = server.runs.values()
        newest = max(int(path.name) for path in (halfway / "checkpoints").glob("*") if path.name.isdigit())
        assert not row["finished"]
        assert row["sent"] == len(kept.history) > 0
        assert max(line["step"] for line in kept.history) <= newest
        # The same run, now at its end: only what is new is sent.
        (run / "wandb" / "synced.json").write_bytes((halfway / "wandb" / "synced.json").read_bytes())
        second = sync(server, run, home=tmp_path)
        assert second.code == 0, second.err
        metrics = read_metrics(run / "metrics.jsonl")
        assert second.json["runs"][0]["sent"] == len(metrics) - row["sent"]
        assert [line["_step"] for line in kept.history] == list(range(len(metrics)))
        passing = {"time", "train/images_per_s", "train/data_wait", "train/memory_mib"}
        assert shown(kept.history, passing) == shown(metrics, passing)
        result = json.loads((run / "evaluation.json").read_text())["splits"]["test"]
        assert kept.summary["test/accuracy"] == result["metrics"]["accuracy"]["value"]
        assert kept.summary["outcome"] == "done"
        assert "report.html" in kept.files
        assert any(name.startswith("media/images/test/confusion") for name in kept.files)
        assert len(server.runs) == 1
        assert not server.asked
        check_results(server, kept, run)
        third = sync(server, run, home=tmp_path)
        assert (third.code, third.json["runs"][0]["sent"]) == (0, 0)
    for place in (run, halfway):
        assert not any(KEY.encode() in file.read_bytes() for file in place.rglob("*") if file.is_file())
    assert KEY not in first.err + first.out + second.err + second.out


def check_results(server: Server, kept: Kept, run: Path) -> None:
    """The set and the model are there with their lineage, and curves, and the images that were asked for."""
    (given,), (model, *tables) = kept.used, kept.made
    assert model == "model-cells"
    assert all(name.startswith(f"run-{(run / 'wandb' / 'run_id').read_text().strip()}-") for name in tables)
    stored, weights = server.artifact(given), server.artifact(model)
    assert (stored.about["artifactTypeName"], weights.about["artifactTypeName"]) == ("dataset", "model")
    fingerprint = json.loads((run / "config.json").read_text())["fingerprint"]
    assert json.loads(stored.about["metadata"])["fingerprint"] == fingerprint
    assert set(stored.files) == {"manifest", "dataset.json"}, "names and hashes, no image"
    assert weights.files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert json.loads(weights.files["model.json"])["set"] == fingerprint
    assert {alias["alias"] for alias in weights.about["aliases"]} == {"latest", "best"}
    last = kept.history[-1]
    assert last["test/predictions"]["nrows"] == 3
    table = json.loads(kept.files[last["test/predictions"]["path"]])
    right = [row[table["columns"].index("right")] for row in table["data"]]
    assert right == sorted(right), "errors first"
    points = json.loads(kept.files[last["test/roc_table"]["path"]])["data"]
    assert all(0 <= x <= 1 and 0 <= y <= 1 for _, x, y in points)
    assert {"val/pr_table", "test/pr_table", "val/roc_table"} <= set(last)


def test_every_name_that_a_training_writes_is_a_known_one(killed_twice: tuple[Path, Path]) -> None:
    written = {name for record in read_metrics(killed_twice[1] / "metrics.jsonl") for name in record}
    assert written - {"step", "time"} == set(METRICS)


def test_unless_asked_names_and_hashes_alone_are_sent(killed_twice: tuple[Path, Path]) -> None:
    folder = RunFolder(killed_twice[1])
    plain = override(folder.config(), {"tracking.artifacts": "names", "tracking.images": 0})
    found = gather(folder, plain)
    assert [(one.kind, one.files) for one in found.artifacts] == [("dataset", {}), ("model", {})]
    assert not found.images
    assert not gather(folder, override(plain, {"tracking.artifacts": "off"})).artifacts


def test_every_start_that_goes_on_alerts_whoever_watches(killed_twice: tuple[Path, Path]) -> None:
    found = [record for path in (killed_twice[1] / "wandb").glob("offline-run-*") for record in wandb_records(path)]
    alerts = [
        (record["alert"]["title"], record["alert"]["text"].split(",")[0]) for record in found if "alert" in record
    ]
    assert sorted(alerts) == [("cells: started again", f"attempt {number}") for number in (2, 3)]


def test_a_run_that_failed_alerts_whoever_watches(killed_twice: tuple[Path, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(killed_twice[0], tmp_path / "cells", symlinks=True))
    status = json.loads((run / "status.json").read_text())
    status |= {"state": "failed", "outcome": {"code": 70, "kind": "failed", "what": "a loss that is not finite"}}
    (run / "status.json").write_text(json.dumps(status))
    (run / "wandb" / "synced.json").unlink(missing_ok=True)
    with Server() as server:
        done = sync(server, run, home=tmp_path)
        assert done.code == 0, done.err
        (kept,) = server.runs.values()
        assert kept.alerts == [("ERROR", "cells: failed", "a loss that is not finite")]
        assert kept.ends == [1]


def test_a_server_that_breaks_off_loses_and_doubles_nothing(killed_twice: tuple[Path, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(killed_twice[1], tmp_path / "cells", symlinks=True))
    (run / "wandb" / "synced.json").unlink(missing_ok=True)
    metrics = read_metrics(run / "metrics.jsonl")
    with Server(breaks_after=5) as server:
        broken = sync(server, run, "--patience", 3, home=tmp_path)
        assert broken.code == 3
        assert "nothing is sent twice" in broken.err
        assert not (run / "wandb" / "synced.json").exists()
        assert len(next(iter(server.runs.values())).history) == 5
        server.breaks_after = None
        again = sync(server, run, home=tmp_path)
        assert again.code == 0, again.err
        (kept,) = server.runs.values()
        assert [line["_step"] for line in kept.history] == list(range(len(metrics)))


def test_without_a_key_or_a_server_it_says_so(
    killed_twice: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.cli import run_verb

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(BadInput, match="no API key is configured"):
        run_verb("sync", [str(killed_twice[1])])
    with Server() as server:
        gone = server
    run = Path(shutil.copytree(killed_twice[0], tmp_path / "cells", symlinks=True))
    (run / "wandb" / "synced.json").unlink(missing_ok=True)
    done = sync(gone, run, home=tmp_path)
    assert done.code == 3
    assert "could not be reached" in done.err
    assert "Traceback" not in done.err
