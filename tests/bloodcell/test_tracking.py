"""Tracking: the log survives what happens to a run, and the real W&B and TensorBoard show the same numbers."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloodcell.tracking import MetricsLog, Tracker, View, check_tracking, open_tracker, read_metrics
from shards.errors import BadInput, EnvironmentFault
from tests.bloodcell.wandb_server import KEY, Server, wandb_records

ROOT = Path(__file__).resolve().parents[2]

SESSION = """
import json, sys
from pathlib import Path
from bloodcell.tracking import open_tracker
from shards.errors import Stop

job = json.loads(sys.argv[1])
try:
    tracker = open_tracker(
        Path(job["run"]), {"optim": {"lr": 0.1}}, mode=job["mode"], project="cells", entity=None, name="fold 0",
        group="folds", job_type="train", tensorboard=False, rank=0, resume_step=job.get("resume_step"),
        init_timeout=1, finish_timeout=2,
    )
except Stop as stop:
    print(stop, file=sys.stderr)
    raise SystemExit(stop.code)
for step in job["steps"]:
    tracker.log(step, {"train/loss": 1 / step, "train/lr": 0.5}, step / 10)
    if step == job.get("break_at"):
        import psutil
        children = psutil.Process().children(recursive=True)
        print(*(word for child in children for word in child.cmdline()))
        for child in children:
            child.kill()
        psutil.wait_procs(children, timeout=20)
if job.get("draw"):
    tracker.confusion("val", job["steps"][-1], ["lymphocyte", "monocyte"], [[3, 1], [0, 2]])
tracker.summary({"test/accuracy": 0.75})
if job.get("results"):
    from bloodcell.tracking.results import Artifact, Curves, Results
    points = [("monocyte", 0.0, 0.0), ("monocyte", 1.0, 1.0)]
    tracker.results(lambda: Results(
        curves=[Curves("test", "roc", ("false positive rate", "recall"), points)],
        artifacts=[Artifact("set-cells", "dataset", {"fingerprint": "f"}, "{}", used=True)],
    ))
    tracker.alert("cells: stopped", "asked to", failed=False)
tracker.close("done")
print("went on")
"""


def session(run: Path, mode: str, steps: range, **more: Any) -> subprocess.CompletedProcess[str]:
    """Track some steps in a process of its own, whose home is empty and where W&B knows of nothing."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "NETRC"))}
    variables |= {"HOME": str(run), "PYTHONPATH": str(ROOT), **more.pop("env", {})}
    job = {"run": str(run), "mode": mode, "steps": list(steps), **more}
    command = [sys.executable, "-c", SESSION, json.dumps(job)]
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=run, timeout=120, check=False)


def offline_folders(run: Path) -> list[Path]:
    return sorted((run / "wandb").glob("offline-run-*"))


def holds_key(run: Path) -> bool:
    return any(KEY.encode() in file.read_bytes() for file in run.rglob("*") if file.is_file())


def open_plain(run: Path, **more: Any) -> Tracker:
    """Open a tracker without W&B in this process."""
    settings: dict[str, Any] = {"mode": "off", "tensorboard": False, "rank": 0, "resume_step": None, **more}
    return open_tracker(run, {}, project="p", entity=None, name="n", group=None, job_type=None, **settings)


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", None)
    log.write({"step": 1, "epoch": 0.1, "train/loss": np.float32(0.5), "note": "ä\n"})
    log.write({"step": 2, "epoch": 0.2, "train/loss": math.nan, "train/grad_norm": np.float64(math.inf)})
    assert read_metrics(log.path) == [
        {"step": 1, "epoch": 0.1, "train/loss": 0.5, "note": "ä\n"},
        {"step": 2, "epoch": 0.2, "train/loss": None, "train/grad_norm": None},
    ]
    log.close()
    log.close()


