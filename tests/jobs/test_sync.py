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

from bloodcell.tracking import read_metrics
from shards.errors import BadInput
from tests.bloodcell.engine.runs import FAST, SMALL_NET, kill, records, start
from tests.bloodcell.wandb_server import KEY, Server
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
    words = ["train", "cnn5", "--data", small_set, "--run", run, *FAST, "--model.name", "synced_net:build"]
    words[words.index("--tracking.wandb") + 1] = "offline"
    for until in (3, 7):
        process = start(*words, ranks=0)
        while process.poll() is None and not any(r["step"] >= until for r in records(run)):
            time.sleep(0.05)
        kill(process)
    halfway = Path(shutil.copytree(run, run.with_name("halfway"), symlinks=True))
    done = bloodcell(*words)
    assert done.code == 0, done.err
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
        third = sync(server, run, home=tmp_path)
        assert (third.code, third.json["runs"][0]["sent"]) == (0, 0)
    for place in (run, halfway):
        assert not any(KEY.encode() in file.read_bytes() for file in place.rglob("*") if file.is_file())
    assert KEY not in first.err + first.out + second.err + second.out


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
