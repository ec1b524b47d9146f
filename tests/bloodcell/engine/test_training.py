"""Real training runs in real processes: two ranks, killed, resumed, judged on any number of them, stopped by faults."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from bloodcell.evaluation.predictions import read_predictions
from tests.bloodcell.engine.runs import FAST, kill, records, same, start, status, weights
from tests.conftest import bloodcell


@pytest.fixture(scope="module")
def undisturbed(small_set: Path, small_net: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on two ranks."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    done = bloodcell("train", "cnn5", "--data", small_set, "--run", run, "--model.name", small_net, *FAST, ranks=2)
    assert done.code == 0, done.err
    return run


def test_a_run_leaves_what_the_design_says(undisturbed: Path, small_set: Path) -> None:
    for name in ("config.json", "environment.json", "status.json", "metrics.jsonl", "evaluation.json", "report.html"):
        assert (undisturbed / name).stat().st_size > 0
    said = status(undisturbed)
    assert said["state"] == "done"
    assert said["outcome"]["code"] == 0
    assert said["lineage_proven"] is True
    assert (undisturbed / "checkpoints" / "last").exists()
    assert (undisturbed / "checkpoints" / "best").exists()
    with safe_open(undisturbed / "model.safetensors", framework="np") as file:
        metadata = file.metadata()
    assert json.loads(metadata["classes"]) == json.loads((small_set / "dataset.json").read_text())["classes"]
    steps = [record["step"] for record in records(undisturbed) if "train/loss" in record]
    assert steps == list(range(1, said["steps"] + 1))
    assert {"train/lr", "train/images_per_s", "train/data_wait", "train/memory_mib"} <= records(undisturbed)[0].keys()
    assert any("val/macro_f1" in record for record in records(undisturbed))


def test_the_same_command_again_changes_nothing(
    undisturbed: Path, small_set: Path, small_net: str, tmp_path: Path
) -> None:
    """Also where the set has moved: what counts is what it holds."""
    before = (undisturbed / "model.safetensors").read_bytes()
    moved = shutil.copytree(small_set, tmp_path / "elsewhere")
    done = bloodcell("train", "cnn5", "--data", moved, "--run", undisturbed, "--model.name", small_net, *FAST, ranks=2)
    assert done.code == 0, done.err
    assert (undisturbed / "model.safetensors").read_bytes() == before
    assert status(undisturbed)["attempt"] >= 2


def test_predictions_are_exact_and_the_same_on_any_number_of_ranks(undisturbed: Path, small_set: Path) -> None:
    results = {}
    for ranks in (0, 2, 3):
        done = bloodcell("evaluate", undisturbed, "--split", "test", "--predict", "--json", ranks=ranks)
        assert done.code == 0, done.err
        assert done.json["schema"] == "bloodcell/1/evaluate"
        table = (undisturbed / "predictions" / "test.parquet").read_bytes()
        results[ranks] = (done.json["metrics"], table, (undisturbed / "evaluation.json").read_bytes())
    assert results[0] == results[2] == results[3]
    predictions = read_predictions(undisturbed / "predictions" / "test.parquet")
    info = json.loads((small_set / "dataset.json").read_text())
    assert len(predictions.ids) == sum(info["samples"]["test"].values())
    accuracy = float((predictions.predicted() == predictions.labels).mean())
    assert results[0][0]["accuracy"]["value"] == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("strategy", "moment"),
    [
        # test_exact_resume.py kills at finer moments, test_bench_faults.py under torchrun and ZeRO-2 too.
        pytest.param("ddp", "early", marks=pytest.mark.slow),
        pytest.param("zero2", "early", marks=pytest.mark.slow),
        pytest.param("ddp", "late", marks=pytest.mark.slow),
        *(pytest.param(f"zero{stage}", "late", marks=pytest.mark.slow) for stage in range(4)),
    ],
)
def test_killed_and_resumed_ends_bit_identical(
    undisturbed: Path,
    small_set: Path,
    small_net: str,
    tmp_path: Path,
    strategy: str,
    moment: str,
    request: pytest.FixtureRequest,
) -> None:
    """Under DeepSpeed too: to the bit what DDP gives without being disturbed, every loss on the way included."""
    if strategy != "ddp":
        request.getfixturevalue("deepspeed_op")
    run = tmp_path / "run"
    arguments = ("train", "cnn5", "--data", small_set, "--run", run, "--model.name", small_net, *FAST)
    arguments += ("--engine.strategy", strategy)
    wanted = 3 if moment == "early" else status(undisturbed)["steps"] - 3
    process = start(*arguments, ranks=2)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        lines = (run / "metrics.jsonl").read_text().count("\n") if (run / "metrics.jsonl").exists() else 0
        if lines >= wanted:
            break
        time.sleep(0.005)
    kill(process)
    done = bloodcell(*arguments, ranks=2)
    assert done.code == 0, done.err
    assert status(run)["lineage_proven"] is True
    assert status(run)["lineage"] == status(undisturbed)["lineage"]
    assert same(run, undisturbed)
    losses = [(r["step"], r["train/loss"]) for r in records(run) if "train/loss" in r]
    assert losses == [(r["step"], r["train/loss"]) for r in records(undisturbed) if "train/loss" in r]
    if strategy != "ddp":
        judged = bloodcell("evaluate", run, "--split", "test", "--json")
        assert judged.code == 0, judged.err
        exact = json.loads((undisturbed / "evaluation.json").read_text())["splits"]["test"]["metrics"]["accuracy"]
        assert judged.json["metrics"]["accuracy"]["value"] == exact["value"]


@pytest.mark.slow
def test_stopped_on_request_and_gone_on_with_ends_bit_identical(
    undisturbed: Path, small_set: Path, small_net: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "stop").write_text("1\n")
    arguments = ("train", "cnn5", "--data", small_set, "--run", run, "--model.name", small_net, *FAST)
    done = bloodcell(*arguments, ranks=2)
    assert done.code != 0
    assert "start the same command again" in done.err
    assert (status(run)["state"], status(run)["outcome"]["code"], status(run)["epoch"]) == ("stopped", 85, 1.0)
    (run / "stop").unlink()
    done = bloodcell(*arguments, ranks=2)
    assert done.code == 0, done.err
    assert same(run, undisturbed)
    assert status(run)["lineage"] == status(undisturbed)["lineage"]


@pytest.mark.parametrize("ranks", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_other_world_sizes_see_the_same_micro_batches(
    undisturbed: Path, small_set: Path, small_net: str, tmp_path: Path, ranks: int
) -> None:
    """Bound: sums of float32 gradients in another order, 12 steps of AdamW, BatchNorm statistics included."""
    run = tmp_path / "run"
    done = bloodcell("train", "cnn5", "--data", small_set, "--run", run, "--model.name", small_net, *FAST, ranks=ranks)
    assert done.code == 0, done.err
    assert status(run)["lineage"] == status(undisturbed)["lineage"]
    ours, theirs = (
        [r["train/loss"] for r in records(run) if "train/loss" in r],
        [r["train/loss"] for r in records(undisturbed) if "train/loss" in r],
    )
    np.testing.assert_allclose(ours, theirs, rtol=2e-3)
    mine, other = weights(run), weights(undisturbed)
    for name in mine:
        np.testing.assert_allclose(mine[name], other[name], rtol=1e-2, atol=5e-3, err_msg=name)


def test_another_world_size_takes_the_run_up(
    undisturbed: Path, small_set: Path, small_net: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ("train", "cnn5", "--data", small_set, "--run", run, "--model.name", small_net, *FAST)
    shutil.copytree(undisturbed, run, symlinks=True)
    kept = sorted(path for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    shutil.rmtree(kept[-1])
    for link in ("last", "best"):
        (run / "checkpoints" / link).unlink()
    (run / "checkpoints" / "last").symlink_to(kept[-2].name)
    done = bloodcell(*arguments)
    assert done.code == 0, done.err
    assert f"resuming {run} at step {int(kept[-2].name)}" in " ".join(done.err.split())
    assert status(run)["lineage"] == status(undisturbed)["lineage"]


def test_a_longer_run_goes_on(undisturbed: Path, small_set: Path, small_net: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run, symlinks=True)
    steps = status(run)["steps"]
    done = bloodcell(
        "train", "cnn5", "--data", small_set, "--run", run, "--model.name", small_net, *FAST[:6], "--train.epochs", 4
    )
    assert done.code == 0, done.err
    assert status(run)["step"] == steps // 3 * 4
    assert "the schedule is stretched" in " ".join(done.err.split())


BENT = (
    *("--train.average", "ema", "--train.ema_decay", 0.8, "--data.mixup", 0.3, "--data.cutmix", 1.0),
    *("--loss.name", "focal", "--loss.class_weights", "balanced", "--loss.label_smoothing", 0.1),
    *("--loss.logit_adjustment", 0.5, "--optim.name", "timm:lamb", "--optim.layer_decay", 0.8, "--optim.l1", 1e-5),
    *("--optim.schedule", "plateau", "--optim.fall_after", 1),
)


def test_averages_mixed_images_and_plateaus_resume_exactly(small_set: Path, small_net: str, tmp_path: Path) -> None:
    arguments = ("train", "cnn5", "--data", small_set, "--model.name", small_net, *FAST, *BENT)
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = bloodcell(*arguments, "--run", whole, ranks=2)
    assert done.code == 0, done.err
    shutil.copytree(whole, run, symlinks=True)
    kept = sorted(path for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    for checkpoint in kept[1:]:
        shutil.rmtree(checkpoint)
    for link in ("last", "best"):
        (run / "checkpoints" / link).unlink()
    (run / "checkpoints" / "last").symlink_to(kept[0].name)
    done = bloodcell(*arguments, "--run", run, ranks=2)
    assert done.code == 0, done.err
    assert same(run, whole)
    averaged = load_file(run / "checkpoints" / "last" / "model.safetensors")
    assert not np.array_equal(averaged["9.weight"], weights(run)["9.weight"])


def test_early_stopping_under_bf16_with_sgd_and_clipping(small_set: Path, tmp_path: Path) -> None:
    """A learning rate of almost nothing: the second validation is no better than the first, so the run ends there."""
    run = tmp_path / "run"
    still = ("--optim.lr", 1e-12, "--optim.name", "sgd", "--optim.clip", 1.0, "--train.patience", 1)
    arguments = ("train", "cnn5", "--data", small_set, "--run", run, *FAST, *still)
    frozen = ("--engine.precision", "bf16", "--train.monitor", "val/accuracy", "--tracking.tensorboard", "true")
    done = bloodcell(*arguments, *frozen)
    assert done.code == 0, done.err
    assert "stopped early" in done.err
    said = status(run)
    assert said["step"] == said["steps"] // 3 * 2
    assert list((run / "tensorboard").iterdir())
    before = (run / "metrics.jsonl").read_bytes()
    assert bloodcell(*arguments, *frozen).code == 0
    assert status(run)["step"] == said["step"]
    assert (run / "metrics.jsonl").read_bytes() == before


def test_another_config_is_refused_with_the_difference(undisturbed: Path, small_set: Path) -> None:
    done = bloodcell("train", "cnn5", "--data", small_set, "--run", undisturbed, "--data.size", 64)
    assert done.code == 2
    assert "data.size: 32 there, 64 here" in done.err
    done = bloodcell("train", "mobilenet_v2", "--data", small_set, "--run", undisturbed)
    assert done.code == 2
    assert "another recipe" in done.err
    assert len(done.err.strip().splitlines()) == 1


@pytest.mark.parametrize("strategy", ["ddp", *(pytest.param(f"zero{n}", marks=pytest.mark.slow) for n in range(4))])
def test_not_a_number_stops_with_the_samples(small_set: Path, small_net: str, tmp_path: Path, strategy: str) -> None:
    """DeepSpeed alone would leave such a step out and go on."""
    run = tmp_path / "run"
    wild = ("--optim.lr", 1e30, "--optim.name", "sgd", "--engine.strategy", strategy)
    done = bloodcell(
        "train", "cnn5", "--data", small_set, "--run", run, "--model.name", small_net, *FAST, *wild, ranks=2
    )
    assert done.code == 70
    assert "not finite; samples: " in done.err
    assert status(run)["outcome"]["code"] == 70
    keys = json.dumps(status(run)["outcome"]["what"])
    assert any(name in keys for name in ("benign", "early", "pre", "pro"))


def test_rot_on_the_disk_stops_with_key_and_shard(small_set: Path, small_net: str, tmp_path: Path) -> None:
    damaged = tmp_path / "set"
    shutil.copytree(small_set, damaged)
    path = damaged / "train-000001.tar"
    data = bytearray(path.read_bytes())
    for place in range(2048, len(data) - 2048, 1024):
        data[place] ^= 0x55
    path.write_bytes(data)
    run = tmp_path / "run"
    done = bloodcell("train", "cnn5", "--data", damaged, "--run", run, "--model.name", small_net, *FAST, ranks=2)
    assert done.code == 3
    assert "train-000001.tar" in done.err
    assert status(run)["outcome"]["code"] == 3


def test_a_full_disk_stops_cleanly(small_set: Path, small_net: str, tmpfs: Path) -> None:
    done = bloodcell("train", "mobilenet_v2", "--data", small_set, "--run", tmpfs / "run", *FAST)
    assert done.code == 3
    assert "could not write" in done.err
    assert not [path for path in (tmpfs / "run" / "checkpoints").iterdir() if path.name.isdigit()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--train.micro_batches", 3), "start 1 or 3 ranks"),
        (("--data.micro_batch", 4000), "do not fill one step"),
        (("--model.name", "mobilnet_v2"), "mobilenet_v2"),
        (("--model.weights", "/nowhere.safetensors"), "no such file"),
        (("--data.policy", "ligth"), "did you mean 'light'"),
        (("--data.fold", 1), "no folds"),
        (("--tracking.wandb", "online"), "key"),
        (("--train.monitor", "val/acc"), "choose one of"),
    ],
)
def test_bad_input_is_found_before_anything_is_made(
    small_set: Path, tmp_path: Path, arguments: tuple[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    ranks = 2 if arguments[0] == "--train.micro_batches" else 0
    done = bloodcell("train", "cnn5", "--data", small_set, "--run", tmp_path / "run", *arguments, ranks=ranks)
    assert done.code == 2, done.err
    assert message in done.err
    said = [line for line in done.err.splitlines() if "elastic" not in line]  # torchrun adds a line of its own
    assert len(said) == 1, done.err
    assert not (tmp_path / "run").exists()