def test_a_record_without_a_step_is_refused(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", None)
    with pytest.raises(ValueError, match="step"):
        log.write({"epoch": 1.0})
    log.close()


@pytest.mark.parametrize(("resume_step", "kept"), [(None, []), (0, []), (3, [1, 2, 3]), (9, [1, 2, 3, 4, 5])])
def test_resuming_cuts_back_to_the_checkpoint(tmp_path: Path, resume_step: int | None, kept: list[int]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "x": {step}}}\n' for step in range(1, 6)) + '{"step": 6, "x"')
    log = MetricsLog(path, resume_step)
    assert [record["step"] for record in read_metrics(path)] == kept
    log.write({"step": 7})
    log.close()
    assert [record["step"] for record in read_metrics(path)] == [*kept, 7]
    assert path.read_bytes().endswith(b"\n")
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_what_a_crash_left_unreadable_is_dropped_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\0\n{"step": 2}\n')
    with pytest.raises(BadInput, match="jsonl:2"):
        read_metrics(path)
    MetricsLog(path, 5).close()
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    assert "1 unreadable" in capsys.readouterr().err


def test_a_reader_never_sees_half_a_record(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", None)

    def write() -> None:
        for step in range(300):
            log.write({"step": step, "x": "y" * 5000})

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while writer.is_alive():
        records = read_metrics(log.path)
        assert [record["step"] for record in records] == list(range(len(records)))
        assert len(records) >= seen
        seen = len(records)
    log.close()
    assert len(read_metrics(log.path)) == 300


def test_a_full_disk_is_one_clear_fault_and_leaves_no_half_line(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", None)
    log.write({"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(EnvironmentFault, match=r"metrics\.jsonl"):
            log.write({"step": 2, "x": "y" * 500})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.close()
    assert log.path.read_text() == '{"step": 1}\n'


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    tracker = open_plain(tmp_path, mode="online", tensorboard=True, rank=1)
    tracker.log(1, {"train/loss": 1.0}, 0.1)
    tracker.confusion("val", 1, ["a", "b"], [[1, 0], [0, 1]])
    tracker.summary({"x": 1})
    tracker.flush()
    tracker.close("done")
    assert not any(tmp_path.iterdir())


def test_off_is_the_log_alone(tmp_path: Path) -> None:
    tracker = open_plain(tmp_path)
    tracker.log(1, {"train/loss": 1.0}, 0.5)
    tracker.flush()
    tracker.close("done")
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert record.pop("time") > 1e9
    assert record == {"step": 1, "epoch": 0.5, "train/loss": 1.0}
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


class Unreliable(View):
    """A view that fails at the second record."""

    name = "unreliable"

    def __init__(self) -> None:
        self.heard: list[int] = []

    def log(self, record: dict[str, Any], number: int) -> None:
        self.heard.append(record["step"])
        if record["step"] == 2:
            raise OSError(f"gone, and the key was {KEY}\nmore")


def test_a_view_that_fails_is_given_up_once_and_the_log_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    view = Unreliable()
    tracker = Tracker(MetricsLog(tmp_path / "metrics.jsonl", None), [view])
    for step in range(1, 5):
        tracker.log(step, {"train/loss": 1.0}, step / 10)
    tracker.close("done")
    assert view.heard == [1, 2]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4
    said = capsys.readouterr().err
    assert said.count("unreliable failed") == 1
    assert KEY not in said


def test_wandb_offline_keeps_one_id_over_restarts_and_holds_every_record(tmp_path: Path) -> None:
    first = session(tmp_path, "auto", range(1, 7), draw=True)
    assert first.stderr.count("\n") == 1
    assert "offline (no API key is configured)" in first.stderr
    second = session(tmp_path, "auto", range(5, 9), resume_step=4, draw=True)
    assert (first.returncode, second.returncode) == (0, 0)
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 9))

    identity = (tmp_path / "wandb" / "run_id").read_text().strip()
    fragments = [wandb_records(folder) for folder in offline_folders(tmp_path)]
    assert len(fragments) == 2
    for records, steps in zip(fragments, [range(1, 7), range(5, 9)], strict=True):
        (start,) = (record["run"] for record in records if record["type"] == "run")
        assert (start["run_id"], start["project"], start["run_group"]) == (identity, "cells", "folds")
        assert start["config"]["update"]["optim"] == {"lr": 0.1}
        history = [record["history"]["item"] for record in records if record["type"] == "history"]
        scalars = [item for item in history if "train/loss" in item]
        assert [(row["step"], row["epoch"], row["train/loss"]) for row in scalars] == [
            (step, step / 10, 1 / step) for step in steps
        ]
        (picture,) = (item for item in history if "val/confusion" in item or "val/confusion._type" in item)
        assert picture["step"] == steps[-1]
        metrics = [record["metric"] for record in records if record["type"] == "metric"]
        assert any(metric.get("glob_name") == "*" and metric.get("step_metric") == "step" for metric in metrics)
        summary = {
            key: value for r in records if r["type"] == "summary" for key, value in r["summary"]["update"].items()
        }
        assert (summary["test/accuracy"], summary["outcome"]) == (0.75, "done")
        assert records[-1]["exit"]["exit_code"] == 0
        assert not any(record["type"] == "environment" for record in records)
    assert not list(tmp_path.glob(".*/**/wandb"))  # nothing in the home folder


@pytest.mark.parametrize(("key", "said"), [("", "no API key is configured"), ("canary-short", "malformed")])
def test_online_without_a_usable_key_is_bad_input_before_anything_is_written(
    tmp_path: Path, key: str, said: str
) -> None:
    done = session(tmp_path, "online", range(1, 2), env={"WANDB_API_KEY": key} if key else {})
    assert done.returncode == BadInput.code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "canary" not in done.stderr
    assert not (tmp_path / "metrics.jsonl").exists()
    assert not (tmp_path / "wandb").exists()


def test_a_server_that_is_not_there_means_offline_and_the_key_is_nowhere(tmp_path: Path) -> None:
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}
    done = session(tmp_path, "auto", range(1, 4), env=nowhere)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("could not be reached") == done.stderr.count("\n") == 1
    (folder,) = offline_folders(tmp_path)
    history = [record["history"]["item"] for record in wandb_records(folder) if record["type"] == "history"]
    assert [item["step"] for item in history if "train/loss" in item] == [1, 2, 3]
    assert KEY not in done.stdout + done.stderr
    assert not holds_key(tmp_path)


def test_a_client_that_dies_is_given_up_and_the_training_goes_on(tmp_path: Path) -> None:
    done = session(tmp_path, "auto", range(1, 6), break_at=3, env={"WANDB_MODE": "offline", "WANDB_API_KEY": KEY})
    assert done.returncode == 0, done.stderr
    assert "W&B offline (WANDB_MODE=offline)" in done.stderr
    assert not holds_key(tmp_path)
    assert "--no-observability" in done.stdout  # else the client asks for an outside host
    assert done.stdout.endswith("went on\n")
    assert done.stderr.count("W&B failed") == 1
    assert "Traceback" not in done.stderr
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_results_and_alerts_are_kept_offline_too(tmp_path: Path) -> None:
    done = session(tmp_path, "offline", range(1, 3), results=True)
    assert done.returncode == 0, done.stderr
    assert "given up" not in done.stderr
    (folder,) = offline_folders(tmp_path)
    found = wandb_records(folder)
    (artifact,) = (record["artifact"] for record in found if record.get("artifact", {}).get("type") == "dataset")
    assert (artifact["name"], artifact["use_after_commit"]) == ("set-cells", True)
    (alert,) = (record["alert"] for record in found if "alert" in record)
    assert (alert["title"], alert["text"]) == ("cells: stopped", "asked to")
    assert any("test/roc_table" in str(record) for record in found if record["type"] == "history")


@pytest.mark.parametrize("hangs", [True, False])
def test_a_server_that_hangs_or_dies_costs_no_more_than_the_stated_limits(tmp_path: Path, hangs: bool) -> None:
    """The limits are 1 s for the start, 2 s for results and 2 s for the end; without them the client never ends."""
    with Server(breaks_after=2, hangs=hangs) as server:
        begin = time.monotonic()
        done = session(tmp_path, "auto", range(1, 300), results=True, env=server.variables)
        spent = time.monotonic() - begin
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("went on\n")
    assert "bloodcell sync" in done.stderr or "given up" in done.stderr
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 300))
    assert not holds_key(tmp_path)
    assert KEY not in done.stdout + done.stderr
    assert spent < 90


def test_auto_listens_to_the_environment(tmp_path: Path) -> None:
    done = session(tmp_path, "auto", range(1, 2), env={"WANDB_MODE": "disabled", "WANDB_API_KEY": KEY})
    assert done.returncode == 0, done.stderr
    assert "no W&B (WANDB_MODE=disabled)" in done.stderr
    assert not (tmp_path / "wandb").exists()


def test_tensorboard_shows_the_records_of_the_lineage_only(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resume_step, steps, factor in [(None, range(1, 7), 1.0), (4, range(5, 9), 10.0)]:
        tracker = open_plain(tmp_path, tensorboard=True, resume_step=resume_step)
        for step in steps:
            tracker.log(step, {"train/loss": factor * step}, step / 10)
        tracker.confusion("val", steps[-1], ["lymphocyte", "monocyte"], [[3, 1], [0, 2]])
        tracker.close("done")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(step, (1.0 if step <= 4 else 10.0) * step) for step in range(1, 9)]
    assert [event.step for event in events.Scalars("epoch")] == list(range(1, 9))
    assert "time" not in events.Tags()["scalars"]
    assert [image.step for image in events.Images("val/confusion")] == [8]
    assert b"lymphocyte | 3 | 1" in events.Tensors("val/confusion/text_summary")[-1].tensor_proto.string_val[0]


def test_tensorboard_that_is_not_installed_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # the way to tell Python that a package is not there
    with pytest.raises(BadInput, match=r"pip install 'bloodcell\[tensorboard\]'"):
        check_tracking("off", tensorboard=True)
